"""Sums at places that an index tells (scatter_reduce, index_add): tokens that meet at a place are merged.

Where the place has a token already, that one stays and takes in the others (token merging); where it has
none, what is summed there is a new token. Where no place gets two tokens, the operation only moves elements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from fxplain.labels.call import Call, aten
from fxplain.labels.labels import Slot, codes_of, compact, encode, reads_of, samples_of
from fxplain.labels.value import Operand, Value
from fxplain.ops.meeting.mixing import new_tokens, record
from fxplain.ops.movement import on_cpu, rerun
from fxplain.ops.table import transfer
from fxplain.recognise.edge_list import along_edges

Read = Callable[[Tensor], Tensor]
"""From a tensor of the base's shape to what lies at the places that the source goes to, in its shape."""


def _by_rows(call: Call) -> Read:
    index = call.argument("index").cpu()
    return lambda base: base.index_select(int(call.argument("dim")), index)


def _by_elements(call: Call) -> Read:
    index = call.argument("index").cpu()
    return lambda base: base.gather(int(call.argument("dim")), index)


def _by_indices(call: Call) -> Read:
    places = [None if i is None else i.cpu() for i in call.argument("indices")]
    return lambda base: torch.ops.aten.index.Tensor(base, places)


READERS: dict[str, tuple[str, Callable[[Call], Read]]] = {
    "aten::index_add": ("source", _by_rows),
    "aten::index_reduce": ("source", _by_rows),
    "aten::scatter_add": ("src", _by_elements),
    "aten::scatter_reduce": ("src", _by_elements),
    "aten::index_put": ("values", _by_indices),
    "aten::_unsafe_index_put": ("values", _by_indices),
}


@transfer(*READERS)
def accumulate(call: Call) -> Value:
    """Labels move to the places that the index tells; places where several tokens meet merge them."""
    name, reader = READERS[call.op.removesuffix("_")]
    base, source = call.operands()[0], call.operand(name)
    if "put" in call.op and not bool(call.argument("accumulate", False)):
        return write(call)
    along = [slot for slot in source.value.active if slot.token_axes] if source is not None else []
    beside = [slot for slot in source.value.active if not slot.token_axes] if source is not None else []
    if source is None or len(along or beside) != 1 or len(base.value.active) > 1:
        return write(call)
    beside = beside if along else []  # a token that all of them have met, such as a question
    read, new = reader(call), (along or source.value.active)[0]
    size = read(torch.zeros(1, dtype=torch.int8).expand(base.shape)).shape
    if tuple(size) != source.shape:
        return write(call)
    pooled = partial(_places, call, source, by=["scores"])
    attended = None if base.value.active else along_edges(call, source, pooled)
    if attended is None and not _meet(read, base, source, new):
        return write(call)
    # a place holds what is of one sample; if it seems not to, the batch lies on another axis
    call.ledger.crossing |= _meet(read, base, source, _samples(new), [_samples(s) for s in base.value.active])
    call.ledger.data_dependent |= any(
        o.value.from_input for o in call.operands() if not o.tensor.is_floating_point()
    )
    if base.value.active:
        return call.carry(base, source, slots=[_taken_in(call, read, base, source, new)])
    if attended is not None:
        return replace(call.carry(source, base, slots=[attended, *beside]), softmaxes=frozenset())
    return call.carry(source, base, slots=[_merged(call, read, source, new), *beside])


def _samples(slot: Slot) -> Slot:
    """Labels that name samples alone."""
    samples = samples_of(slot.labels)
    return replace(slot, labels=encode(-1, samples))


def _meet(read: Read, base: Operand, source: Operand, new: Slot, olds: Sequence[Slot] | None = None) -> bool:
    """Whether some place gets several tokens, or one of several samples."""
    count = torch.Size(base.shape).numel()
    places = read(torch.arange(count).view(base.shape)).reshape(-1)
    labels = new.expanded(source.shape).reshape(-1)
    places, labels = places[codes_of(labels) >= 0], labels[codes_of(labels) >= 0]
    low, high = torch.full((count,), torch.iinfo(torch.int64).max), torch.zeros(count, dtype=torch.int64)
    for slot in base.value.active if olds is None else olds:
        high = slot.expanded(base.shape).reshape(-1).clone()
        low = torch.where(codes_of(high) >= 0, high, low)
    low = low.scatter_reduce(0, places, labels, "amin")
    high = high.scatter_reduce(0, places, labels, "amax")
    return bool(((codes_of(high) >= 0) & (low != high)).any())


