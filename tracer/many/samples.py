"""The entries of a dataset in order, and entries of one layout put together to batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fxplain.capture.inputs import Layout, flatten, normalise, positional_names
from fxplain.errors import FxplainError, InputError
from fxplain.many.padding import Along, Padded, along, bears_padding, padded_length
from fxplain.many.records import Sample

Places = Callable[[int], bool] | Sequence[int]
"""Which entries of a dataset: a condition, or their places in order."""

WINDOW = 16
"""How many batches' worth of entries are looked through for such that fit together."""


@dataclass(frozen=True)
class Group:
    """Entries of one layout that are explained together."""

    members: tuple[tuple[int, Sample, str], ...]
    """Place in the dataset, the entry, and the digest of its inputs."""
    inputs: Any
    padded: Padded | None = None
    """How they were made one length, if they were."""

    @property
    def target(self) -> Any:
        """The target of all, or one for each."""
        targets = [sample.target for _, sample, _ in self.members]
        return targets[0] if len(targets) == 1 or callable(targets[0]) else targets


def entries(
    dataset: Iterable[Any], wanted: Places, prepare: Callable[[Any], Any] | None, target: Any
) -> Iterator[tuple[int, Sample | FxplainError]]:
    """The entries that are wanted, with their places; of a dataset with places no other is read. In the place
    of one that is none, the error."""
    for index, item in _items(dataset, wanted):
        try:
            found = item if prepare is None else prepare(item)
            sample = found if isinstance(found, Sample) else Sample(found)
            normalise(sample.inputs)
        except FxplainError as error:
            yield index, error
            continue
        own = target if sample.target is ... else sample.target
        yield index, Sample(sample.inputs, own, sample.key)


def _items(dataset: Any, wanted: Places) -> Iterator[tuple[int, Any]]:
    if not callable(wanted):
        yield from ((index, dataset[index]) for index in wanted)
        return
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and not hasattr(dataset, "keys"):
        for index in range(len(dataset)):
            if wanted(index):
                yield index, dataset[index]
        return
    for index, item in enumerate(dataset):
        if wanted(index):
            yield index, item


def count_of(dataset: Any) -> int | None:
    """How many entries there are, where that is known."""
    try:
        return len(dataset)
    except TypeError:
        return None


def check_entries(dataset: Any) -> None:
    """Refuse what has no entries.

    Raises:
        InputError: it has none.
    """
    if not hasattr(dataset, "__iter__") and not hasattr(dataset, "__getitem__"):
        raise InputError(
            "this is no dataset",
            expected="a sequence, a map-style or iterable dataset, or a DataLoader",
            found=type(dataset).__name__,
        )


def check_order(dataset: Any) -> None:
    """Refuse a DataLoader that shuffles: what was done could not be told from what was not.

    Raises:
        InputError: it does.
    """
    sampler = getattr(dataset, "sampler", None)
    if isinstance(sampler, torch.utils.data.RandomSampler):
        raise InputError(
            "the DataLoader shuffles, so that entries have no place by which to find them again",
            expected="a DataLoader(..., shuffle=False), or the dataset itself",
            found=type(sampler).__name__,
        )


