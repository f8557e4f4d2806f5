"""Token labels: which token each element of a tensor belongs to.

A label is one int64: ``(sample + 1) << SHIFT | (code + 1)``; a zero part means "none". While a tensor is
still an input's or a parameter's own data, its labels are *dormant*: the code numbers the elements of the
inputs and parameters, so that two routes from the same elements agree on the tokens they later become. An
embedding, linear or convolution wakes them (:mod:`fxplain.ops.births`); from then on codes are token indices.

Label arrays are *compact*: they have the tensor's number of axes, with size 1 where they do not vary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

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

    @property
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
        return bool((line >= 0).all()) and len(torch.unique(line)) == samples.shape[axis]

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


@dataclass(frozen=True)
class Asked:
    """A single token a sample that was added to the tokens of another axis, as a query is to keys."""

    code: int
    strength: int
    reads: frozenset[int]
    products: int = 0
    """How many sums of products its sum went through since."""


@dataclass(frozen=True)
class Spectrum:
    """Whose spectrum a tensor is: the labels before the transform, the shape they were of, and its node."""

    slots: tuple[Slot, ...]
    shape: tuple[int, ...]
    source: fx.Node | None = None


@dataclass(frozen=True)
class Value:
    """What is known of one tensor of the graph."""

    slots: tuple[Slot, ...] = ()
    root: str | None = None
    """The input, else the parameter, that the tensor mainly comes from."""
    from_input: bool = False
    softmaxes: frozenset[str] = frozenset()
    """Softmax-like nodes whose weights this tensor still carries."""
    origin: str | None = None
    """The node that first held these very numbers in this shape (copies and casts pass it on)."""
    lost: frozenset[str] = frozenset()
    """Nodes upstream at which labels were lost."""
    sampled: frozenset[str] = frozenset()
    """Nodes whose samples at points this tensor still holds one by one."""
    asked: tuple[Asked, ...] = ()
    """Single tokens that gave way to finer labels: the rows of scores that are made of this tensor."""
    spectrum: Spectrum | None = None
    """Set where tokens were transformed to frequencies, until they are transformed back."""
    summed: frozenset[fx.Node] = frozenset()
    """Products that summed all tokens into features, which this tensor still holds."""
    piled: bool = False
    """Single tokens were added up or multiplied, and stand side by side as slots: the newest comes first."""
    depth: int = 0
    """How many sums of products the tensor is away from its elements at most."""

    @property
    def active(self) -> tuple[Slot, ...]:
        """The slots that name tokens."""
        return tuple(slot for slot in self.slots if slot.strength > DORMANT)

    @property
    def labelled(self) -> bool:
        return bool(self.active)

    @property
    def is_summary(self) -> bool:
        """Whether all tokens were summed out on the way here: features of none of them, nor of new ones."""
        return self.from_input and not self.labelled and self.depth > 0 and not self.lost

    @property
    def dormant(self) -> Slot | None:
        return next((slot for slot in self.slots if slot.strength == DORMANT), None)


NOTHING = Value()


def broadcast(*arrays: Tensor) -> tuple[Tensor, ...]:
    """The arrays expanded to one shape."""
    return tuple(torch.broadcast_tensors(*arrays))  # type: ignore[no-untyped-call]


def align(slot: Slot, ndim: int) -> Slot:
    """Add leading axes, as broadcasting does."""
    missing = ndim - slot.labels.ndim
    return replace(slot, labels=slot.labels[(None,) * missing]) if missing > 0 else slot


def merge(operands: Iterable[Sequence[Slot]], additive: bool = False) -> tuple[Slot, ...]:
    """The slots of a pointwise operation's result, from those of its operands in order, aligned.

    Slots that vary along the same axes are one: a slot of inputs beats one of parameters, else the first
    wins. A slot that varies along fewer axes gives way to the finer. Slots on other axes stand side by side,
    and so do different single tokens that are added up (the mean of two class tokens' logits). Rows and
    columns of a map outlive a bias that is laid out more finely.
    """
    operands = sorted(operands, key=lambda slots: -_is_map(slots))
    kept: list[Slot] = []
    for slots in operands:
        own: list[Slot] = []
        for slot in slots:
            earlier = [old for old in kept if not any(old is mine for mine in own)]
            if additive and _other_single_token(slot, earlier):
                kept, added = [*kept, slot], [slot]
            else:
                kept, added = _admit(kept, slot, earlier)
            own += added
    if any(slot.strength > DORMANT for slot in kept):
        kept = [slot for slot in kept if slot.strength > DORMANT]
    return tuple(_distinct(kept, operands))


def _is_map(slots: Sequence[Slot]) -> bool:
    """Whether rows and columns stand side by side."""
    return sum(slot.strength > DORMANT and bool(slot.token_axes) for slot in slots) > 1


def _distinct(slots: Sequence[Slot], operands: Sequence[Sequence[Slot]]) -> list[Slot]:
    """Without repeats that no operand has: rows and columns may be the same where each token meets itself."""
    found: list[Slot] = []
    for slot in slots:
        alike = [n for n, old in enumerate(found) if torch.equal(old.labels, slot.labels)]
        times = max(1, *(sum(torch.equal(s.labels, slot.labels) for s in theirs) for theirs in operands))
        if not slot.token_axes or len(alike) < times:
            found.append(slot)
        else:
            found[alike[0]] = replace(found[alike[0]], reads=found[alike[0]].reads | slot.reads)
    return found


def _admit(kept: list[Slot], new: Slot, earlier: list[Slot]) -> tuple[list[Slot], list[Slot]]:
    """What is kept, and what of it the new slot has added."""
    axes = new.token_axes
    rivals = [old for old in earlier if _comparable(old.token_axes, axes)]
    if not rivals:
        return [*kept, new], [new]
    reads = frozenset().union(new.reads, *(old.reads for old in rivals))
    if _new_wins(rivals, new, axes, _is_map(earlier)):
        others = [old for old in kept if not any(old is rival for rival in rivals)]
        added = replace(_fill(new, rivals), reads=reads)
        return [*others, added], [added]
    if len(rivals) == 1:
        winner = replace(_fill(rivals[0], [new]), reads=reads)
        return [winner if old is rivals[0] else old for old in kept], []
    first = next((old for old in rivals if torch.equal(old.labels, new.labels)), rivals[0])
    return [replace(old, reads=old.reads | new.reads) if old is first else old for old in kept], []


def _other_single_token(new: Slot, earlier: Sequence[Slot]) -> bool:
    """Whether all are single tokens of a sample, as firmly named, and the new one is not among them."""
    return bool(earlier) and all(
        old.strength == new.strength > DORMANT
        and not (old.token_axes or new.token_axes)
        and not torch.equal(compact(codes_of(old.labels)), compact(codes_of(new.labels)))
        for old in earlier
    )


def _comparable(one: frozenset[int], other: frozenset[int]) -> bool:
    return one <= other or other <= one


def _new_wins(rivals: list[Slot], new: Slot, axes: frozenset[int], of_map: bool) -> bool:
    strongest = max(old.strength for old in rivals)
    covered = frozenset().union(*(old.token_axes for old in rivals))
    if DORMANT in (strongest, new.strength) and strongest != new.strength:
        return new.strength > strongest
    if axes == covered and len(rivals) == 1:
        return new.strength > strongest
    if new.strength < strongest:
        # a table of parameters names the tokens only where the input has one token a sample
        return not covered and bool(axes)
    if axes <= covered or of_map:
        # finer labels stay, unless they are a parameter's and the new ones are an input's tokens
        return new.strength > strongest and bool(axes)
    return True


def _fill(winner: Slot, losers: Sequence[Slot]) -> Slot:
    """Complete missing labels and samples of the winner from slots that vary along the same axes."""
    labels = winner.labels
    for loser in losers:
        if loser.strength != winner.strength or not (loser.axes <= winner.axes or loser.axes == winner.axes):
            continue
        if bool((labels == 0).any()) and loser.token_axes == winner.token_axes:
            labels = torch.where(labels == 0, loser.labels, labels)
    return replace(winner, labels=fill_samples(labels, [loser.labels for loser in losers]))


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


def joined(values: Sequence[Value]) -> dict[str, Any]:
    """The provenance (everything but slots) that a result inherits from its operands, the first one
    leading."""
    rooted = [v for v in values if v.root is not None]
    main = next((v for v in rooted if v.from_input), rooted[0] if rooted else NOTHING)
    return {
        "root": main.root,
        "from_input": any(v.from_input for v in values),
        "softmaxes": frozenset().union(*(v.softmaxes for v in values)),
        "lost": frozenset().union(*(v.lost for v in values)),
        "sampled": frozenset().union(*(v.sampled for v in values)),
        "summed": frozenset().union(*(v.summed for v in values)),
        "asked": tuple({query.code: query for v in values for query in v.asked}.values()),
        "spectrum": next((v.spectrum for v in values if v.spectrum is not None), None),
        "piled": any(v.piled for v in values),
        "depth": max((v.depth for v in values), default=0),
    }


@dataclass(frozen=True)
class Root:
    """An input, a parameter or a constant whose elements have numbers, and how firmly they name tokens."""

    name: str
    is_input: bool
    strength: int
    is_constant: bool = False
    """Whether the graph makes it out of nothing: the name is that of a node."""


@dataclass
class Elements:
    """Numbers the elements of all inputs and parameters, for dormant labels."""

    ranges: list[tuple[Root, int, int]] = field(default_factory=list)
    """(root, first code, one past the last)."""
    shapes: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """First code -> the shape that is numbered."""

    def reserve(self, root: Root, shape: Sequence[int]) -> int:
        start = self.ranges[-1][2] if self.ranges else 0
        self.ranges.append((root, start, start + torch.Size(shape).numel()))
        self.shapes[start] = tuple(shape)
        return start

    def around(self, code: int) -> tuple[int, tuple[int, ...]]:
        """The first code, and the shape, of the input or parameter that an element belongs to."""
        start = next(start for _, start, stop in self.ranges if start <= code < stop)
        return start, self.shapes[start]

    def without_features(self, codes: Tensor, features: Collection[int]) -> Tensor:
        """The codes with coordinate 0 along every axis of their root that only features go along.

        So parts of the features of one place, split before they become tokens, are of one token. Left as they
        are where no axis but features remains.
        """
        inside = [start for _, start, stop in self.ranges if bool(((codes >= start) & (codes < stop)).any())]
        if len(inside) != 1 or bool((codes < 0).any()):
            return codes
        places = torch.unravel_index(codes - inside[0], self.shapes[inside[0]])
        along = [{axis for axis, size in enumerate(compact(p).shape) if size > 1} for p in places]
        if not any(axes - set(features) for axes in along):
            return codes
        kept = [
            torch.zeros_like(p) if axes and axes <= set(features) else p
            for p, axes in zip(places, along, strict=True)
        ]
        result = torch.zeros_like(codes)
        for place, size in zip(kept, self.shapes[inside[0]], strict=True):
            result = result * size + place
        return result + inside[0]

    def lie(self, codes: Tensor) -> tuple[int, ...]:
        """How these elements of one root lie in it: the places along its axes, if they are all of a grid."""
        start = next((start for _, start, stop in self.ranges if start <= int(codes[0]) < stop), None)
        if start is None or int(codes.max()) - start >= torch.Size(self.shapes[start]).numel():
            return (len(codes),)
        places = torch.unravel_index(codes - start, self.shapes[start])
        sizes = [size for size in (len(torch.unique(place)) for place in places) if size > 1]
        return tuple(sizes) if sizes and torch.Size(sizes).numel() == len(codes) else (len(codes),)

    def by_root(self, codes: Tensor) -> dict[Root, Tensor]:
        """Which of these codes belong to which root, as masks."""
        found: dict[Root, Tensor] = {}
        for root, start, stop in self.ranges:
            inside = (codes >= start) & (codes < stop)
            if bool(inside.any()):
                found[root] = found.get(root, torch.zeros_like(inside)) | inside
        return found
