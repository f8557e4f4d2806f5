"""What it means to remove a part of an input: pixels blackened or blurred, tokens deleted, masked or blanked.

A removal says which units relevance is wanted for (the tokens of one space, or the pixels of the picture they
lie on), and makes the inputs in which only some of them remain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from fxplain.errors import InputError
from fxplain.evaluate.localise import to_pixels
from fxplain.result import Result

Inputs = dict[str, Any]


class Removal(Protocol):
    """What :func:`fxplain.evaluate.perturbation` asks of one."""

    @property
    def space(self) -> str:
        """Name of the token space whose relevance says what goes first."""

    def units(self, result: Result, inputs: Inputs) -> Tensor:
        """[batch, units]: the relevance of what can be removed."""

    def removable(self, inputs: Inputs) -> Tensor | None:
        """[batch, units] bool: what may be removed at all; None: everything."""

    def apply(self, inputs: Inputs, kept: Tensor) -> Inputs:
        """The inputs with ``kept`` [batch, units] alone."""


@dataclass(frozen=True, eq=False)
class Pixels:
    """Pixels of a picture take another value: that of black, as in the papers, or that of the blurred
    picture.

    The map is made as large as the picture, bilinearly. Blur: Fong, Vedaldi, *Interpretable Explanations of
    Black Boxes by Meaningful Perturbation*, ICCV 2017.
    """

    space: str = "pixel_values"
    value: float | Sequence[float] = 0.0
    """What black is, in the input's own unit (after normalisation), one number or one per channel."""
    blur: float = 0.0
    """Standard deviation in pixels of a Gaussian blur that takes the place of ``value``; 0: none."""

    def units(self, result: Result, inputs: Inputs) -> Tensor:
        height, width = inputs[self.space].shape[-2:]
        return to_pixels(result.grid(self.space), (height, width)).flatten(1)

    def removable(self, inputs: Inputs) -> Tensor | None:
        return None

    def apply(self, inputs: Inputs, kept: Tensor) -> Inputs:
        picture = inputs[self.space]
        mask = kept.reshape(len(picture), 1, *picture.shape[-2:])
        if self.blur:
            filling = _blurred(picture, self.blur)
        else:
            filling = torch.as_tensor(self.value, dtype=picture.dtype, device=picture.device).reshape(
                1, -1, 1, 1
            )
        return {**inputs, self.space: torch.where(mask, picture, filling)}


def _blurred(picture: Tensor, sigma: float) -> Tensor:
    reach = int(3 * sigma + 0.5)
    x = torch.arange(-reach, reach + 1, dtype=picture.dtype, device=picture.device)
    line = torch.softmax(-(x**2) / (2 * sigma**2), 0)
    channels = picture.shape[1]
    wide = functional.pad(picture, [reach] * 4, mode="replicate")
    rows = functional.conv2d(wide, line.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    return functional.conv2d(rows, line.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)


@dataclass(frozen=True)
class Delete:
    """Tokens are taken out of the sequence, as in the ICCV paper; those that remain keep their order.

    Args:
        space: the token space, named as its input.
        others: further inputs with one row per token (positions, boxes, type ids), cut likewise.
        mask: the attention mask of these tokens (1: token), cut likewise. Padding is no token. Where samples
        keep
            different numbers of tokens, it hides what fills up the shorter ones.
        first, last: tokens at either end that stay ([CLS], [SEP]); counted without padding.
    """

    space: str
    others: tuple[str, ...] = ()
    mask: str | None = None
    first: int = 0
    last: int = 0

    def units(self, result: Result, inputs: Inputs) -> Tensor:
        return result.relevance[self.space]

    def removable(self, inputs: Inputs) -> Tensor | None:
        return _inner(inputs, self.space, self.mask, self.first, self.last)

    def apply(self, inputs: Inputs, kept: Tensor) -> Inputs:
        names = [name for name in (self.space, *self.others, self.mask) if name in inputs and name]
        real = kept if self.mask is None else kept & inputs[self.mask].bool()
        count = real.sum(1)
        longest = int(count.max())
        if self.mask is None and bool((count != longest).any()):
            raise InputError(
                "the samples keep different numbers of tokens",
                expected="the name of the attention mask, which can hide what fills up the shorter ones",
                found=f"{int(count.min())} to {longest} tokens, and no mask",
                hint="Delete(..., mask='attention_mask'), or inputs of one length",
            )
        # no model reads an empty sequence: one row of zeros stays, hidden by the mask
        width = max(longest, 0 if self.mask is None else 1)
        order = (~real).long().argsort(dim=1, stable=True)[:, :width]
        within = torch.arange(width, device=count.device)[None] < count[:, None]
        return {**inputs, **{name: _rows(inputs[name], order, within) for name in names}}


@dataclass(frozen=True)
class Replace:
    """Tokens are replaced: ids by another id ([MASK]), rows of features by a number (a blanked region).

    Args:
        space: the token space, named as its input.
        value: what takes a token's place.
        mask: the attention mask of these tokens; padding is no token.
        first, last: tokens at either end that stay; counted without padding.
    """

    space: str
    value: float
    mask: str | None = None
    first: int = 0
    last: int = 0

    def units(self, result: Result, inputs: Inputs) -> Tensor:
        return result.relevance[self.space]

    def removable(self, inputs: Inputs) -> Tensor | None:
        return _inner(inputs, self.space, self.mask, self.first, self.last)

    def apply(self, inputs: Inputs, kept: Tensor) -> Inputs:
        tokens = inputs[self.space]
        stay = kept.reshape(*kept.shape, *[1] * (tokens.ndim - kept.ndim))
        filling = torch.full_like(tokens, self.value)
        return {**inputs, self.space: torch.where(stay, tokens, filling)}


def _inner(inputs: Inputs, space: str, mask: str | None, first: int, last: int) -> Tensor:
    """Tokens that are neither padding nor at the ends that stay."""
    tokens = inputs[space]
    real = (
        torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        if mask is None
        else inputs[mask].bool()
    )
    place = real.long().cumsum(1)
    return real & (place > first) & (place <= place[:, -1:] - last)


def _rows(values: Tensor, order: Tensor, within: Tensor) -> Tensor:
    """The rows of axis 1 in this order; zeros where there is none."""
    shape = (*order.shape, *[1] * (values.ndim - 2))
    picked = values.gather(1, order.reshape(shape).expand(*order.shape, *values.shape[2:]))
    return picked * within.reshape(shape).to(picked.dtype)


def named(inputs: Any) -> Inputs:
    """Inputs by name, as removals need them.

    Raises:
        InputError: they are no mapping.
    """
    if not isinstance(inputs, Mapping):
        raise InputError(
            "to remove a part of the inputs they must have names",
            expected="a mapping from the names of forward's arguments",
            found=type(inputs).__name__,
        )
    return dict(inputs)