def _taken_in(call: Call, read: Read, base: Operand, source: Operand, new: Slot) -> Slot:
    """The base's tokens, which take in those of the source that are others."""
    kept = base.value.active[0]
    at = read(kept.expanded(base.shape)).contiguous()
    other = codes_of(at) != codes_of(new.labels)
    rows = replace(kept, labels=compact(torch.where(other, at, 0)))
    cols = replace(new, labels=compact(torch.where(other, new.labels, 0)))
    site = record(call, source, rows, cols, adds=True)
    return replace(kept, reads=site.reads)


def _merged(call: Call, read: Read, source: Operand, new: Slot) -> Slot:
    """New tokens, made of the old ones."""
    rows = _places(call, source, new)
    at_source = replace(rows, labels=compact(read(rows.expanded(call.result.shape)).contiguous()))
    made = record(call, source, at_source, new)
    return replace(rows, reads=made.reads)


def _places(call: Call, source: Operand, new: Slot, by: Sequence[object] = ()) -> Slot:
    """A new token for each place along the axes that the index and the old tokens lie on."""
    shape = tuple(call.result.shape)
    indexed = {axis for axis, size in enumerate(source.shape) if size != shape[axis]} | {_axis(call)}
    kept = sorted(indexed | {axis for axis in new.axes if source.shape[axis] == shape[axis]})
    return new_tokens(call, new, kept, [n if axis in kept else 1 for axis, n in enumerate(shape)], by)


def _axis(call: Call) -> int:
    """The axis that the index goes along; of several indices the first."""
    if "put" in call.op:
        return next(axis for axis, index in enumerate(call.argument("indices")) if index is not None)
    axis: int = int(call.argument("dim")) % call.result.ndim
    return axis


Writer = Callable[[Call, Tensor, Tensor], Tensor]


