"""What comes along for the demo: the model's folder, and canvases with the objects on them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxplain.adapters import Loaded
    from fxplain.display import Display

FOLDER = Path(__file__).parent
MODEL_FOLDER = FOLDER / "model"
CANVAS_FOLDER = FOLDER / "canvases"
SPACE = "pixel_values"
"""The token space of the picture's patches: named as the model's input."""


@dataclass(frozen=True)
class Thing:
    """One object on a canvas."""

    target: int
    """Index of its class in the model's logits."""
    label: str
    box: tuple[int, int, int, int]
    """Left, top, right, bottom (exclusive), in pixels."""


@dataclass(frozen=True)
class Canvas:
    """One picture that the model never saw, and what is on it."""

    path: Path
    things: tuple[Thing, ...]


@dataclass(frozen=True, eq=False)
class Demo:
    """The bundled model, loaded as any folder of Hugging Face is, and the bundled canvases."""

    loaded: Loaded
    canvases: tuple[Canvas, ...]

    @property
    def model(self) -> Any:
        """The ViT, in evaluation mode on the CPU."""
        return self.loaded.model

    def prepare(self, *canvases: Canvas) -> tuple[Any, Display]:
        """Inputs for the model, one sample per canvas, and what to show for them."""
        return self.loaded.prepare(image=[canvas.path for canvas in canvases])


def load_demo() -> Demo:
    """Load the bundled model and canvases; nothing is fetched.

    Example:
        >>> demo = load_demo()
        >>> inputs, display = demo.prepare(demo.canvases[0])
        >>> tuple(inputs["pixel_values"].shape), len(demo.canvases[0].things)
        ((1, 3, 64, 64), 2)
    """
    from fxplain.adapters import load

    loaded = replace(load(str(MODEL_FOLDER)), name="demo ViT")  # rather than its folder's name
    return Demo(loaded, read_canvases(CANVAS_FOLDER))


def read_canvases(folder: Path) -> tuple[Canvas, ...]:
    """The canvases that ``canvases.json`` of a folder lists."""
    entries = json.loads((folder / "canvases.json").read_text(encoding="utf-8"))["canvases"]
    return tuple(_canvas(folder, entry) for entry in entries)


def _canvas(folder: Path, entry: dict[str, Any]) -> Canvas:
    things = []
    for one in entry["objects"]:
        left, top, right, bottom = one["box"]
        things.append(Thing(int(one["class"]), str(one["label"]), (left, top, right, bottom)))
    return Canvas(folder / entry["file"], tuple(things))


def picture_size(canvas: Canvas) -> tuple[int, int]:
    """Height and width of the canvas in pixels."""
    from PIL import Image

    with Image.open(canvas.path) as image:
        return image.height, image.width
