"""An attention is written down: the site, whose rows and columns are labels on its map."""

from __future__ import annotations

from dataclasses import replace

import torch

from fxplain.labels.call import Call
from fxplain.labels.labels import Asked, Slot, encode, fill_samples, same_tokens, samples_of
from fxplain.ops.meeting.features import values_of_others
from fxplain.ops.meeting.mixing import check_lines, check_samples, new_tokens
from fxplain.ops.meeting.reading import Side, moved, sizes_of
from fxplain.recognise.divided_late import begin
from fxplain.recognise.normaliser import is_positive, normaliser_of, row_sums
from fxplain.recognise.one_softmax import weighing_once
from fxplain.recognise.repeated import note_blanks, note_rows, note_twins
from fxplain.recognise.shared_map import spread_over_rows


def attend(call: Call, weights: Side, values: Side, output: str) -> list[Slot]:
    """The site: its map is the weights' value, its rows the weights' living slot, its columns the summed
    one."""
    shape = tuple(weights.operand.shape)
    cols = weights.killed[0] if weights.killed else weights.slots[-1]
    ours = values.killed[0] if values.killed else values.slots[0]
    told = bool(values.killed) and not weights.killed  # a query weighs places: the values tell whose they are
    if (told or cols.strength < ours.strength) and set(values.letters) & set(weights.letters):
        cols = Slot(
            moved(ours.labels, values.letters, weights.letters), ours.strength, ours.reads | cols.reads
        )
    reads = ours.reads if same_tokens(cols, ours) else ours.reads | cols.reads
    if not told and not any(
        cols.varies(weights.letters.index(c)) for c in {*weights.letters} - {*values.letters}
    ):
        keys = replace(cols, labels=moved(cols.labels, weights.letters, values.letters))
        reads |= values_of_others(call, values.operand, keys, ours)
    cols = replace(cols, reads=reads)
    query = None if weights.alive else _query_told(call, weights, cols) or _query_beside(weights)
    rows = weights.alive[0] if weights.alive else query or _pooled_rows(call, weights, values, cols)
    tied = spread_over_rows(weights, values, rows, output)
    letters = weights.letters if tied is None else tied.letters
    if tied is not None:
        shape, rows, cols = tied.shape, tied.rows, replace(tied.cols, reads=cols.reads)
    check_samples(call, rows, cols, lambda: weights.operand.tensor)
    nodes = (weights.operand.node, values.operand.node)
    note_content(call, values)
    note_rows(call, rows, shape, free(weights, values))
    summed = weights.axes_of(weights.summed)
    if tied is None:
        note_blanks(call, rows, cols, lambda: weights.operand.tensor)
        check_lines(call, rows, cols, summed, lambda: weights.operand.tensor)
    sums = row_sums(weights.operand.tensor, summed)
    site = call.ledger.add_site(
        node=call.node,
        role="attention",
        form="weights",
        operands=nodes,
        shape=shape,
        rows=rows,
        cols=cols,
        pools=not weights.alive and query is None,
        softmaxes=weights.operand.value.softmaxes,
        normaliser=normaliser_of(call, weights.operand, sums),
        axes=f"{letters},{values.letters}->{output}",
        tied=letters != weights.letters,
    )
    site, alone = weighing_once(call, site)
    if alone and call.result.ndim == len(output):
        begin(call, site, moved(sums, weights.letters, output), is_positive(weights.operand))
    columns = [axis for axis, letter in enumerate(letters) if letter not in output]
    known = cols.labels.amax(columns, keepdim=True)  # keys that have met no sample yet know of none
    strength = max(rows.strength, cols.strength)  # a learned token that has read an input is as firm as it
    lived = Slot(fill_samples(rows.labels, [known]), strength, rows.reads | {site.index})
    others = values.alive if values.killed else values.slots[1:]
    return [
        replace(lived, labels=moved(lived.labels, letters, output)),
        *[values.moved(slot, output) for slot in others],
    ]


def _query_told(call: Call, weights: Side, cols: Slot) -> Slot | None:
    """The row of a map whose own labels are of columns alone: the query that was added to the keys."""
    summed = weights.axes_of(weights.summed)
    if not weights.operand.value.asked or cols.token_axes - set(summed):
        return None

    def nearness(query: Asked) -> tuple[int, int]:
        # weights that were scaled by those of the step before have its query too: the newer state asks
        made = call.ledger.space_of(query.code).origin == "mixing"
        return query.products, -query.code if made else 1

    query = min(weights.operand.value.asked, key=nearness)
    samples = samples_of(cols.labels).amax(summed, keepdim=True)
    return Slot(encode(samples, torch.full_like(samples, query.code)), query.strength, query.reads)


def _query_beside(weights: Side) -> Slot | None:
    """The rows of a map whose own labels are of columns alone: the queries that were added to their keys."""
    beside = weights.operand.value.beside
    return None if beside is None or beside.main or weights.over(beside.slot) else beside.slot


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
            note_twins(call, values.operand, slot, axis)


def free(weights: Side, values: Side) -> list[int]:
    """Axes of the weights that hold several maps over the same values: learned scores, no heads."""
    sizes = sizes_of(values)
    return [
        axis
        for axis, letter in enumerate(weights.letters)
        if letter not in weights.summed and weights.operand.shape[axis] > 1 and sizes.get(letter, 1) == 1
    ]
