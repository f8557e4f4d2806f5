"""The demo: a small ViT that was trained on real pictures, canvases it never saw, and what it looks at.

Everything needed lies in this folder (the model in ``model/``, pictures in ``canvases/``), so ``fxplain
demo`` needs no network. ``benchmarks/train_demo.py`` in the repository trained the model.
"""

from fxplain.demo.assets import Canvas, Demo, Thing, load_demo
from fxplain.demo.pointing import peak, pointing_game

__all__ = ["Canvas", "Demo", "Thing", "load_demo", "peak", "pointing_game"]
