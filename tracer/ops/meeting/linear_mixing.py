"""Labelled data times weights that no query asked for: features that are mixed, tokens that are."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fxplain.labels.axes import Axes
from fxplain.labels.call import Call
from fxplain.labels.flows import Matrix
from fxplain.labels.labels import STRONG, Slot, broadcast, codes_of, compact, same_tokens
from fxplain.ops.meeting.features import crossed
from fxplain.ops.meeting.mixing import check_samples, new_tokens, pooled, record, record_map
from fxplain.ops.meeting.sides import Side, sizes_of
from fxplain.ops.reading import moved
from fxplain.recognise.around import weighs_data


def mixed_by_parameter(call: Call, data: Side, weight: Side) -> list[Slot]:
    """Data times a parameter: labels that vary along the contracted features only are mixed."""
    if data.kept or not data.summed_out:
        return _with_columns(call, data) or data.survivors
    slot = data.summed_out[0]
    whole = _of_one_token(slot, data.axes_of(data.summed))
    if whole is not None:
        return [data.laid(whole)]
    summed = data.over(slot)
    sides = crossed(slot, data.letters.index(summed)) if len(summed) == 1 else []
    if sides:
        return [data.laid(side) for side in sides]
    free = [letter for letter in weight.letters if letter not in data.letters and letter in data.output]
    if (
        len(summed) == 1
        and len(free) == 1
        and _is_token_axis(data, slot, summed)
        and data.operand.value.from_input
    ):
        return [_token_mixing(call, data, weight, slot, free[0])]
    new = pooled(call, data.operand, slot, data.axes_of(summed))
    if new is None:
        return []
    for other in data.summed_out[1:]:
        new = _taken_in(call, data, new, slot, other)
    return [data.laid(new)]


def _taken_in(call: Call, data: Side, new: Slot, first: Slot, other: Slot) -> Slot:
    """The new token, where some features are of two tokens (a sum of both): it is made of the others too."""
    one, two = broadcast(first.labels, other.labels)
    apart = two != one
    if not bool(apart.any()) or new.axes != other.axes - set(data.axes_of(data.summed)):
        return new
    cols = replace(other, labels=compact(torch.where(apart, two, 0)))
    grown = record(call, data.operand, new, cols)
    return replace(grown, reads=grown.reads | new.reads)


def _with_columns(call: Call, data: Side) -> list[Slot]:
    """The rows of softmaxed weights, which take in the columns that a table of numbers was weighed by: the
    place that a query finds. None where the map weighs data as well: its gradient tells of both then."""
    rows, columns = data.kept, data.summed_out
    alone = len(rows) == len(columns) == 1 and bool(rows[0].token_axes) and data.operand.value.softmaxes
    if not alone or columns[0].strength < STRONG or weighs_data(call, data.operand.node):
        return []
    found = record(call, data.operand, rows[0], columns[0], adds=True)
    return [data.laid(found)]


def _of_one_token(slot: Slot, features: list[int]) -> Slot | None:
    """The slot with one label for all features, where some of them are of no token (heads that leave out
    queries) and the others of one."""
    top = slot.labels.amax(features, keepdim=True)
    same = (slot.labels == top) | (codes_of(slot.labels) < 0)
    return replace(slot, labels=compact(top)) if bool(same.all()) else None


def _is_token_axis(data: Side, slot: Slot, summed: str) -> bool:
    """True if the summed axis holds one token a place and features lie on another axis (token-mixing MLP)."""
    axis = data.letters.index(summed)
    line = codes_of(slot.labels)
    for other in range(line.ndim):
        if other != axis:
            line = line.narrow(other, 0, 1)
    distinct = len(torch.unique(line)) == data.operand.shape[axis]
    features = [a for a, size in enumerate(data.operand.shape) if size > 1 and not slot.varies(a)]
    return distinct and bool(features)


def _token_mixing(call: Call, data: Side, weight: Side, old: Slot, row: str) -> Slot:
    """A parameter's matrix over the token axis: its entries are the map, as if it were an attention's."""
    output = data.output
    kept = "".join(
        letter for axis, letter in enumerate(data.letters) if old.varies(axis) and letter not in data.summed
    )
    shape = tuple(call.result.shape)
    axes = sorted(output.index(letter) for letter in kept + row)
    col = data.over(old)
    across = Slot(moved(old.labels, data.letters, output + col), old.strength, old.reads)
    rows = new_tokens(call, across, axes, (*shape, 1))
    cols_letters = "".join(letter for letter in output if letter in kept + row) + col
    rows_on_map = replace(rows, labels=moved(rows.labels, output + col, cols_letters))
    cols = Slot(moved(old.labels, data.letters, cols_letters), old.strength, old.reads)
    sizes = sizes_of(weight, data)
    check_samples(call, rows_on_map, cols, lambda: _largest(weight, cols_letters))
    assert weight.operand.node is not None
    assert data.operand.node is not None
    layout = Axes(weight.letters, data.letters, output, cols_letters)
    matrix = Matrix(weight.operand.node, data.operand.node, layout)
    new = record_map(call, matrix, tuple(sizes[c] for c in cols_letters), rows_on_map, cols)
    return Slot(compact(rows.labels.squeeze(-1)), rows.strength, new.reads)


def _largest(weight: Side, letters: str) -> Tensor:
    """The largest magnitude of a weight between two tokens, laid out by letters."""
    others = [axis for axis, letter in enumerate(weight.letters) if letter not in letters]
    sizes = weight.operand.tensor.abs()
    return moved(sizes.amax(others, keepdim=True) if others else sizes, weight.letters, letters)


def mixed_by_data(call: Call, weights: Side, values: Side) -> list[Slot]:
    """Weights without token labels (masks, sampled positions) sum over labelled values: pooling by
    weights."""
    if weights.kept:
        return weights.survivors
    old = values.summed_out[0]
    summed = values.over(old)
    free = [
        c
        for c, s in zip(weights.letters, weights.operand.shape, strict=True)
        if c not in values.letters and s > 1
    ]
    if len(free) == 1 and len(summed) == 1:
        return [_token_mixing(call, values, weights, old, free[0])]
    new = pooled(call, values.operand, old, values.axes_of(summed))
    return [values.laid(new)] if new is not None else []


def summed_place_by_place(call: Call, left: Side, right: Side) -> list[Slot] | None:
    """Two tensors of the same tokens, multiplied feature by feature and summed up: what the tokens pool is
    their product. None where each feature of the one meets every feature of the other, or other tokens."""
    sides = left, right
    if any(len(side.summed_out) != 1 or side.kept or side.operand.value.softmaxes for side in sides):
        return None
    wide = [{c for c, size in sizes_of(side).items() if size > 1} for side in sides]
    tokens = {c for side in sides for axis, c in enumerate(side.letters) if side.summed_out[0].varies(axis)}
    if wide[0] != wide[1] or wide[0] <= tokens or not same_tokens(left.summed_out[0], right.summed_out[0]):
        return None
    old = replace(right.summed_out[0], reads=right.summed_out[0].reads | left.summed_out[0].reads)
    new = pooled(call, right.operand, old, right.axes_of(right.summed))
    return [right.laid(new)] if new is not None else []
