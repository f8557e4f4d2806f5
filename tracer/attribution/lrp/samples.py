"""Which sample's relevance an element holds, where that of all samples is handed back in one pass.

Samples are independent in most models: what starts at a sample's score stays among its own elements. Then
one pass does for all, if what is summed over "all elements of the sample" is summed for each by itself.
Whose an element is, is told by its label, or guessed from the shape. That the samples are independent, and
that no guess was wrong, is shown by a second pass, once for a layout: see :func:`is_apart`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from fxplain.labels.findings import Findings
from fxplain.labels.labels import compact, completed, samples_of
from fxplain.labels.value import Value

SPREAD = 48
"""How many powers of two the tags of samples take: so few that no relevance becomes 0 by them."""
ROUNDING = 1e3
"""How many units in the last place two passes may differ by, relative to the sample's largest relevance."""


SMALLEST = torch.finfo(torch.float32).tiny
"""What is smaller than that may be rounded by a power of two as well."""


class NotApartError(Exception):
    """It cannot be told whose an element is; the samples are then taken one by one. Never seen by users."""


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples that one pass is for."""

    count: int = 1
    findings: Findings | None = None
    """The labels that tell them apart; None for a single one, which has everything."""
    _known: dict[tuple[fx.Node, int], Tensor | None] = field(default_factory=dict)

    def sums(self, tensor: Tensor, node: fx.Node, place: int = 0) -> Tensor:
        """The sum over each sample's elements of a tensor laid out as a node's result: [sample]."""
        tensor = torch.view_as_real(tensor).sum(-1) if tensor.is_complex() else tensor
        if self.count == 1:
            return tensor.sum().reshape(1)
        owners = self.owners(tensor, node, place)
        axes = [axis for axis, size in enumerate(owners.shape) if size == 1]
        lines = tensor.sum(axes, keepdim=True) if axes else tensor
        return lines.new_zeros(self.count).index_add(0, owners.reshape(-1), lines.reshape(-1))

    def spread(self, of_samples: Tensor, tensor: Tensor, node: fx.Node, place: int = 0) -> Tensor:
        """One number for each sample [sample], laid out so that each element meets its own."""
        return of_samples[0] if self.count == 1 else of_samples[self.owners(tensor, node, place)]

    def owners(self, tensor: Tensor, node: fx.Node, place: int = 0) -> Tensor:
        """The sample of each element of a tensor laid out as a node's result, of size 1 where that does not
        vary.

        Raises:
            NotApartError: nothing tells it.
        """
        if self.count == 1:
            return torch.zeros((1,) * tensor.ndim, dtype=torch.int64, device=tensor.device)
        if (node, place) not in self._known:
            self._known[node, place] = self._found(node, place, tensor)
        found = self._known[node, place]
        if found is None or found.ndim != tensor.ndim:
            raise NotApartError(node)
        if any(own not in (1, size) for own, size in zip(found.shape, tensor.shape, strict=True)):
            raise NotApartError(node)
        return found.to(tensor.device)

    def _found(self, node: fx.Node, place: int, tensor: Tensor) -> Tensor | None:
        assert self.findings is not None
        parts = self.findings.parts(node)
        known = _labelled(parts[place]) if place < len(parts) else None
        if known is not None and known.ndim == tensor.ndim:
            return known
        axes = [axis for axis, size in enumerate(tensor.shape) if size == self.count]
        if not axes:
            return None
        axis = self.findings.batch_axis if self.findings.batch_axis in axes else axes[0]
        return torch.arange(self.count).view([-1 if other == axis else 1 for other in range(tensor.ndim)])


def _labelled(value: Value) -> Tensor | None:
    """The sample of each element by the labels; None if they do not tell it of every one."""
    known: Tensor | None = None
    for slot in value.slots:
        samples = samples_of(slot.labels)
        known = samples if known is None else torch.where(known < 0, samples, known)
    if known is None:
        return None
    known = completed(compact(known))
    return None if bool((known < 0).any()) else compact(known)


def tags(count: int) -> Tensor:
    """A power of two for each sample, by which all its relevance is multiplied without any rounding."""
    numbers = torch.arange(count)
    return 0.5 ** ((numbers + 5 * (numbers // SPREAD)) % SPREAD).double()


def is_apart(
    plain: Mapping[str, tuple[Tensor, Tensor]], tagged: Mapping[str, tuple[Tensor, Tensor]], marks: Tensor
) -> bool:
    """Whether no relevance went from one sample to another, shown by two passes.

    All rules are homogeneous: a sample that starts with ``t`` times the relevance has ``t`` times of it
    everywhere. In the second pass each starts with another ``t``, so what holds a part of a foreign sample,
    or is taken for another one's, does not come out as ``t`` times what it was.

    Args:
        plain, tagged: by name, what was found and for each element its sample; they broadcast.
        marks: the ``t`` of each sample.
    """
    for name, (found, owners) in plain.items():
        again = tagged[name][0].double()
        wanted = found.double() * marks.to(found.device)[owners]
        largest = _largest(found.double(), owners, len(marks))
        bound = ROUNDING * torch.finfo(found.dtype).eps * (largest * marks.to(found.device))[owners]
        if not bool(((again - wanted).abs() <= bound + SMALLEST).all()):
            return False
    return True


def _largest(tensor: Tensor, owners: Tensor, count: int) -> Tensor:
    """The largest magnitude among each sample's elements: [sample]."""
    axes = [axis for axis, size in enumerate(owners.shape) if size == 1]
    lines = tensor.abs().amax(axes, keepdim=True) if axes else tensor.abs()
    found = lines.new_zeros(count)
    return found.scatter_reduce(0, owners.reshape(-1), lines.reshape(-1), "amax")
