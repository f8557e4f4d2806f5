"""The entries of a dataset in order, and entries of one layout put together to batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxplain.capture.inputs import flatten, normalise, positional_names
from fxplain.errors import FxplainError, InputError
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
    model: Any, samples: Iterable[tuple[int, Sample]], batch_size: int, axes: Mapping[str, int | None]
) -> Iterator[Group]:
    """Entries in groups of at most ``batch_size``: such of one sample, one layout and a like target.

    Args:
        model: whose ``forward`` the inputs are for.
        samples: entries with their places.
        batch_size: how many go together.
        axes: name of an input -> where it has the batch. Only where all have one can entries be put together.
    """
    waiting: dict[Any, list[tuple[int, Sample, str]]] = {}
    count = 0
    for index, sample in samples:
        args, kwargs = normalise(sample.inputs)
        tensors, layout = flatten(model, args, kwargs)
        member = (index, sample, digest_of(sample.inputs))
        own = [axes.get(tensor.path) for tensor in layout.tensors]
        single = all(axis is not None and t.shape[axis] == 1 for t, axis in zip(tensors, own, strict=True))
        if batch_size < 2 or not single or isinstance(sample.target, (list, Tensor)):
            yield Group((member,), sample.inputs)
            continue
        like = id(sample.target) if callable(sample.target) else None
        key = f"{layout.args!r} {sorted(layout.kwargs.items())!r} {layout.tensors!r} {like}"
        waiting.setdefault(key, []).append(member)
        count += 1
        if len(waiting[key]) == batch_size or count == WINDOW * batch_size:
            # the full one, or else the one that has waited longest
            chosen = key if len(waiting[key]) == batch_size else next(iter(waiting))
            count -= len(waiting[chosen])
            yield together(model, waiting.pop(chosen), axes)
    for members in waiting.values():
        yield together(model, members, axes)


def together(model: Any, members: list[tuple[int, Sample, str]], axes: Mapping[str, int | None]) -> Group:
    """Entries of one layout as one batch."""
    if len(members) == 1:
        return Group(tuple(members), members[0][1].inputs)
    found = [flatten(model, *normalise(sample.inputs)) for _, sample, _ in members]
    columns = zip(*(tensors for tensors, _ in found), strict=True)
    layout = found[0][1]
    own = [axes[tensor.path] or 0 for tensor in layout.tensors]
    args, kwargs = layout.fill([torch.cat(c, axis) for c, axis in zip(columns, own, strict=True)])
    if args and kwargs:
        kwargs = {**dict(zip(positional_names(model, len(args)), args, strict=True)), **kwargs}
        args = ()
    return Group(tuple(members), args or kwargs)
