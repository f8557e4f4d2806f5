"""Sums at places that an index tells (scatter_reduce, index_add): tokens that meet at a place are merged.

Where the place has a token already, that one stays and takes in the others (token merging); where it has
none, what is summed there is a new token. Where no place gets two tokens, the operation only moves elements.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from fxplain.labels import Slot, Value, codes_of, compact
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
    if source is None or len(source.value.active) != 1 or len(base.value.active) > 1:
        return write(call)
    read, new = reader(call), source.value.active[0]
    size = read(torch.zeros(1, dtype=torch.int8).expand(base.shape)).shape
    if tuple(size) != source.shape or not _meet(read, base, source, new):
        return write(call)
    call.ledger.data_dependent |= any(
        o.value.from_input for o in call.operands() if not o.tensor.is_floating_point()
    )
    if base.value.active:
        return call.carry(base, source, slots=[_taken_in(call, read, base, source, new)])
    return call.carry(source, base, slots=[_merged(call, read, source, new)])


def _meet(read: Read, base: Operand, source: Operand, new: Slot) -> bool:
    """Whether some place gets several tokens."""
    count = torch.Size(base.shape).numel()
    places = read(torch.arange(count).view(base.shape)).reshape(-1)
    codes = codes_of(new.expanded(source.shape)).reshape(-1)
    places, codes = places[codes >= 0], codes[codes >= 0]
    low, high = torch.full((count,), torch.iinfo(torch.int64).max), torch.full((count,), -1)
    for slot in base.value.active:
        own = codes_of(slot.expanded(base.shape)).reshape(-1)
        high = own.clone()
        low = torch.where(own >= 0, own, low)
    low = low.scatter_reduce(0, places, codes, "amin")
    high = high.scatter_reduce(0, places, codes, "amax")
    return bool(((high >= 0) & (low != high)).any())


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
    """A new token for each place along the axes that the index and the old tokens lie on."""
    shape = tuple(call.result.shape)
    indexed = {axis for axis, size in enumerate(source.shape) if size != shape[axis]} | {_axis(call)}
    kept = sorted(indexed | {axis for axis in new.axes if source.shape[axis] == shape[axis]})
    rows = new_tokens(call, new, kept, [n if axis in kept else 1 for axis, n in enumerate(shape)])
    spread = replace(rows, labels=compact(read(rows.expanded(shape)).contiguous()))
    made = record(call, "pooled", [source], spread, new, source.shape)
    return replace(rows, reads=made.reads)


def _axis(call: Call) -> int:
    """The axis that the index goes along; of several indices the first."""
    if "put" in call.op:
        return next(axis for axis, index in enumerate(call.argument("indices")) if index is not None)
    axis: int = int(call.argument("dim")) % call.result.ndim
    return axis
