"""What a person hands over, told apart; and what is shown of it, by the tokens that it became."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch

from fxplain.adapters.encoding import is_chat
from fxplain.adapters.generic import Function
from fxplain.adapters.loaded import Loaded
from fxplain.attention.layers import Layers
from fxplain.attention.records import TokenSpace
from fxplain.attribution.prediction import Mode
from fxplain.display import Display, Laid, Series
from fxplain.errors import InputError
from fxplain.result import Result

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
SOUNDS = (".wav",)
VIDEOS = (".mp4", ".mkv", ".webm", ".mov", ".avi")


class Given(TypedDict, total=False):
    """What belongs to a text, or takes its place."""

    text_pair: str | Sequence[str]
    """A second text to each text."""
    images: Any
    """Picture files, or pictures (of Pillow, or uint8 [H, W, 3])."""
    audio: Any
    """Sound files (.wav), or arrays [sample] at the rate that the model takes, or pairs (array, rate)."""
    video: Any
    """A video file, frames (arrays or pictures), or a pair of frames and their number a second; or a list of
    files or pairs."""
    decoder_text: str
    """What the decoder of an encoder-decoder has said so far."""
    axis: str
    """What the places of a series are counted in (``hour``), of tensors [batch, place] or
    [batch, place, channel], drawn under their relevance."""


class Asking(Given, total=False):
    """How it is explained; see :meth:`fxplain.Traced.explain`."""

    method: str
    output: str | None
    layers: Layers | None
    mode: Mode
    verify: bool


class Prepared(NamedTuple):
    """What a model is called with, and what is shown for it."""

    inputs: Any
    display: Display
    """By the names of inputs."""


_MOST_CHANNELS = 12
"""Curves that are drawn over each other."""


def on_axis(prepared: Prepared, axis: str) -> Prepared:
    """The same, with what is drawn of each input that is a series.

    Raises:
        InputError: none of them is one.
    """
    named = prepared.inputs if isinstance(prepared.inputs, Mapping) else {}
    found = {
        name: [Series(one.detach().cpu().float().numpy(), axis) for one in tensor]
        for name, tensor in named.items()
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and _is_series(tensor)
    }
    if not found:
        raise InputError(
            "no input is a series, so there is no axis to name",
            expected=f"[batch, place], or [batch, place, channel] with at most {_MOST_CHANNELS} channels",
            found=", ".join(f"{n} {list(getattr(t, 'shape', ()))}" for n, t in named.items())
            or "tensors without names",
        )
    return Prepared(prepared.inputs, replace(prepared.display, series={**prepared.display.series, **found}))


def _is_series(tensor: torch.Tensor) -> bool:
    return tensor.ndim == 2 or (tensor.ndim == 3 and tensor.shape[-1] <= _MOST_CHANNELS)


def apart(asking: Mapping[str, Any], **usual: Any) -> tuple[Any, dict[str, Any]]:
    """What is handed over, and how it is explained; ``usual``, unless something else is asked for."""
    unknown = [name for name in asking if name not in Asking.__annotations__]
    if unknown:
        raise TypeError(f"there is no {unknown[0]}=; there are {', '.join(Asking.__annotations__)}")
    given = {name: value for name, value in asking.items() if name in Given.__annotations__}
    return given, usual | {name: value for name, value in asking.items() if name not in given}


def kind_of(inputs: Any, loaded: Loaded) -> str:
    """What a person has handed over: the name by which ``Loaded.prepare`` takes it, or ``tensors``."""
    one = inputs[0] if isinstance(inputs, (list, tuple)) and inputs else inputs
    leaves = inputs.values() if isinstance(inputs, Mapping) else (one,)
    if any(isinstance(leaf, torch.Tensor) for leaf in leaves):
        return "tensors"
    if isinstance(loaded.encode, Function):
        return "given"
    if is_chat(inputs):
        return "chat"
    suffix = Path(one).suffix.lower() if isinstance(one, (str, Path)) and len(str(one)) < 300 else ""
    if isinstance(one, Path) or (suffix in (*PICTURES, *SOUNDS, *VIDEOS) and Path(one).is_file()):
        return "audio" if suffix in SOUNDS else "video" if suffix in VIDEOS else "image"
    if isinstance(one, str):
        return "text"
    return "tensors" if loaded.encode is None else "image"


def shown_by_space(display: Display, spaces: Iterable[TokenSpace], batch: int) -> Display:
    """Hang pictures and texts, known by the name of their input, on the token spaces born from that input.

    What there is one of (a picture that is compared with several texts) is shown with every sample.
    """
    born = [space for space in spaces if space.origin == "input"]

    def renamed(by_input: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
        found = {space.name: by_input[space.source] for space in born if space.source in by_input}
        return {name: list(shown) * batch if len(shown) == 1 else shown for name, shown in found.items()}

    images, frames = renamed(display.images), dict(display.frames)
    for space in born:
        pictures = images.get(space.name, ())
        several = len(pictures) > 1 and all(np.ndim(picture) == 3 for picture in pictures)
        if several and batch == 1 and len(space.grid) == 3 and space.grid[0] == len(pictures):
            images[space.name] = [np.stack(pictures)]  # several pictures in one text
            frames[space.name] = [f"picture {number}" for number in range(1, len(pictures) + 1)]
    captions = list(display.captions) * batch if len(display.captions) == 1 else display.captions
    return replace(
        display,
        images=images,
        frames=frames,
        tokens=renamed(display.tokens),
        turns=renamed(display.turns),
        seen=renamed(display.seen),
        series=renamed(display.series),
        laid={s.name: own for s in born if (own := display.laid.get(s.source)) and _covers(own, s.size)},
        times={s.name: display.times[s.source] for s in born if s.source in display.times},
        captions=captions,
    )


def _covers(laid: Sequence[Laid], size: int) -> bool:
    """Whether the pictures hold every token of a space once."""
    return sorted(int(one) for each in laid for one in each.tokens.flat) == list(range(size))


def unseen(display: Display, result: Result) -> list[str]:
    """Notes on inputs that are shown but hold no token."""
    sources = {space.source for space in result.spaces}
    given = {*display.images, *display.tokens}
    return [
        f"no token was born from the input {name!r}, so it is not drawn" for name in sorted(given - sources)
    ]
