"""What two operands are to each other where they meet in a sum of products: one decision table.

Here attentions are found. Two labelled operands whose labels *both* vary along what is summed are weights and
values; two whose labels both survive are queries and keys, and their product is scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from fxplain.labels.call import Call
from fxplain.labels.labels import Slot
from fxplain.labels.merge import merge
from fxplain.ops.meeting.attending import attend, note_content
from fxplain.ops.meeting.linear_mixing import mixed_by_data, mixed_by_parameter, summed_place_by_place
from fxplain.ops.meeting.sides import (
    Met,
    Side,
    free,
    has_both_sides,
    has_columns,
    is_map,
    leaves_features,
    nested,
    reads_state,
    rows_tell_weights,
    same_single,
    weighs_one,
)
from fxplain.ops.sampling import sum_up
from fxplain.recognise.read_later import read_by_data
from fxplain.recognise.shared_map import SHARED, shared_scores


@dataclass(frozen=True)
class Meeting:
    """Two operands of one sum of products."""

    call: Call
    left: Side
    right: Side

    @property
    def output(self) -> str:
        """The letters of the product."""
        return self.left.output

    @property
    def both_ways(self) -> tuple[tuple[Side, Side], tuple[Side, Side]]:
        """Each of the two with the other."""
        return (self.left, self.right), (self.right, self.left)

    @cached_property
    def both_summed(self) -> bool:
        """Whether tokens of both lie along what is summed."""
        return bool(self.left.summed_out and self.right.summed_out)

    @cached_property
    def weighing(self) -> tuple[Side, Side] | None:
        """The weights and the values, where tokens of both are summed: see :func:`weights_and_values`."""
        return weights_and_values(self.call, self.left, self.right) if self.both_summed else None

    @cached_property
    def pooling(self) -> tuple[Side, Side] | None:
        """What weighs data whose tokens are all summed out, and these data; None where tokens of both are."""
        for weights, values in self.both_ways:
            if values.summed_out and not values.kept and values.operand.value.from_input:
                return weights, values
        return None

    @cached_property
    def survivors(self) -> tuple[list[Slot], list[Slot]]:
        """The labellings that survive, of the left and of the right operand, laid out as the product.

        Where features are left, the right one's lack a single token that the left one names too.
        """
        lefts, rights = self.left.survivors, self.right.survivors
        if leaves_features(self.left, self.right, self.output):
            rights = [slot for slot in rights if not any(same_single(slot, other) for other in lefts)]
        return lefts, rights


Decide = Callable[[Meeting], Met | None]


@dataclass(frozen=True)
class Row:
    """One case of the table."""

    reason: str
    decide: Decide
    """What comes of a meeting that is this case; None where it is another."""


def meet(call: Call, left: Side, right: Side) -> Met:
    """What comes of the first case that a meeting is; ``inspect --why`` prints the case."""
    meeting = Meeting(call, left, right)
    for row in TABLE:
        met = row.decide(meeting)
        if met is not None:
            call.matched(row.reason)
            return met
    raise AssertionError("the last case takes what is left")


def weights_and_values(call: Call, left: Side, right: Side) -> tuple[Side, Side] | None:
    """Which operand holds the weights: the one with a row slot beside, or softmaxed scores that no query asks
    for. None where neither does."""
    sides = [(left, right), (right, left)]
    rowed = [(w, v) for w, v in sides if w.kept and len(w.slots) > 1]
    if len(rowed) == 2:
        rowed = [(w, v) for w, v in rowed if w.operand.value.softmaxes] or rowed[:1]
    if rowed:
        return rowed[0]
    for weights, values in sides:
        apart = [left.output.index(weights.letters[axis]) for axis in free(weights, values)]
        if weights.operand.value.softmaxes and not (apart and read_by_data(call, apart)):
            return weights, values
    for weights, values in sides:
        asks = weights.operand.value.gave_way.single and not values.operand.value.gave_way.single
        if asks and not free(weights, values):
            return weights, values  # what a query that was added to the keys makes of them, without a softmax
    return None


def _samples_at_points(m: Meeting) -> Met | None:
    for side, other in m.both_ways:
        if side.operand.value.hidden.samples and side.summed_out and side.kept and not other.summed_out:
            asking = sum_up(m.call, side.operand, side.axes_of(side.summed))
            return None if asking is None else Met([side.laid(slot) for slot in asking])
    return None


def _parameter(m: Meeting) -> Met | None:
    for weight, data in m.both_ways:
        if weight.operand.is_parameter:
            return Met(mixed_by_parameter(m.call, data, weight))
    return None


def _two_maps(m: Meeting) -> Met | None:
    maps = m.both_summed and all(is_map(side, other) for side, other in m.both_ways)
    return Met([*m.left.survivors, *m.right.survivors]) if maps else None


def _place_by_place(m: Meeting) -> Met | None:
    pooled = summed_place_by_place(m.call, m.left, m.right) if m.both_summed else None
    return None if pooled is None else Met(pooled)


def _map_of_map(m: Meeting) -> Met | None:
    if m.weighing is None:
        return None
    weights, values = m.weighing
    map_of_map = not weights.operand.value.softmaxes and has_columns(values, weights)
    return Met([*weights.survivors, *values.survivors]) if map_of_map else None


def _weighed(m: Meeting) -> Met | None:
    return None if m.weighing is None else attend(m.call, *m.weighing)


def _shared_scores(m: Meeting) -> Met | None:
    if not m.both_summed:
        return None
    scores = shared_scores(m.left, m.right)
    if scores is None:
        m.call.unmatched(SHARED, "the tokens that it sums over have no columns of their own on both sides")
        return None
    m.call.matched(SHARED)
    return Met(scores, shared_map=True)


def _summary(m: Meeting) -> Met | None:
    if not m.both_summed:
        return None
    assert m.right.operand.node is not None
    m.call.ledger.remarks.summaries[m.call.node] = m.right.operand.node, m.right.summed_out[0]
    return Met([*m.left.survivors, *m.right.survivors])


def _rows_weigh(m: Meeting) -> Met | None:
    if m.pooling is None:
        return None
    weights, values = m.pooling
    weighs = weights.kept and (weights.operand.value.softmaxes or rows_tell_weights(weights))
    return attend(m.call, weights, values) if weighs else None


def _pooled_by_data(m: Meeting) -> Met | None:
    return None if m.pooling is None else Met(mixed_by_data(m.call, *m.pooling))


def _one_key(m: Meeting) -> Met | None:
    if m.left.summed_out or m.right.summed_out:
        return None
    for weights, value in m.both_ways:
        weighing = weighs_one(weights, value)
        if weighing is not None:
            return attend(m.call, weighing, value)
        if weights.slots and weights.operand.value.softmaxes and free(weights, value):
            note_content(m.call, value)
    return None


def _nothing_summed(m: Meeting) -> Met | None:
    return None if m.left.summed or m.right.summed else Met(merge([m.left.survivors, m.right.survivors]))


def _own_state(m: Meeting) -> Met | None:
    lefts, rights = m.survivors
    finer = any(nested(one, other) for one in lefts for other in rights)
    state = finer and leaves_features(m.left, m.right, m.output) and reads_state(m.left, m.right)
    return Met(merge([lefts, rights])) if state else None


def _same_rows(m: Meeting) -> Met | None:
    lefts, rights = m.survivors
    alike = len(lefts) == len(rights) == 1 and lefts[0].axes == rights[0].axes and lefts[0].token_axes
    return Met(merge([lefts, rights])) if alike and not has_both_sides(m.left, m.right) else None


def _scores(m: Meeting) -> Met | None:
    lefts, rights = m.survivors
    return Met([*lefts, *rights])


TABLE = (
    Row("samples at points are summed up: they go to the tokens that asked", _samples_at_points),
    Row("a parameter mixes features, or tokens", _parameter),
    # tokens of both are summed out
    Row("a product of two maps is a map", _two_maps),
    Row("the same tokens are multiplied feature by feature, and pooled", _place_by_place),
    Row("weights of a map that is no softmax's: their product is a map", _map_of_map),
    Row("weights with rows of their own, or a softmax's, sum values up: an attention", _weighed),
    Row("scores of columns, summed over the rows of a grid", _shared_scores),
    Row("tokens are summed into features, which a query may read later", _summary),
    # tokens of one are summed out
    Row("rows weigh places by themselves: an attention", _rows_weigh),
    Row("weights that no token asked for pool tokens", _pooled_by_data),
    # tokens of neither are summed out
    Row("weights of a single key: an attention", _one_key),
    Row("nothing is summed: a product place by place", _nothing_summed),
    Row("a token reads a state that it is part of", _own_state),
    Row("features of the same tokens are compared", _same_rows),
    Row("scores: a row for the tokens of the one operand, a column for those of the other", _scores),
)
"""The cases, in the order in which they are asked; the last takes what is left."""
