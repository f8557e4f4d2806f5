"""A zoo of toy models with seeded random weights, and what is to be found in each; see :mod:`zoo.spec`."""

from __future__ import annotations

from zoo.multimodal import MULTIMODAL
from zoo.spec import EVERY, Builder, Case, Expected, Site, slice_batch
from zoo.text import TEXT
from zoo.torch_nn import TORCH
from zoo.vision import VISION

ZOO: dict[str, Builder] = {**TEXT, **VISION, **MULTIMODAL, **TORCH}

__all__ = ["EVERY", "ZOO", "Builder", "Case", "Expected", "Site", "slice_batch"]
