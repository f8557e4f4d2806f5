"""Samples of different lengths as one batch: padded to one length, where the model takes a mask.

That padding changes nothing is not believed but seen: of the first batch of each kind the shortest sample is
explained by itself as well, and in every batch padding must have no relevance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fxplain.attention.records import TokenSpace
from fxplain.capture.inputs import Layout
from fxplain.capture.verify import tolerance
from fxplain.many.records import Explained


def padded_length(length: int) -> int:
    """The length that samples are padded to: few lengths in all, none more than a third too long.

    Example:
        >>> [padded_length(n) for n in (3, 8, 9, 13, 17, 33, 49, 70)]
        [8, 8, 12, 16, 24, 48, 64, 96]
    """
    size = 8
    while size < length:
        size += size // 2 if size & (size - 1) == 0 else size // 3
    return size


@dataclass(frozen=True)
class Along:
    """Where the inputs of one sample have its length."""

    length: int
    mask: int
    """Which tensor says what is padding."""
    outside: int
    """What it holds there."""
    axes: tuple[int | None, ...]
    """Per tensor the axis along the length; None of one that has none."""
    kind: str
    """What samples have in common that differ in their length alone."""

    def lengthened(self, tensors: Sequence[Tensor], length: int) -> list[Tensor]:
        """The inputs, padded at the end: numbers with 0, ids with the last one there is."""
        found = []
        for number, (tensor, axis) in enumerate(zip(tensors, self.axes, strict=True)):
            if axis is None or length == self.length:
                found.append(tensor)
                continue
            last = tensor.narrow(axis, self.length - 1, 1)
            if number == self.mask:
                last = torch.full_like(last, self.outside)
            elif tensor.is_floating_point():
                last = torch.zeros_like(last)
            sizes = [length - self.length if own == axis else -1 for own in range(tensor.ndim)]
            found.append(torch.cat([tensor, last.expand(sizes)], axis))
        return found


def along(tensors: Sequence[Tensor], layout: Layout) -> Along | None:
    """Where the inputs of a sample have its length; None where none of them is a mask, or several may be.

    A mask is [1, length] and holds nothing but 1 (what is there) or nothing but False (what is padding).
    """
    masks = [(number, outside) for number, t in enumerate(tensors) if (outside := _outside(t)) is not None]
    if len(masks) != 1:
        return None
    mask, outside = masks[0]
    length = tensors[mask].shape[1]
    fitting = [[axis for axis in range(1, t.ndim) if t.shape[axis] == length] for t in tensors]
    if any(len(axes) > 1 for axes in fitting):
        return None
    axes = tuple(own[0] if own else None for own in fitting)
    shapes = [
        (at.path, at.dtype, at.device, tuple(-1 if own == axis else s for own, s in enumerate(at.shape)))
        for at, axis in zip(layout.tensors, axes, strict=True)
    ]
    kind = f"{layout.args!r} {sorted(layout.kwargs.items())!r} {shapes!r} {mask} {outside}"
    return Along(length, mask, outside, axes, kind)


def _outside(tensor: Tensor) -> int | None:
    """What a mask holds where there is padding; None if this is no mask."""
    if tensor.ndim != 2 or len(tensor) != 1 or tensor.is_floating_point() or tensor.is_complex():
        return None
    if bool((tensor == 1).all()):
        return 0
    return 1 if tensor.dtype == torch.bool and not bool(tensor.any()) else None


def bears_padding(target: Any) -> bool:
    """Whether a target means the same in a longer sample: one of none, of names, or counted from the start.

    Example:
        >>> bears_padding((0, "cat")), bears_padding((-1, 3)), bears_padding(lambda out: out.sum())
        (True, False, False)
    """
    parts = target if isinstance(target, tuple) else (target,)
    return all(
        part is None or isinstance(part, str) or (isinstance(part, int) and part >= 0) for part in parts
    )


@dataclass(frozen=True)
class Padded:
    """How a batch was padded."""

    kind: str
    length: int
    lengths: tuple[int, ...]
    """Of each sample, what it was."""
    names: frozenset[str]
    """The inputs that were padded."""

    def cut(self, record: Explained, row: int, spaces: Sequence[TokenSpace]) -> Explained | None:
        """A sample's record without its padding; None where padding has relevance."""
        parts = dict(record.relevance)
        own = self.lengths[row]
        for space in spaces:
            if space.source in self.names and space.grid[:1] == (self.length,):
                if bool(parts[space.name][own:].any()):
                    return None
                parts[space.name] = parts[space.name][:own]
        return replace(record, relevance=parts)


def same(found: Explained, alone: Explained) -> bool:
    """Whether two records say the same of a sample, as far as their precision goes."""
    if list(found.relevance) != list(alone.relevance) or found.target != alone.target:
        return False
    pairs = [(found.relevance[name], alone.relevance[name]) for name in alone.relevance]
    pairs.append((torch.tensor([found.score]), torch.tensor([alone.score])))
    allowed = 100 * tolerance([own for own, _ in pairs[:-1]])
    return all(
        own.shape == other.shape and bool((own - other).abs().max() <= allowed * other.abs().max())
        for own, other in pairs
    )