def digest(tensors: Collection[Tensor]) -> str:
    """Sixteen letters that other inputs do not have.

    >>> digest([torch.zeros(2)]) == digest([torch.zeros(2)]) != digest([torch.ones(2)])
    True
    """
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        if tensor.numel():
            flat = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.detach().reshape(-1))
            found.update(flat.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def digest_of(inputs: Any) -> str:
    """The digest of all tensors that a model is called with."""
    return digest(flatten(None, *normalise(inputs))[0])


def groups(
    model: Any,
    samples: Iterable[tuple[int, Sample]],
    batch_size: int,
    axes: Mapping[str, int | None],
    padding: dict[str, bool],
) -> Iterator[Group]:
    """Entries in groups of at most ``batch_size``: such of one sample, one layout and a like target.

    Args:
        model: whose ``forward`` the inputs are for.
        samples: entries with their places.
        batch_size: how many go together.
        axes: name of an input -> where it has the batch. Only where all have one can entries be put together.
        padding: kind of sample -> False if such of other lengths are not to be padded to one, which whoever
            takes the groups may find out on the way.
    """
    waiting: dict[str, list[_Member]] = {}
    count = 0
    for index, sample in samples:
        member = _member(model, index, sample)
        own = [axes.get(at.path) for at in member.layout.tensors]
        single = all(
            axis is not None and t.shape[axis] == 1 for t, axis in zip(member.tensors, own, strict=True)
        )
        if batch_size < 2 or not single or isinstance(sample.target, (list, Tensor)):
            yield Group((member.entry,), sample.inputs)
            continue
        if any(own) or (member.along is not None and not padding.get(member.along.kind, True)):
            member = replace(member, along=None)
        waiting.setdefault(member.key, []).append(member)
        count += 1
        full = len(waiting[member.key]) == batch_size
        if (full and member.along is None) or count == WINDOW * batch_size:
            # the full one, or else the one that has waited longest
            chosen = member.key if full and member.along is None else next(iter(waiting))
            count -= len(waiting[chosen])
            yield from _in_batches(model, waiting.pop(chosen), batch_size, axes, padding)
    for members in waiting.values():
        yield from _in_batches(model, members, batch_size, axes, padding)


@dataclass(frozen=True, eq=False)
class _Member:
    """An entry on its way into a group."""

    entry: tuple[int, Sample, str]
    tensors: list[Tensor]
    layout: Layout
    along: Along | None
    """Where it has its length, if it may go with others of other lengths."""

    @property
    def key(self) -> str:
        """What the entries of a group have in common."""
        target = self.entry[1].target
        like = id(target) if callable(target) else None
        layout = self.layout
        if self.along is not None:
            return self.along.kind
        return f"{layout.args!r} {sorted(layout.kwargs.items())!r} {layout.tensors!r} {like}"


def _member(model: Any, index: int, sample: Sample) -> _Member:
    tensors, layout = flatten(model, *normalise(sample.inputs))
    where = along(tensors, layout) if bears_padding(sample.target) else None
    return _Member((index, sample, digest_of(sample.inputs)), tensors, layout, where)


def _in_batches(
    model: Any,
    members: list[_Member],
    batch_size: int,
    axes: Mapping[str, int | None],
    padding: Mapping[str, bool],
) -> Iterator[Group]:
    """What waited together: of one layout, or of like lengths, the longest first."""
    left = sorted(members, key=lambda member: -_length(member))
    while left and _length(left[0]) != _length(left[-1]) and padding.get(left[0].key, True):
        yield _together(model, left[:batch_size], axes)
        left = left[batch_size:]
    apart: dict[str, list[_Member]] = {}
    for member in left:
        alone = replace(member, along=None)
        apart.setdefault(alone.key, []).append(alone)
    for own in apart.values():
        for first in range(0, len(own), batch_size):
            yield _together(model, own[first : first + batch_size], axes)


def _length(member: _Member) -> int:
    return 0 if member.along is None else member.along.length


def _together(model: Any, members: list[_Member], axes: Mapping[str, int | None]) -> Group:
    """Entries as one batch, of the length of the longest and a little more where they may be padded."""
    padded = _padded(members)
    entries_of = tuple(member.entry for member in members)
    if len(members) == 1 and padded is None:
        return Group(entries_of, members[0].entry[1].inputs)
    found = [
        member.tensors
        if padded is None or member.along is None
        else member.along.lengthened(member.tensors, padded.length)
        for member in members
    ]
    layout = members[0].layout
    own = [axes[at.path] or 0 for at in layout.tensors]
    args, kwargs = layout.fill([torch.cat(c, a) for c, a in zip(zip(*found, strict=True), own, strict=True)])
    if args and kwargs:
        kwargs = {**dict(zip(positional_names(model, len(args)), args, strict=True)), **kwargs}
        args = ()
    return Group(entries_of, args or kwargs, padded)


def _padded(members: Sequence[_Member]) -> Padded | None:
    """How these are made one length; None where they have one layout."""
    where = members[0].along
    if where is None:
        return None
    lengths = tuple(_length(member) for member in members)
    paths = zip(members[0].layout.tensors, where.axes, strict=True)
    names = frozenset(at.path for at, axis in paths if axis is not None)
    return Padded(where.kind, padded_length(max(lengths)), lengths, names)
