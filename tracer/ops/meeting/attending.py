"""An attention is written down: the site, whose rows and columns are labels on its map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from fxplain.labels.axes import Axes
from fxplain.labels.call import Call
from fxplain.labels.flows import Map, WrittenOut
from fxplain.labels.labels import Slot, codes_of, encode, fill_samples, same_tokens, samples_of
from fxplain.labels.value import Operand, Single
from fxplain.ops.meeting.features import values_of_others
from fxplain.ops.meeting.mixing import check_lines, check_samples, new_tokens
from fxplain.ops.meeting.sides import Met, Side, free
from fxplain.ops.reading import moved
from fxplain.recognise.divided_late import begun
from fxplain.recognise.normaliser import is_positive, normaliser_of, row_sums
from fxplain.recognise.one_softmax import weighing_once
from fxplain.recognise.repeated import note_padding, note_repeated, note_shared_rows
from fxplain.recognise.shared_map import over_rows


@dataclass(frozen=True)
class Numbers:
    """What is known of the numbers of a map: all of them, or what a kernel tells."""

    map: Callable[[Axes], Map]
    """How the map is had."""
    sums: Tensor
    """What each row adds up to; laid out as the map, its columns at size 1."""
    positive: bool
    """Whether no weight is negative."""
    weights: Callable[[Tensor], Tensor]
    """The map; or one that has, at each key of a group above 0, what a row weighs all keys of the group."""


def held(call: Call, weights: Side, values: Operand) -> Numbers:
    """The numbers of a map that is a tensor of the graph."""
    map = weights.operand
    assert map.node is not None
    assert values.node is not None
    sums = row_sums(map.tensor, weights.axes_of(weights.summed))
    how = partial(WrittenOut, map.node, values.node, normaliser=normaliser_of(call, map, sums))
    return Numbers(how, sums, is_positive(map), lambda groups: map.tensor)


def attend(call: Call, weights: Side, values: Side, numbers: Numbers | None = None) -> Met:
    """Write an attention down: its rows are the weights' labelling that survives, its columns the other.

    ``numbers``: those of a map that no tensor holds.
    """
    numbers = numbers or held(call, weights, values.operand)
    cols = _weighed(weights, values)
    query = None if weights.kept else _single_query(call, weights, cols) or _coarser_queries(weights)
    cols = replace(cols, reads=_read_before(call, cols, weights, values, query))
    rows = weights.kept[0] if weights.kept else query or _pooled_rows(call, weights, values, cols)
    output, shape = weights.output, weights.operand.shape
    axes = Axes(weights.letters, values.letters, output, weights.letters)
    shared = over_rows(weights, values, rows)
    if shared is not None:
        shape, rows, cols = shared.shape, shared.rows, replace(shared.cols, reads=cols.reads)
        axes = replace(axes, map=shared.letters)
    labels = cols.labels
    check_samples(call, rows, cols, lambda: numbers.weights(samples_of(labels) + 1))
    note_content(call, values)
    note_shared_rows(call, rows, shape, free(weights, values))
    if shared is None:
        note_padding(call, rows, cols, lambda: numbers.weights((codes_of(labels) < 0).long()))
        check_lines(call, rows, cols, axes.columns, lambda: numbers.weights(samples_of(labels) + 1))
    site = call.ledger.add_site(
        node=call.node,
        map=numbers.map(axes),
        shape=shape,
        rows=rows,
        cols=cols,
        softmaxes=weights.operand.value.softmaxes,
        new_rows=not weights.kept and query is None,
    )
    site, alone = weighing_once(call, site)
    followed = alone and isinstance(call.result, Tensor) and call.result.ndim == len(output)
    sums = moved(numbers.sums, weights.letters, output)
    others = values.kept if values.summed_out else values.slots[1:]
    return Met(
        [_rows_after(rows, cols, axes, site.index), *map(values.laid, others)],
        partial=begun(call, site, sums, numbers.positive) if followed else None,
    )


def _weighed(weights: Side, values: Side) -> Slot:
    """The tokens that are weighed, on the map: the firmer of the weights' own and the values'."""
    cols, ours = _keys(weights), _contents(values)
    # a query weighs places: the values tell whose they are
    places = bool(values.summed_out) and not weights.summed_out
    if (places or cols.strength < ours.strength) and set(values.letters) & set(weights.letters):
        labels = moved(ours.labels, values.letters, weights.letters)
        return Slot(labels, ours.strength, ours.reads | cols.reads)
    return cols


def _keys(weights: Side) -> Slot:
    return weights.summed_out[0] if weights.summed_out else weights.slots[-1]


def _contents(values: Side) -> Slot:
    return values.summed_out[0] if values.summed_out else values.slots[0]


def _read_before(call: Call, cols: Slot, weights: Side, values: Side, query: Slot | None) -> frozenset[int]:
    """What the tokens that are weighed have read until here."""
    ours = _contents(values)
    reads, apart = (
        ours.reads | _reads_of_keys(call, cols, ours, query),
        {*weights.letters} - {*values.letters},
    )
    if same_tokens(cols, ours) or (values.summed_out and not weights.summed_out):
        return reads
    if not any(cols.varies(weights.letters.index(letter)) for letter in apart):
        keys = replace(cols, labels=moved(cols.labels, weights.letters, values.letters))
        reads |= values_of_others(call, values.operand, keys, ours)
    return reads


def _reads_of_keys(call: Call, cols: Slot, ours: Slot, query: Slot | None) -> frozenset[int]:
    """What the tokens that only the keys have (learned ones beside those of the values) have read.

    Of a token that the values have too, only what they hold goes into the sum. Keys that a query was added to
    hold no more for it: the sum asks.
    """
    keys, values = (torch.unique(codes_of(slot.labels)) for slot in (cols, ours))
    alone = keys[(keys >= 0) & ~torch.isin(keys, values)]
    sites = [call.ledger.sites[read] for read in cols.reads - ours.reads]
    asked = [site for site in sites if query is not None and same_tokens(site.cols, query)]
    reading = [site for site in sites if bool(torch.isin(alone, codes_of(site.rows.labels)).any())]
    return frozenset(site.index for site in reading if site not in asked)


def _rows_after(rows: Slot, cols: Slot, axes: Axes, site: int) -> Slot:
    """The rows on the output, with what they have read here."""
    known = cols.labels.amax(axes.columns, keepdim=True)  # keys that have met no sample yet know of none
    labels = moved(fill_samples(rows.labels, [known]), axes.map, axes.output)
    strength = max(rows.strength, cols.strength)  # a learned token that has read an input is as firm as it
    return Slot(labels, strength, rows.reads | {site})


def _single_query(call: Call, weights: Side, cols: Slot) -> Slot | None:
    """The row of a map whose own labels are of columns alone: the query that was added to the keys."""
    summed = weights.axes_of(weights.summed)
    single = weights.operand.value.gave_way.single
    if not single or cols.token_axes - set(summed):
        return None

    def nearness(query: Single) -> tuple[int, int]:
        # weights that were scaled by those of the step before have its query too: the newer state asks
        made = call.ledger.tokens.space_of(query.code).origin == "mixing"
        return query.products, -query.code if made else 1

    query = min(single, key=nearness)
    samples = samples_of(cols.labels).amax(summed, keepdim=True)
    return Slot(encode(samples, torch.full_like(samples, query.code)), query.strength, query.reads)


def _coarser_queries(weights: Side) -> Slot | None:
    """The rows of a map whose own labels are of columns alone: the queries that were added to their keys."""
    coarser = weights.operand.value.gave_way.coarser
    return None if coarser is None or coarser.main or weights.over(coarser.slot) else coarser.slot


def _pooled_rows(call: Call, weights: Side, values: Side, cols: Slot) -> Slot:
    """The rows of a map that no query asks for: new tokens, made of those of its columns."""
    summed = weights.axes_of(weights.summed)
    kept = sorted({axis for axis in cols.axes if axis not in summed} | {*free(weights, values)})
    sizes = [1 if axis in summed else size for axis, size in enumerate(weights.operand.shape)]
    return replace(new_tokens(call, cols, kept, sizes, ["scores"]), reads=frozenset())


def note_content(call: Call, values: Side) -> None:
    """Look whether places of the values that have one label hold one thing."""
    for axis in values.axes_of(values.summed):
        for slot in values.slots[:1]:
            note_repeated(call, values.operand, slot, axis)
