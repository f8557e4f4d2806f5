"""Tokens that come back to themselves laid out wrongly: ``[token, channel]`` seen as ``[channel, grid]``.

A view without the permutation that it needs puts elements of one token at several places, among the channels
of others. Where that is added to tokens that lie as they should, each place stays of its token and takes in
whose elements came there: a linear mixing by an index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fxplain.labels.call import Call
from fxplain.labels.labels import STRONG, Slot, broadcast, codes_of, same_tokens
from fxplain.labels.value import Operand
from fxplain.ops.meeting.mixing import join

RULE = "tokens laid out otherwise than they were"


def misplaced_on(call: Call, operands: Sequence[Operand], slots: Sequence[Sequence[Slot]]) -> Slot | None:
    """The tokens of the one operand, with the other's behind them; None where neither is laid out wrongly."""
    if len(operands) != 2 or any(len(own) != 1 or own[0].strength < STRONG for own in slots):
        return None
    for place in (0, 1):
        kept, other = slots[place][0], slots[1 - place][0]
        features = [axis for axis, size in enumerate(call.result.shape) if size > 1 and not kept.varies(axis)]
        whole = operands[place].shape == operands[1 - place].shape == tuple(call.result.shape)
        # rows and columns of a map lie on axes of their own; a grid and what was laid wrongly on it do not
        among = any(axis in other.token_axes for axis in features) and other.token_axes & kept.token_axes
        if whole and among and same_tokens(kept, other):
            call.matched(RULE)
            return _taken_in(call, operands[1 - place], kept, other)
    return None


def _taken_in(call: Call, operand: Operand, kept: Slot, other: Slot) -> Slot:
    rows, cols = broadcast(kept.labels, other.labels)
    known = (codes_of(rows) >= 0) & (codes_of(cols) >= 0)
    return replace(
        kept, reads=kept.reads | {join(call, operand, kept, other, known, tuple(call.result.shape))}
    )
