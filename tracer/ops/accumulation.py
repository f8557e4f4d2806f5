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

from fxplain.labels import Slot, Value, codes_of, compact, encode, samples_of
from fxplain.ops.edges import along_edges
from fxplain.ops.mixing import new_tokens, record
from fxplain.ops.table import Call, Operand, transfer
from fxplain.ops.writing import write

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
    site = record(call, "pooled", [source], rows, cols, source.shape, adds=True)
    return replace(kept, reads=site.reads)


def _merged(call: Call, read: Read, source: Operand, new: Slot) -> Slot:
    """New tokens, made of the old ones."""
    rows = _places(call, source, new)
    spread = replace(rows, labels=compact(read(rows.expanded(call.result.shape)).contiguous()))
    made = record(call, "pooled", [source], spread, new, source.shape)
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
