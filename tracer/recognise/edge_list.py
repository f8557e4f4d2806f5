"""Attention along the edges of a graph: weighed values that are summed at the places an index tells.

The weights of all edges that end in one place sum up to 1, so it is a softmax however it is spelled. Who
asked is sent by the same index: what was gathered by it, for the scores, comes back to where it was taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from fxplain.labels.call import Call, aten, op_name
from fxplain.labels.flows import EdgeList
from fxplain.labels.labels import Slot, broadcast, compact, samples_of
from fxplain.labels.notebook import Taken
from fxplain.labels.value import NOTHING, Operand, Value
from fxplain.ops.meeting.mixing import check_samples
from fxplain.recognise.normaliser import all_ones, is_positive

RULE = "attention along edges"
ACCUMULATORS = frozenset(aten("index_add index_reduce scatter_add scatter_reduce"))


def line_of(call: Call) -> tuple[int, Tensor] | None:
    """The axis that an index goes along, and the places there; None where it is no single line."""
    if call.argument("indices") is not None:
        indices: list[Any] = list(call.argument("indices"))
        known = [axis for axis, index in enumerate(indices) if index is not None]
        if len(known) != 1 or indices[known[0]].ndim != 1 or indices[known[0]].dtype == torch.bool:
            return None
        size = call.operands()[0].shape[known[0]]
        return known[0], indices[known[0]].cpu() % max(size, 1)  # counted from the end where it is negative
    index, dim = call.argument("index"), int(call.argument("dim"))
    if not isinstance(index, Tensor) or not index.ndim:
        return None
    axis = dim % max(call.operands()[0].ndim, 1) if index.ndim == 1 else dim % index.ndim
    if index.ndim == 1:
        return axis, index.cpu()
    narrow = compact(index.cpu())
    if any(size > 1 for other, size in enumerate(narrow.shape) if other != axis):
        return None
    return axis, narrow.reshape(-1).expand(index.shape[axis])


def note_taken(call: Call, operand: Operand) -> None:
    """Remember what tokens were gathered by which index; what a softmax divides by, say, asks for nothing."""
    if len(operand.value.active) != 1 or _is_statistic(call, operand.node):
        return
    line, slot = line_of(call), operand.value.active[0]
    if line is None or not slot.varies(line[0]):
        return
    axis, index = line
    call.ledger.taken.append(Taken(index, axis, operand.shape[axis], slot))
    # an input that tells of one sample what to take takes nothing of another; else they are no samples
    teller = call.operands()[1].value.dormant
    if teller is not None and teller.labels.ndim == 1:
        sent = samples_of(teller.labels).view([-1 if a == axis else 1 for a in range(operand.ndim)])
        given = samples_of(slot.labels.index_select(axis, index))
        call.ledger.crossing |= bool(((sent != given) & (sent >= 0) & (given >= 0)).any())


def _is_statistic(call: Call, node: fx.Node | None) -> bool:
    """Whether it is a sum by an index itself, or that plus a constant."""
    while node is not None and op_name(node).removesuffix("_") not in ACCUMULATORS:
        labelled = [n for n in node.all_input_nodes if _labelled(call, n)]
        pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
        node = labelled[0] if pointwise and len(labelled) == 1 else None
    return node is not None


def _labelled(call: Call, node: fx.Node) -> bool:
    value = call.values.get(node, NOTHING)
    return isinstance(value, Value) and value.labelled


def along_edges(call: Call, source: Operand, pooled: Callable[[Slot], Slot]) -> Slot | None:
    """The labels of sums of weighed values, after an attention was written down; None where it is none.

    ``pooled`` makes the rows where nobody asked: new tokens, one for each place, of those of the keys.
    """
    product, line = source.value.unsummed.product, line_of(call)
    if product is None or not all(factor.value.labelled for factor in product.factors):
        return None
    if line is None:
        call.unmatched(RULE, "the index is not along one axis")
        return None
    axis, index = line
    shape = call.ledger.shapes[product.node.name]
    if shape[: axis + 1] != source.shape[: axis + 1]:
        call.unmatched(RULE, "the weighed values were laid out otherwise before they were summed up")
        return None
    for weights, values in (product.factors, product.factors[::-1]):
        fits = weights.ndim == values.ndim == len(shape) and weights.shape[axis] == shape[axis]
        if fits and _sums_to_one(weights, axis, index, call.result.shape[axis]):
            keys = values.value.active[0]
            asked = _asking(call, keys, axis, index)
            if asked is not None and _each_its_own(asked, keys, axis, index):
                # rows that a loop sends away and adds back, as mixtures of experts do
                call.unmatched(RULE, "each edge leads from a token to itself")
                return None
            rows = asked or replace(pooled(keys), reads=frozenset())
            ends = replace(rows, labels=_ends(rows, axis, index, weights.ndim))
            read = _attention(call, product.node, weights, values, ends, asked is None)
            call.matched(RULE)
            return replace(rows, reads=rows.reads | {read})
    call.unmatched(RULE, "the weights that end in one place do not sum up to 1, or are below 0")
    return None


def _sums_to_one(weights: Operand, axis: int, index: Tensor, size: int) -> bool:
    if not is_positive(weights):
        return False
    tensor = weights.tensor.detach().cpu().double()
    places = tensor.new_zeros([size if a == axis else n for a, n in enumerate(tensor.shape)])
    return all_ones(places.index_add_(axis, index, tensor), weights.tensor.dtype)


def _asking(call: Call, keys: Slot, axis: int, index: Tensor) -> Slot | None:
    """Whose the places are: the tokens that were gathered by this very index, and not made of the keys."""
    shape = call.result.shape
    for taken in reversed(call.ledger.taken):
        same = taken.size == shape[axis] and torch.equal(taken.index, index)
        leading = range(axis if taken.axis == axis else 0)
        plain = all(other == taken.axis or other in leading for other in taken.slot.axes)
        if same and plain and not call.ledger.mixed_from(taken.slot, [keys]):
            labels = taken.slot.labels.reshape(*_first(taken.slot.labels, len(leading)), taken.size)
            labels = labels.reshape(*(1,) * (axis - len(leading)), *labels.shape)
            return replace(taken.slot, labels=labels.reshape(*labels.shape, *(1,) * (len(shape) - axis - 1)))
    return None


def _each_its_own(rows: Slot, keys: Slot, axis: int, index: Tensor) -> bool:
    """Whether every edge leads from a token to itself."""
    ends, starts = broadcast(_ends(rows, axis, index, keys.labels.ndim), keys.labels)
    return torch.equal(ends, starts)


def _ends(rows: Slot, axis: int, index: Tensor, ndim: int) -> Tensor:
    """The row at the end of every edge, laid out as the weights."""
    ends = rows.labels.index_select(axis, index)
    return ends.reshape(*_first(ends, axis + 1), *(1,) * (ndim - axis - 1))


def _first(labels: Tensor, count: int) -> tuple[int, ...]:
    return tuple(labels.shape[:count])


def _attention(call: Call, node: fx.Node, weights: Operand, values: Operand, rows: Slot, pools: bool) -> int:
    """A map that is a list of pairs: its rows and columns lie along one axis, and none is summed over."""
    cols = values.value.active[0]
    check_samples(call, rows, cols)
    assert weights.node is not None
    assert values.node is not None
    site = call.ledger.add_site(
        node=node,
        map=EdgeList(weights.node, values.node),
        shape=weights.shape,
        rows=rows,
        cols=cols,
        softmaxes=weights.value.softmaxes,
        new_rows=pools,
    )
    return site.index
