"""Linear attention: keys are summed with the values into features, which the queries read then.

The map φ(q)·φ(k) is nowhere in the graph, but it is a linear operator from values to queries all the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from fxplain.labels import Slot
from fxplain.ops.operator import follow_operator
from fxplain.ops.sides import Side
from fxplain.ops.table import Call


def read_summaries(call: Call, left: Side, right: Side, slots: Sequence[Slot]) -> list[Slot]:
    """The slots of a product, where one operand is a summary of tokens, with those behind the others'."""
    found = list(slots)
    for reader, summary in ((left, right), (right, left)):
        held = summary.operand.value.summed
        rows = [place for place, slot in enumerate(found) if slot.token_axes]
        if len(rows) != 1 or summary.slots or not reader.slots:
            continue
        for node in sorted(held, key=lambda node: node.name):
            source, tokens = call.ledger.summaries[node]
            taken = follow_operator(call, source, tokens, found[rows[0]], alone=False)
            found[rows[0]] = taken or found[rows[0]]
    return found
