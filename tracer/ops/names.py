"""Who names the tokens where raw data, tables of parameters and learned tokens meet place by place."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fxplain.labels.call import Call, aten
from fxplain.labels.labels import DORMANT, STRONG, WEAK, Slot, align, codes_of
from fxplain.labels.value import Operand
from fxplain.ops.tokens import tokens_at

ADDING = frozenset(aten("add sub"))


def without_tables(call: Call, slots: Sequence[list[Slot]]) -> list[list[Slot]]:
    """The labels of raw operands; where numbers of an input meet a table of parameters that only adds
    features behind them (a number times a vector of its own), those of the input alone."""
    raw = [slot for own in slots for slot in own if call.ledger.tokens.is_raw(slot) and slot.token_axes]
    if not raw:
        return list(slots)
    places = raw[0].token_axes

    def adds_features(slot: Slot) -> bool:
        return min(slot.token_axes - places, default=max(places) + 1) > max(places)

    return [
        [slot for slot in own if call.ledger.tokens.is_raw(slot) or not adds_features(slot)] for own in slots
    ]


def under_condition(call: Call, operands: Sequence[Operand]) -> Operand | None:
    """The one of two operands that is raw data with places and features, where the other is a condition, one
    token a sample: the data go on as they are, for their tokens are yet to be born."""
    if len(operands) != 2:
        return None
    for raw, other in (operands, operands[::-1]):
        dormant = raw.value.dormant
        if raw.value.labelled or not raw.tensor.is_floating_point() or not call.ledger.tokens.is_raw(dormant):
            continue
        assert dormant is not None
        ndim = max(raw.ndim, other.ndim)
        given = [align(slot, ndim) for slot in other.value.active]
        free = align(dormant, ndim).axes - frozenset().union(*(slot.axes for slot in given))
        if given and len(free) > 1 and not any(slot.token_axes for slot in given):
            return raw
    return None


def placed(call: Call, operands: Sequence[Operand], slots: Sequence[list[Slot]]) -> list[list[Slot]]:
    """Raw data that meets tokens of a table (positions, a vector for each column) place by place: the tokens
    are the data's."""
    found = list(slots)
    for place, (operand, other) in enumerate(zip(operands, operands[::-1], strict=True)):
        theirs = [slot for slot in slots[1 - place] if slot.strength > DORMANT]
        named = frozenset().union(*(slot.token_axes for slot in theirs))
        raw = [slot for slot in slots[place] if call.ledger.tokens.is_raw(slot)]
        if operand.value.labelled or len(raw) != 1 or not named or other.value.from_input:
            continue
        if named <= raw[0].token_axes and operand.tensor.is_floating_point():
            missing = call.result.ndim - operand.ndim
            features = [axis - missing for axis in raw[0].token_axes - named if max(named) < axis]
            if len(features) == len(raw[0].token_axes - named):
                born = tokens_at(call, operand, features)
                found[place] = [align(slot, call.result.ndim) for slot in born.value.slots]
    return found


def completing(call: Call, operands: Sequence[Operand]) -> Sequence[Operand]:
    """The operands, where learned tokens with padding between them meet a parameter that has a row for each
    place: all of its rows are tokens then (queries, of which one has no position)."""
    tables = [o for o in operands if o.node is not None and not o.value.labelled and not o.value.from_input]
    tables = [o for o in tables if o.value.dormant is not None and o.ndim > 1]
    partly = [slot for o in operands for slot in o.value.active if _is_partly_learned(slot)]
    if len(operands) != 2 or not tables or not partly:
        return operands
    places = {axis - partly[0].labels.ndim for axis in partly[0].token_axes}
    fitting = all(
        -axis < o.ndim and o.value.dormant is not None and o.value.dormant.labels.shape[axis] > 1
        for o in tables
        for axis in places
    )
    if not fitting or -1 in places:
        return operands
    return [tokens_at(call, o, [o.ndim - 1]) if any(o is t for t in tables) else o for o in operands]


def with_rows(call: Call, operands: Sequence[Operand]) -> Sequence[Operand]:
    """The operands, where one token a sample is added to every row of a parameter (a task, or a pooled
    picture, to learned queries): the rows are tokens then, and not copies of the one."""
    if len(operands) != 2 or call.op.removesuffix("_") not in ADDING:
        return operands
    for token, table in (operands, operands[::-1]):
        axes = _rows_beside(token, table)
        if axes:
            features = [axis for axis in range(table.ndim) if axis - table.ndim not in axes]
            rows = tokens_at(call, table, features)
            return [rows if operand is table else operand for operand in operands]
    return operands


def _rows_beside(token: Operand, table: Operand) -> set[int]:
    """Axes, from the last, of the table's rows; none where it is not one that a single token is added to."""
    labelled = token.value.active
    single = labelled and not any(slot.token_axes for slot in labelled) and token.value.from_input
    dormant = table.value.dormant
    if not single or table.value.labelled or table.value.from_input or dormant is None:
        return set()
    varies = {axis for axis in range(-table.ndim, 0) if dormant.labels.shape[axis] > 1}
    rows = {axis for axis in varies if -axis > token.ndim or _same_along(token.tensor, axis)}
    return rows if rows and varies - rows and max(rows) < max(varies - rows) else set()


def _same_along(tensor: Tensor, axis: int) -> bool:
    """Whether it is a copy of one place at all places of an axis."""
    return bool((tensor == tensor.narrow(axis, 0, min(1, tensor.shape[axis]))).all())


def _is_partly_learned(slot: Slot) -> bool:
    return slot.strength == WEAK and bool((slot.labels == 0).any()) and len(slot.token_axes) == 1


def with_tokens(call: Call, parts: Sequence[Operand], axis: int) -> list[Operand]:
    """The parts laid side by side along features, raw ones with tokens as a linear map would give them.

    What lies beside the features of a token (numbers beside the words of a row, measurements beside a class
    token) goes into it with the next linear map, and would else be forgotten. An input that has tokens
    already is known there: where its own coordinates lie beside features of others, they only say where.
    """
    return [_own(call, part, axis) if _is_new(call, part) else part for part in parts]


def _own(call: Call, part: Operand, axis: int) -> Operand:
    own = tokens_at(call, part, [axis])
    return part if any(slot.strength < STRONG for slot in own.value.slots) else own


def _is_new(call: Call, part: Operand) -> bool:
    """Whether a part is data of floating inputs alone, none of which has tokens yet."""
    value, ledger = part.value, call.ledger
    if value.labelled or value.is_summary or not value.from_input or not part.tensor.is_floating_point():
        return False
    if value.dormant is None:
        names = {value.root} if value.root else set()
        roots = [root for root, *_ in ledger.tokens.elements.ranges if root.name in names][:1]
    else:
        roots = list(ledger.tokens.elements.by_root(codes_of(value.dormant.labels)))
    known = {space.source for space in ledger.tokens.spaces}
    return bool(roots) and all(
        root.is_input and root.strength == STRONG and root.name not in known for root in roots
    )
