"""From a model's inputs back to what a person sees: the picture the model saw, the words of its tokens.

Both are read off the very tensors the model is called with, so that an overlay aligns however the picture was
cropped and resized, and a token's text is the token's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fxplain.display import Display

_PIXEL_MASK = "pixel_mask"
"""The input by which detectors are told which pixels are no padding."""


class Spell(Protocol):
    """Token ids, and the text or pair of texts they were made from, if known -> the text of each token."""

    def __call__(self, ids: Sequence[int], text: Any = None, /) -> Sequence[str]: ...


@dataclass(frozen=True)
class Show:
    """How to undo a model's normalisation and spell its tokens.

    Args:
        mean: per channel, in the unit of pixels scaled to 0..1; empty if the normalisation is not known.
        std: per channel.
        scale: what a pixel of 1.0 was multiplied with before mean and std (1, or 255 if never rescaled).
        spell: token ids -> texts, or None.
        ids: name of the input of ids, where it is one that says nothing.

    Example:
        >>> picture = Show(mean=(0.5,), std=(0.5,)).pictures(torch.ones(1, 1, 2, 2))[0]
        >>> picture.shape, int(picture.max())
        ((2, 2, 3), 255)
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    scale: float = 1.0
    spell: Spell | None = None
    ids: str = "input_ids"

    def display(
        self,
        tensors: Iterable[tuple[str, Tensor]],
        labels: Mapping[int, str] | None = None,
        title: str = "",
        captions: Sequence[str] = (),
        texts: Mapping[str, Sequence[Any]] | None = None,
    ) -> Display:
        """Pictures and token texts by the name of the input they come from.

        ``texts``: by the name of an input of ids, the texts its rows were made from; one is for all rows.
        """
        from fxplain.display import Display

        tensors = tuple(tensors)
        images: dict[str, Sequence[Any]] = {}
        tokens: dict[str, Sequence[Sequence[str]]] = {}
        for name, tensor in tensors:
            if is_picture(tensor):
                images[name] = self.pictures(tensor)
            elif (is_ids(name, tensor) or (name == self.ids and is_whole(tensor))) and self.spell is not None:
                rows = tensor.tolist()
                written = list((texts or {}).get(name, ()))
                written = written * len(rows) if len(written) == 1 else written
                known = written if len(written) == len(rows) else [None] * len(rows)
                pairs = zip(rows, known, strict=True)
                tokens[name] = [self.spell(row, text) if text else self.spell(row) for row, text in pairs]
        seen = {name: own for name in images if (own := _seen(name, dict(tensors)))}
        return Display(
            images=images, tokens=tokens, labels=labels or {}, title=title, captions=captions, seen=seen
        )

    def pictures(self, pixels: Tensor) -> list[Any]:
        """[batch, (T,) C, H, W] as the model takes it -> per sample a uint8 array [(T,) H, W, 3]."""
        pixels = pixels.detach().to("cpu", torch.float32)
        channels = pixels.shape[-3]
        if len(self.mean) == channels:
            shape = (channels, 1, 1)
            pixels = pixels * torch.tensor(self.std).view(shape) + torch.tensor(self.mean).view(shape)
            pixels = pixels / self.scale
        elif pixels.min() < 0 or pixels.max() > 1:  # an unknown normalisation: stretch what there is
            flat = pixels.flatten(1)
            low, high = flat.min(1).values, flat.max(1).values
            view = (-1, *[1] * (pixels.ndim - 1))
            pixels = (pixels - low.view(view)) / (high - low).clamp_min(1e-12).view(view)
        pixels = pixels.expand(*pixels.shape[:-3], 3, *pixels.shape[-2:]) if channels == 1 else pixels
        upright = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).movedim(-3, -1)
        return [picture.contiguous().numpy() for picture in upright]


def _seen(name: str, tensors: Mapping[str, Tensor]) -> list[tuple[float, float]]:
    """Per sample the part of height and width that is no padding, as a mask of the pixels tells it."""
    mask, pixels = tensors.get(_PIXEL_MASK), tensors[name]
    if mask is None or pixels.ndim != 4 or mask.shape != (len(pixels), *pixels.shape[-2:]):
        return []
    real = mask.detach().cpu() != 0
    high, wide = real.any(-1).float().mean(-1), real.any(-2).float().mean(-1)
    return [(float(h), float(w)) for h, w in zip(high, wide, strict=True)]


def is_picture(tensor: Tensor) -> bool:
    """Floating [batch, 1 or 3, H, W] or [batch, T, 1 or 3, H, W]: what models take pictures and videos as."""
    if tensor.ndim not in (4, 5) or not tensor.is_floating_point() or min(tensor.shape) == 0:
        return False
    return tensor.shape[-3] in (1, 3) and min(tensor.shape[-2:]) >= 4


def is_ids(name: str, tensor: Tensor) -> bool:
    """Integer [batch, tokens] under a name that ends in ``input_ids``."""
    return is_whole(tensor) and name.endswith("input_ids")


def is_whole(tensor: Tensor) -> bool:
    """Whole numbers [batch, tokens]."""
    return tensor.ndim == 2 and not tensor.is_floating_point()
