"""Attentions put together after the product with the values: divided late, block by block, one less another.

The output of an attention is followed as long as its rows are only multiplied, divided and added up. Where
the weights of all that was added sum to 1, it is one softmax, however many blocks its keys were taken in
(running sums, as in flash attention; rings; global and local keys): (E v) / sum(E) is (E / sum(E)) v. Where
maps of the same tokens weigh the same values, their sum or difference is the map.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor, fx

from fxplain.labels.axes import Axes
from fxplain.labels.call import Call, aten
from fxplain.labels.flows import Kernel, Map, Site, Sum, WrittenOut
from fxplain.labels.labels import Slot, broadcast, compact, reads_of
from fxplain.labels.notebook import Ledger
from fxplain.labels.value import PartialSum, PartialSums, Value
from fxplain.ops.movement import IDENTITY, UNARY
from fxplain.ops.reading import moved
from fxplain.recognise.normaliser import all_ones

MOVES = frozenset(aten(f"{UNARY} {IDENTITY}"))
DIVISIONS = frozenset(aten("div divide true_divide"))
PRODUCTS = frozenset(aten("mul"))
SUMS = frozenset(aten("add sub"))
DIVIDED, TOGETHER = "a softmax divided late", "parts of one attention"


def begun(call: Call, site: Site, sums: Tensor, positive: bool) -> PartialSum:
    """The output of an attention, to be followed from here; ``sums`` of its rows, laid out as the output."""
    sums = sums.expand(call.result.shape)
    factors = {site.index: torch.ones((), dtype=sums.dtype).expand(sums.shape)}
    return PartialSum(factors, sums, positive)


def follow(call: Call, begun: PartialSum | PartialSums | None) -> PartialSum | PartialSums | None:
    """How far attentions are put together in the result; those that are whole there are marked.

    ``begun``: what the operation itself has begun. None where nothing is to be followed any further.
    """
    if not isinstance(call.result, Tensor):
        return begun
    op = call.op.removesuffix("_")
    if op == "aten::stack":
        return _stacked(call)
    given = [_partial(call, node) for node in call.node.args[:2]]
    place = next((place for place, each in enumerate(given) if isinstance(each, PartialSums)), None)
    if place is not None:
        return _of_several(call, given, place)
    known = [each if isinstance(each, PartialSum) else None for each in given]
    if not any(known):
        return begun
    if op in MOVES and known[0] is not None and _unnormalised(call.ledger, known[0]):
        sums = call.node.target(known[0].sums, *call.args[1:], **call.kwargs)  # type: ignore[operator]
        return replace(known[0], sums=sums, moved=True)
    if op in DIVISIONS | PRODUCTS:
        return _scaled(call, known, op in DIVISIONS) or begun
    return (_added(call, known, -1 if op.endswith("sub") else 1) if op in SUMS else None) or begun


def _partial(call: Call, node: object) -> PartialSum | PartialSums | None:
    value = call.values.get(node) if isinstance(node, fx.Node) else None
    return value.unsummed.partial if isinstance(value, Value) else None


def _unnormalised(ledger: Ledger, known: PartialSum) -> bool:
    return len(known.factors) == 1 and ledger.sites[next(iter(known.factors))].map.normaliser != "softmax"


def _scaled(call: Call, known: list[PartialSum | None], divides: bool) -> PartialSum | None:
    place = 0 if known[0] is not None else 1
    old, other = known[place], call.args[1 - place] if len(call.args) > 1 else None
    twice = known[0] is not None and known[-1] is not None
    if old is None or not isinstance(other, Tensor | float | int) or (divides and place) or call.kwargs:
        return None
    if old.sums.shape != call.result.shape or (twice and not divides):
        return None
    factor = torch.as_tensor(other, device=old.sums.device).to(old.sums.dtype)
    factor = factor.reciprocal() if divides else factor
    factors = {} if old.moved else {i: f * factor for i, f in old.factors.items()}
    new = PartialSum(factors or old.factors, old.sums * factor, old.positive, old.moved)
    if len(new.factors) > 1:
        _join_if_whole(call, new)
    elif all_ones(new.sums, call.result.dtype):
        _mark_divided(call, next(iter(new.factors)), old.positive, twice)
    elif _unnormalised(call.ledger, new):
        call.unmatched(DIVIDED, "what the weights of a row sum up to is not 1 after it either")
    return new


def _mark_divided(call: Call, index: int, positive: bool, ones: bool) -> None:
    site = call.ledger.sites[index]
    if not isinstance(site.map, WrittenOut) or site.map.normaliser == "softmax":
        return
    normaliser = "softmax" if positive else site.map.normaliser
    divided = replace(site.map, divided=True, ones=ones, normaliser=normaliser)
    call.ledger.sites[index] = replace(site, map=divided)
    call.matched(DIVIDED)
    call.ledger.data_dependent = True  # that the divisor is the sum was seen for these inputs


def _added(call: Call, known: list[PartialSum | None], sign: int) -> PartialSum | None:
    one, other = known[0], known[-1] if len(known) > 1 else None
    alpha = call.argument("alpha", 1)
    if one is None or other is None:
        old, place = (one, 1) if one is not None else (other, 0)
        beside = call.args[place] if len(call.args) > place else None
        nothing = not bool(beside.any()) if isinstance(beside, Tensor) else beside == 0
        same = old is not None and nothing and old.sums.shape == call.result.shape
        return old if same and (place or sign == alpha == 1) else None
    if one.moved or other.moved or not one.sums.shape == other.sums.shape == call.result.shape:
        return None
    return _join_if_whole(call, _sum(one, other, sign * alpha))


def _sum(one: PartialSum, other: PartialSum, times: float = 1) -> PartialSum:
    factors = dict(one.factors)
    for index, factor in other.factors.items():
        factors[index] = factors[index] + times * factor if index in factors else times * factor
    return PartialSum(factors, one.sums + times * other.sums, one.positive and other.positive)


def _stacked(call: Call) -> PartialSums | None:
    """Parts that are laid side by side, as where blocks of keys are gone through first."""
    parts = [_partial(call, node) for node in call.node.all_input_nodes]
    whole = tuple(part for part in parts if isinstance(part, PartialSum) and not part.moved)
    axis = int(call.argument("dim", 0)) % call.result.ndim
    return PartialSums(whole, axis) if whole and len(whole) == len(parts) else None


def _of_several(
    call: Call, given: list[PartialSum | PartialSums | None], place: int
) -> PartialSum | PartialSums | None:
    """What comes of parts that lie side by side: they are scaled together, and summed up."""
    several, op = given[place], call.op.removesuffix("_")
    assert isinstance(several, PartialSums)
    if op in DIVISIONS | PRODUCTS and not (place and op in DIVISIONS):
        return _scaled_together(call, several, call.args[1 - place], op in DIVISIONS)
    new = reduce(_sum, several.parts) if op == "aten::sum" and _axes(call) == [several.axis] else None
    return _join_if_whole(call, new) if new is not None and new.sums.shape == call.result.shape else None


def _axes(call: Call) -> list[int]:
    given = call.argument("dim")
    dims = [given] if isinstance(given, int) else list(given or [])
    return [] if call.argument("keepdim", False) else [dim % call.args[0].ndim for dim in dims]


def _scaled_together(call: Call, several: PartialSums, other: object, divides: bool) -> PartialSums | None:
    if not isinstance(other, Tensor | float | int):
        return None
    factor = torch.as_tensor(other).to(several.parts[0].sums.dtype)
    factors = (factor.reciprocal() if divides else factor).expand(call.result.shape).unbind(several.axis)
    if factors[0].shape != several.parts[0].sums.shape:
        return None
    parts = [
        PartialSum({i: f * own for i, f in part.factors.items()}, part.sums * own, part.positive)
        for part, own in zip(several.parts, factors, strict=True)
    ]
    return PartialSums(tuple(parts), several.axis)


def _join_if_whole(call: Call, new: PartialSum) -> PartialSum:
    """Write the parts of a sum down as one attention, if they are."""
    sites = [_alone(call.ledger, index) for index in sorted(new.factors)]
    added = all(bool((factor >= 0).all()) for factor in new.factors.values())
    whole = new.positive and added and all_ones(new.sums, call.result.dtype)
    over = _same_map(sites)
    laid: list[tuple[Slot, Slot, Tensor] | None] = []
    if not (whole or over):
        reason = "rows do not sum up to 1 yet, and the parts are no maps of the same values"
    elif not _can_join(call, sites):
        reason = "a part was divided before, or something has read one by now"
    elif None in (laid := [_on_map(call, site, new.factors[site.index]) for site in sites]):
        reason = "a part's rows do not lie as those of the sum, or are scaled by feature"
    else:
        call.matched(TOGETHER)
        _join(call, sites, [part for part in laid if part is not None], whole, over)
        return new
    call.unmatched(TOGETHER, reason)
    return new


def _alone(ledger: Ledger, index: int) -> Site:
    """An attention as it was before blocks that came earlier were divided, or joined, on their own."""
    site = ledger.sites[index]
    site = site.map.parts[-1] if site.map.parts else site
    if not isinstance(site.map, WrittenOut):
        return replace(site, absorbed=False)
    return site if site.map.ones else replace(site, map=replace(site.map, divided=False), absorbed=False)


def _same_map(sites: list[Site]) -> bool:
    """Whether maps of the same tokens weigh the same values."""
    first = sites[0]
    return all(
        site.map.operands[-1] is first.map.operands[-1]
        and site.shape == first.shape
        and torch.equal(*broadcast(site.rows.labels, first.rows.labels))
        and torch.equal(*broadcast(site.cols.labels, first.cols.labels))
        for site in sites[1:]
    )


def _can_join(call: Call, sites: list[Site]) -> bool:
    """Whether nothing has read some parts before the last came."""
    group = {site.index for site in sites}
    if not all(isinstance(site.map, Kernel) or _undivided(site.map) for site in sites):
        return False
    joined = [{part.index for part in site.map.parts} for site in call.ledger.sites]
    if any(parts & group and not parts <= group for parts in joined):
        return False
    later = call.ledger.sites[sites[0].index + 1 :]
    return not any((site.rows.reads | site.cols.reads) & group for site in later)


def _undivided(map: Map) -> bool:
    return isinstance(map, WrittenOut) and not map.divided


def _on_map(call: Call, site: Site, factor: Tensor) -> tuple[Slot, Slot, Tensor] | None:
    """Rows, columns and factors of one part with the axes [rows of the output..., column]; None if it has
    other axes."""
    axes, ndim = site.axes, call.result.ndim
    if len(axes.map) != ndim or len(axes.output) != ndim or len(axes.dim) != 1:
        return None
    features = axes.output.index(axes.dim)
    row = factor.narrow(features, 0, 1)
    if not bool((factor == row).all()):
        return None
    scale = row.squeeze(features).unsqueeze(-1)
    rows, cols = (
        replace(slot, labels=moved(slot.labels, axes.map, axes.rows_first)) for slot in (site.rows, site.cols)
    )
    return rows, cols, compact(scale.contiguous())


def _join(
    call: Call, sites: list[Site], laid: list[tuple[Slot, Slot, Tensor]], whole: bool, over: bool
) -> None:
    """Write the parts down as one attention in the place of the last."""
    group, last = frozenset(site.index for site in sites), sites[-1].index
    rows, cols = [part[0] for part in laid], [part[1] for part in laid]
    columns = [site.shape[site.axes.columns[0]] for site in sites]
    shape = (*_row_sizes(call, sites[0].axes), columns[0] if over else sum(columns))
    labels = cols[0].labels if over else _side_by_side(cols, columns)
    soft = frozenset().union(*(site.softmaxes for site in sites))
    call.ledger.sites[last] = Site(
        index=last,
        node=call.node,
        map=Sum(tuple(sites), tuple(part[2] for part in laid), "softmax" if whole or soft else "none"),
        shape=shape,
        rows=replace(rows[0], reads=reads_of(rows) - group),
        cols=replace(cols[0], labels=labels, reads=reads_of(cols) - group),
        softmaxes=soft,
    )
    absorbed: Mapping[int, Site] = {site.index: site for site in sites[:-1]}
    for index, site in absorbed.items():
        call.ledger.sites[index] = replace(site, absorbed=True)
    call.ledger.data_dependent = True  # the factors are those of these inputs


def _row_sizes(call: Call, axes: Axes) -> list[int]:
    sizes = zip(axes.output, call.result.shape, strict=True)
    return [size for letter, size in sizes if letter not in axes.dim]


def _side_by_side(cols: list[Slot], sizes: list[int]) -> Tensor:
    shape = [max(slot.labels.shape[axis] for slot in cols) for axis in range(cols[0].labels.ndim - 1)]
    return torch.cat(
        [slot.labels.expand(*shape, size) for slot, size in zip(cols, sizes, strict=True)], -1
    ).contiguous()
