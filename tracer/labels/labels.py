"""Token labels: which token each element of a tensor belongs to.

A label is one int64: ``(sample + 1) << SHIFT | (code + 1)``; a zero part means "none". While a tensor is
still an input's or a parameter's own data, its labels are *dormant*: the code numbers the elements of the
inputs and parameters, so that two routes from the same elements agree on the tokens they later become. An
embedding, linear or convolution wakes them (:mod:`fxplain.ops.tokens`); from then on codes are token indices.

Label arrays are *compact*: they have the tensor's number of axes, with size 1 where they do not vary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

SHIFT = 40
CODE_MASK = (1 << SHIFT) - 1

DORMANT, FAINT, WEAK, STRONG = 0, 1, 2, 3
"""How firmly a slot names tokens: element codes only; tokens of constants, of parameters, of inputs."""


def encode(samples: Tensor | int, codes: Tensor) -> Tensor:
    """Labels from sample indices and codes; -1 stands for none in either.

    >>> labels = encode(torch.tensor([[0], [1]]), torch.tensor([[4, 7]]))
    >>> samples_of(labels)[:, 0].tolist(), codes_of(labels)[0].tolist()
    ([0, 1], [4, 7])
    """
    return ((torch.as_tensor(samples) + 1) << SHIFT) + (codes + 1)


def codes_of(labels: Tensor) -> Tensor:
    """The codes (token indices, or element codes while dormant); -1 where there is none."""
    return (labels & CODE_MASK) - 1


def samples_of(labels: Tensor) -> Tensor:
    """The sample indices; -1 where a token is shared by all samples or unlabelled."""
    return (labels >> SHIFT) - 1


def compact(labels: Tensor) -> Tensor:
    """Narrow to size 1 every axis along which the labels are constant."""
    for axis, size in enumerate(labels.shape):
        if size > 1 and (labels.stride(axis) == 0 or _constant(labels, axis)):
            labels = labels.narrow(axis, 0, 1)
    return labels


def _constant(labels: Tensor, axis: int) -> bool:
    first = labels.narrow(axis, 0, 1)
    # most axes that vary already differ at the second place: look there before comparing everything
    if not torch.equal(labels.narrow(axis, 1, 1), first):
        return False
    return bool((labels == first).all())


@dataclass(frozen=True)
class Slot:
    """One labelling of a tensor; a score matrix carries two, one for its rows and one for its columns."""

    labels: Tensor
    strength: int
    reads: frozenset[int] = frozenset()
    """Sites whose increments the rows of these tokens hold here (their outputs flowed into them)."""

    @property
    def axes(self) -> frozenset[int]:
        """The axes along which the labels vary, for whatever reason."""
        return frozenset(axis for axis, size in enumerate(self.labels.shape) if size > 1)

    @cached_property
    def token_axes(self) -> frozenset[int]:
        """The axes along which the *tokens* of a sample vary; not those where each place is of another
        sample, even if other tokens were picked in each."""
        codes = compact(codes_of(self.labels))
        found = frozenset(axis for axis, size in enumerate(codes.shape) if size > 1)
        return frozenset(axis for axis in found if not self._samples_apart(axis))

    def _samples_apart(self, axis: int) -> bool:
        samples = samples_of(self.labels)
        others = [other for other in range(samples.ndim) if other != axis]
        line = samples.amax(others) if others else samples
        # most axes are of one sample, which two places show
        return bool(line[0] != line[1]) and bool((line >= 0).all()) and len(torch.unique(line)) == len(line)

    def varies(self, axis: int) -> bool:
        return self.labels.shape[axis] > 1

    def expanded(self, shape: Sequence[int]) -> Tensor:
        return self.labels.expand(tuple(shape))

    def run(self, layout: Callable[[Tensor], Tensor], shape: Sequence[int]) -> Slot:
        """The slot after a layout operation, run on the labels themselves."""
        return replace(self, labels=compact(run_on_labels(layout, self.expanded(shape))))


def run_on_labels(operation: Callable[[Tensor], Tensor], labels: Tensor) -> Tensor:
    """Run a layout operation on labels; those it offers for floats only get float64, exact below 2**53."""
    try:
        return operation(labels)
    except (RuntimeError, NotImplementedError):
        return operation(labels.double()).round().long()


def broadcast(*arrays: Tensor) -> tuple[Tensor, ...]:
    """The arrays expanded to one shape."""
    return tuple(torch.broadcast_tensors(*arrays))  # type: ignore[no-untyped-call]


def align(slot: Slot, ndim: int) -> Slot:
    """Add leading axes, as broadcasting does."""
    missing = ndim - slot.labels.ndim
    return replace(slot, labels=slot.labels[(None,) * missing]) if missing > 0 else slot


def fill_samples(labels: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """Give labels without a sample the sample that broadcasting sources name at the same elements."""
    for source in sources:
        if not bool((samples_of(labels) < 0).any()):
            break
        known = compact(source >> SHIFT)
        if sum(size > 1 for size in known.shape) <= 1:  # the sample varies along one axis, or not at all
            missing = (labels >> SHIFT == 0) & (labels != 0)
            labels = torch.where(missing, (known << SHIFT) | labels, labels)
    return labels


def completed(samples: Tensor) -> Tensor:
    """Sample indices with those that are missing (-1) taken from the places beside them.

    They are told by the first axis at each of whose places all that is known is of one sample.

    >>> completed(torch.tensor([[0, -1], [-1, 1]])).tolist()
    [[0, 0], [1, 1]]
    """
    missing = samples < 0
    if not bool(missing.any()):
        return samples
    for axis in range(samples.ndim):
        others = [other for other in range(samples.ndim) if other != axis]
        line = samples.amax(others, keepdim=True) if others else samples
        if bool((missing | (samples == line)).all()):
            return torch.where(missing, line, samples)
    return samples


def same_tokens(one: Slot, other: Slot) -> bool:
    """Whether two slots, however laid out, are of the same tokens."""
    tokens = (torch.unique(codes_of(slot.labels)) for slot in (one, other))
    return torch.equal(*(own[own >= 0] for own in tokens))


def reads_of(slots: Iterable[Slot]) -> frozenset[int]:
    return frozenset().union(*(slot.reads for slot in slots))