def _write_index_put(call: Call, base: Tensor, source: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.index_put.default(base, on_cpu(call.args[1]), source)
    return result


def _write_scatter(call: Call, base: Tensor, source: Tensor) -> Tensor:
    return base.scatter(call.args[1], call.args[2].cpu(), source)


def _write_rows(call: Call, base: Tensor, source: Tensor) -> Tensor:
    return base.index_copy(call.args[1], call.args[2].cpu(), source)


def _write_flat(call: Call, base: Tensor, source: Tensor) -> Tensor:
    return base.contiguous().put(call.args[1].cpu(), source.contiguous())


def _write_again(call: Call, base: Tensor, source: Tensor) -> Tensor:
    place = next(i for i, a in enumerate(call.schema.arguments) if a.name in ("src", "source"))
    result: Tensor = rerun(call, {0: base, place: source})
    return result


WRITERS: dict[str, tuple[str, Writer]] = {
    "aten::copy": ("src", lambda call, base, source: source.expand(base.shape)),
    "aten::copy_": ("src", lambda call, base, source: source.expand(base.shape)),
    "aten::masked_scatter": ("source", _write_again),
    "aten::put": ("source", _write_flat),
    "aten::slice_scatter": ("src", _write_again),
    "aten::select_scatter": ("src", _write_again),
    "aten::diagonal_scatter": ("src", _write_again),
    "aten::as_strided_scatter": ("src", _write_again),
    "aten::index_put": ("values", _write_index_put),
    "aten::_unsafe_index_put": ("values", _write_index_put),
    "aten::scatter": ("src", _write_scatter),
    "aten::scatter_add": ("src", _write_scatter),
    "aten::scatter_reduce": ("src", _write_scatter),
    "aten::index_copy": ("source", _write_rows),
    "aten::index_add": ("source", _write_rows),
    "aten::index_reduce": ("source", _write_rows),
}
SUMS = aten("index_add index_reduce scatter_add scatter_reduce index_put _unsafe_index_put")
"""Writers that may add up; see :mod:`fxplain.ops.by_index`."""


def write(call: Call) -> Value:
    """Writing into a tensor writes the labels; sums, where tokens do not meet, keep those that are added."""
    name, writer = WRITERS[call.op.removesuffix("_")]
    base, source = call.operands()[0], call.operand(name)
    if source is None:
        return call.carry(base, slots=base.value.slots)
    if any(o.value.from_input for o in call.operands() if not o.tensor.is_floating_point()):
        call.ledger.data_dependent |= source.value.labelled or base.value.labelled
    awake = source.value.labelled or base.value.labelled
    olds, news = (list(o.value.active if awake else o.value.slots) for o in (base, source))
    if source.value.gave_way.several_single and not any(slot.token_axes for slot in news):
        news = news[:1]  # a state that holds several tokens is written where the newest has its place
    slots = []
    alike = len(olds) == len(news)  # rows go into rows and columns into columns, in their order
    for new in news:
        alone = writer(call, torch.zeros(base.shape, dtype=torch.int64), new.expanded(source.shape))
        old = olds[0] if alike else _closest(Slot(compact(alone), new.strength), olds)
        olds = [slot for slot in olds if slot is not old]
        under = old.expanded(base.shape) if old else torch.zeros(base.shape, dtype=torch.int64)
        labels = _over_features(writer(call, under, new.expanded(source.shape)), new, _features(call, source))
        both = [new, old] if old else [new]
        if old and old.reads and new.reads:
            _lay_beside(call, old, new, not bool(((alone > 0) & (under > 0)).any()))
        slots.append(Slot(compact(labels), max(slot.strength for slot in both), reads_of(both)))
    unlabelled = torch.zeros(source.shape, dtype=torch.int64)
    for old in olds:
        # where the source has no such labels, none are written; a source without any leaves all as they are
        labels = writer(call, old.expanded(base.shape), unlabelled) if news else old.labels
        slots.append(replace(old, labels=compact(labels)))
    return call.carry(source, base, slots=slots)


transfer(*(name for name in WRITERS if name not in SUMS))(write)


def _lay_beside(call: Call, old: Slot, new: Slot, apart: bool) -> None:
    """Heads that are written one after the other into one tensor: the same tokens, at other places."""
    tokens = [torch.unique(slot.labels[slot.labels > 0]) for slot in (old, new)]
    if apart and torch.equal(*tokens):
        call.ledger.note_heads([old, new])


def _closest(new: Slot, olds: Sequence[Slot]) -> Slot | None:
    """The slot that a written one continues: the one that varies along the most of its axes."""
    return max(olds, key=lambda old: len(old.token_axes & new.token_axes), default=None)


def _features(call: Call, source: Operand) -> list[int]:
    """Axes along which what is written may be features: it has several places there, and no index picks
    them. A single row, or rows that an index sends somewhere, leave the rows beside them alone."""
    last = source.ndim - 1
    return [
        axis
        for axis, size in enumerate(source.shape)
        if size > 1 and (axis == last or axis not in _indexed(call, source.ndim))
    ]


def _indexed(call: Call, ndim: int) -> list[int]:
    """The axes that an index goes along."""
    if call.argument("indices") is not None:
        return [axis for axis, index in enumerate(call.argument("indices")) if index is not None]
    if call.op.startswith("aten::put"):
        return list(range(ndim))  # elements are picked one by one
    if isinstance(call.argument("index"), Tensor):
        return [int(call.argument("dim")) % max(ndim, 1)]
    return []


def _over_features(labels: Tensor, source: Slot, features: Sequence[int]) -> Tensor:
    """Where a token's features are written to some places only, the places beside them are the token's
    too."""
    if labels.ndim == source.labels.ndim:
        for axis in features:
            if not source.varies(axis):
                labels = torch.where(labels == 0, labels.amax(axis, keepdim=True), labels)
    return labels
