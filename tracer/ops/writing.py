"""Writing into a tensor writes the labels: copies, scattering, puts at an index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fxplain.labels import Slot, Value, compact, reads_of
from fxplain.ops.layout import on_cpu, rerun
from fxplain.ops.table import Call, Operand, aten, transfer

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
"""Writers that may add up; see :mod:`fxplain.ops.accumulation`."""


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
    if source.value.piled and not any(slot.token_axes for slot in news):
        news = news[:1]  # a state that holds several tokens is written where the newest has its place
    slots = []
    alike = len(olds) == len(news)  # rows go into rows and columns into columns, in their order
    for new in news:
        alone = writer(call, torch.zeros(base.shape, dtype=torch.int64), new.expanded(source.shape))
        old = olds[0] if alike else _closest(Slot(compact(alone), new.strength), olds)
        olds = [slot for slot in olds if slot is not old]
        under = old.expanded(base.shape) if old else torch.zeros(base.shape, dtype=torch.int64)
        labels = _spread(writer(call, under, new.expanded(source.shape)), new, _features(call, source))
        both = [new, old] if old else [new]
        if old and old.reads and new.reads:
            _lay_beside(call, old, new, not bool(((alone > 0) & (under > 0)).any()))
        slots.append(Slot(compact(labels), max(slot.strength for slot in both), reads_of(both)))
    blank = torch.zeros(source.shape, dtype=torch.int64)
    for old in olds:
        # where the source has no such labels, none are written; a source without any leaves all as they are
        labels = writer(call, old.expanded(base.shape), blank) if news else old.labels
        slots.append(replace(old, labels=compact(labels)))
    return call.carry(source, base, slots=slots)


transfer(*(name for name in WRITERS if name not in SUMS))(write)


def _lay_beside(call: Call, old: Slot, new: Slot, apart: bool) -> None:
    """Heads that are written one after the other into one tensor: the same tokens, at other places."""
    tokens = [torch.unique(slot.labels[slot.labels > 0]) for slot in (old, new)]
    if apart and torch.equal(*tokens):
        call.ledger.lay_beside([old, new])


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


def _spread(labels: Tensor, source: Slot, features: Sequence[int]) -> Tensor:
    """Where a token's features are written to some places only, the places beside them are the token's
    too."""
    if labels.ndim == source.labels.ndim:
        for axis in features:
            if not source.varies(axis):
                labels = torch.where(labels == 0, labels.amax(axis, keepdim=True), labels)
    return labels
