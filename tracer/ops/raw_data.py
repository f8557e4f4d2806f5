"""Data of an input that lie beside the features of tokens before anything has made tokens of them."""

from __future__ import annotations

from collections.abc import Sequence

from fxplain.labels import STRONG, codes_of
from fxplain.ops.births import woken
from fxplain.ops.table import Call, Operand


def with_tokens(call: Call, parts: Sequence[Operand], axis: int) -> list[Operand]:
    """The parts laid side by side along features, raw ones with tokens as a linear map would give them.

    What lies beside the features of a token (numbers beside the words of a row, measurements beside a class
    token) goes into it with the next linear map, and would else be forgotten. An input that has tokens
    already is known there: where its own coordinates lie beside features of others, they only say where.
    """
    return [_own(call, part, axis) if _is_new(call, part) else part for part in parts]


def _own(call: Call, part: Operand, axis: int) -> Operand:
    own = woken(call, part, [axis])
    return part if any(slot.strength < STRONG for slot in own.value.slots) else own


def _is_new(call: Call, part: Operand) -> bool:
    """Whether a part is data of floating inputs alone, none of which has tokens yet."""
    value, ledger = part.value, call.ledger
    if value.labelled or value.is_summary or not value.from_input or not part.tensor.is_floating_point():
        return False
    if value.dormant is None:
        names = {value.root} if value.root else set()
        roots = [root for root, *_ in ledger.elements.ranges if root.name in names][:1]
    else:
        roots = list(ledger.elements.by_root(codes_of(value.dormant.labels)))
    known = {space.source for space in ledger.spaces}
    return bool(roots) and all(
        root.is_input and root.strength == STRONG and root.name not in known for root in roots
    )
