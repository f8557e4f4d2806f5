"""torchvision: every model for classification, video, detection, segmentation and optical flow."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from atlas.cases import Case, NotBuiltError
from atlas.shallow import Arguments, kind_of, parameters, remade, smaller
from atlas.weights import enliven

IMPLEMENTATIONS: tuple[str | None, ...] = (None,)

TASKS = {
    "classification": models,
    "video": models.video,
    "detection": models.detection,
    "segmentation": models.segmentation,
    "flow": models.optical_flow,
}
SIDES = ((64, None), (96, None), (128, None), (128, 4), (224, None))
"""Side of a picture, and of a window where it is not the model's own; the first that works is taken."""
FRAMES = (4, 8, 16)
PROPOSALS = 20
"""How many boxes a detector looks at, where it would take thousands."""


def names() -> list[str]:
    return [f"{task}/{name}" for task, module in TASKS.items() for name in models.list_models(module=module)]


def build(name: str, attention: str | None) -> Case:
    task, _, entry = name.partition("/")
    options: Arguments = {"weights": None}
    if task in ("detection", "segmentation"):
        options["weights_backbone"] = None
    factory = partial(models.get_model, entry, **options)
    kind = kind_of(factory)
    reasons = []
    for side, window, frames, most in _sizes(task):
        try:
            torch.manual_seed(0)
            change = partial(_change, kind, side, window, most, frames)
            model = enliven(remade(factory, kind, change))
            inputs = _inputs(task, side, frames)
            with torch.no_grad():
                _finite(model(*inputs))
        except Exception as error:
            reasons.append(f"side {side}, depth {most}: {type(error).__name__}: {error}")
            continue
        return Case(model, inputs, notes={"depth": str(most or "its own"), "side": str(side)})
    raise NotBuiltError("no size works", reasons[-1][:600])


def _sizes(task: str) -> Iterator[tuple[int, int | None, int, int | None]]:
    for most in (2, None):
        for frames in FRAMES if task == "video" else FRAMES[:1]:
            yield from ((side, window, frames, most) for side, window in SIDES)


def _change(
    kind: type[nn.Module],
    side: int,
    window: int | None,
    most: int | None,
    frames: int,
    given: Arguments,
) -> Arguments:
    changed = smaller(kind, given, side, most, frames, window)
    for name in parameters(kind):
        if name in ("min_size", "max_size"):
            changed[name] = side + 16 * (name == "max_size")
        elif "top_n" in name or "topk" in name or name.endswith("detections_per_img"):
            changed[name] = PROPOSALS
        elif name.endswith("score_thresh"):
            changed[name] = 0.0
        elif name == "init_weights":
            changed[name] = False
    return changed


def _inputs(task: str, side: int, frames: int) -> tuple[Any, ...]:
    def numbers(*shape: int, seed: int = 1) -> Tensor:
        return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))

    if task == "detection":
        return ([numbers(3, side, side), numbers(3, side, side + 16, seed=2)],)
    if task == "video":
        return (numbers(2, 3, frames, side, side),)
    if task == "flow":
        return (numbers(1, 3, side, side), numbers(1, 3, side, side, seed=2), 2)
    return (numbers(2, 3, side, side),)


def _finite(output: Any) -> None:
    if isinstance(output, Tensor):
        if output.is_floating_point() and not bool(output.isfinite().all()):
            raise ValueError("the output is not finite")
        return
    for part in output.values() if isinstance(output, dict) else output:
        _finite(part)
