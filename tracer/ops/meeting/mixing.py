"""Linear steps that make new tokens out of old ones: a new token space, and a site that maps back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fxplain.labels.call import Call
from fxplain.labels.flows import Elementwise, Map
from fxplain.labels.labels import STRONG, Slot, broadcast, codes_of, compact, samples_of
from fxplain.labels.value import Operand
from fxplain.ops.tokens import places


def new_tokens(
    call: Call, old: Slot, axes: Iterable[int], shape: Sequence[int], by: Sequence[object] = ()
) -> Slot:
    """New tokens, one for each place along ``axes``; the same for every step with the same old tokens.

    Made ``by`` windows of another kernel, or by scores, they are others: they hold other parts of old ones.
    """
    numbered = places(old, axes, tuple(shape))
    codes = torch.unique(codes_of(old.labels))
    memo = (int(codes[0]), int(codes[-1]), len(codes), "mixing", *by)
    source = next((o.value.root for o in call.operands() if o.value.root is not None), call.node.name)
    return call.ledger.tokens.at_places(numbered, call.node, source, "mixing", memo, _one_each(old, numbered))


def _one_each(old: Slot, new: Slot) -> Slot | None:
    """Of the old tokens the first that each new one is made of, laid out as those; None where that is not
    told by how they lie."""
    labels = old.labels
    for axis, size in enumerate(new.labels.shape[: labels.ndim]):
        if size == 1 and labels.shape[axis] > 1:
            others = [other for other in range(labels.ndim) if other != axis]
            known = (codes_of(labels) >= 0).long()
            line = known.amin(others) if others else known
            labels = labels.narrow(axis, int(line.argmax()), 1)  # where no padding is
    alike = labels.ndim == new.labels.ndim and labels.numel()
    fits = all(a in (1, b) for a, b in zip(labels.shape, new.labels.shape, strict=False))
    return replace(old, labels=labels) if alike and fits else None


def pooled(call: Call, operand: Operand, old: Slot, summed: Iterable[int]) -> Slot | None:
    """Pool one slot along the summed axes: every element of the operand goes into exactly one new token.

    Returns the new slot, with the operand's axes (size 1 along the summed ones); None where the tokens come
    of parameters alone, which nobody asks about.
    """
    if old.strength < STRONG and not operand.value.from_input:
        return None
    gone = set(summed)
    kept = [axis for axis in sorted(old.axes) if axis not in gone]
    shape = [1 if axis in gone else size for axis, size in enumerate(operand.shape)]
    rows = new_tokens(call, old, kept, shape)
    return record(call, operand, rows, old)


def pooled_along(call: Call, operand: Operand, axes: Sequence[int]) -> list[Slot]:
    """The one slot that is left where the first one of an operand is pooled; none as for :func:`pooled`."""
    made = pooled(call, operand, operand.value.active[0], axes)
    return [] if made is None else [made]


def join(call: Call, operand: Operand, kept: Slot, other: Slot, where: Tensor, shape: tuple[int, ...]) -> int:
    """Write down that tokens that stay take in others, ``where`` both lie; returns the number of the step.

    ``shape``: what labels and operand are broadcast to.
    """
    assert operand.node is not None
    rows, cols = (replace(s, labels=compact(torch.where(where, s.labels, 0))) for s in (kept, other))
    return call.ledger.add_site(
        node=call.node, map=Elementwise(operand.node), shape=shape, rows=rows, cols=cols
    ).index


def record(call: Call, operand: Operand, rows: Slot, cols: Slot, adds: bool = False) -> Slot:
    """Write down that every element of the operand, whose token ``cols`` tells, goes into that of ``rows``.

    With ``adds`` the rows are tokens that exist, and keep what they have.
    """
    assert operand.node is not None
    check_samples(call, rows, cols)
    return record_map(call, Elementwise(operand.node), operand.shape, rows, cols, adds)


def record_map(
    call: Call, map: Map, shape: tuple[int, ...], rows: Slot, cols: Slot, adds: bool = False
) -> Slot:
    """Write a mixing site down; the rows hold its increments from here on."""
    site = call.ledger.add_site(node=call.node, map=map, shape=shape, rows=rows, cols=cols, new_rows=not adds)
    return replace(rows, reads=cols.reads | {site.index} | (rows.reads if adds else frozenset()))


def check_samples(call: Call, rows: Slot, cols: Slot, weights: Callable[[], Tensor] | None = None) -> None:
    """Information never crosses samples: if it seems to, the axis taken for the batch is not one.

    Where several samples are packed into one sequence, their tokens meet in a map that has weights, laid out
    as rows and columns are; what counts is whether those between samples are zero.
    """
    try:
        one, other = broadcast(compact(samples_of(rows.labels)), compact(samples_of(cols.labels)))
    except RuntimeError:
        return
    between = (one != other) & (one >= 0) & (other >= 0)
    if not bool(between.any()):
        return
    call.ledger.data_dependent = True  # a mask that keeps samples apart does so for these inputs
    map = weights() if weights is not None else None
    call.ledger.crossing |= map is None or map.is_meta or bool((between & (map.cpu() != 0)).any())


def check_lines(
    call: Call, rows: Slot, cols: Slot, columns: Iterable[int], weights: Callable[[], Tensor]
) -> None:
    """A row that is of no known sample may weigh keys of one sample, and not of several."""
    columns, samples = tuple(columns), samples_of(cols.labels)
    unknown = (samples_of(rows.labels) < 0).any(columns, keepdim=True) if columns else samples < 0
    if not columns or not bool(unknown.any()) or not _several(samples, columns, unknown):
        return
    call.ledger.data_dependent = True
    map = weights()
    call.ledger.crossing |= map.is_meta or _several(
        torch.where(map.cpu() != 0, samples, -1), columns, unknown
    )


def _several(samples: Tensor, columns: tuple[int, ...], lines: Tensor) -> bool:
    """Whether several samples are known in one of these lines."""
    top = samples.amax(columns, keepdim=True)
    low = torch.where(samples < 0, top, samples).amin(columns, keepdim=True)
    return bool(((low != top) & lines).any())
