"""Linear attention: keys are summed with the values into features, which the queries read then.

The map φ(q)·φ(k) is nowhere in the graph, but it is a linear operator from values to queries all the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from fxplain.labels.call import Call
from fxplain.labels.labels import Slot, codes_of
from fxplain.labels.value import Value
from fxplain.ops.meeting.sides import Side
from fxplain.ops.sequences import follow_operator

RULE = "linear attention"


def read_summaries(call: Call, left: Side, right: Side, slots: Sequence[Slot]) -> list[Slot]:
    """The slots of a product, where one operand is a summary of tokens, with those behind the others'."""
    found = list(slots)
    rows = [place for place, slot in enumerate(found) if slot.token_axes]
    if len(rows) != 1:
        return found
    for reader, summary in ((left, right), (right, left)):
        finest = max((len(slot.token_axes) for slot in summary.slots), default=-1)
        if len(found[rows[0]].token_axes) <= finest or not reader.slots:
            continue
        for node in sorted(summary.operand.value.hidden.summaries, key=lambda node: node.name):
            source, tokens = call.ledger.remarks.summaries[node]
            if _only_scales(found[rows[0]], tokens):
                call.unmatched(RULE, "some of the keys only scale what all were summed to")
                continue
            taken = follow_operator(call, source, tokens, found[rows[0]], alone=False)
            found[rows[0]] = taken or found[rows[0]]
            if taken is None:
                call.unmatched(RULE, "its map from keys to queries is not had")
            else:
                call.matched(RULE)
    return found


def _only_scales(reader: Slot, tokens: Slot) -> bool:
    """Whether some of the tokens themselves, the last of each chunk, scale what all were summed to."""
    ours, theirs = (torch.unique(codes_of(slot.labels)) for slot in (reader, tokens))
    ours, theirs = ours[ours >= 0], theirs[theirs >= 0]
    return len(ours) < len(theirs) and bool(torch.isin(ours, theirs).all())


def still_summed(call: Call, value: Value) -> frozenset[fx.Node]:
    """The summaries that a product holds and that no query has read in it."""
    read = {node for site in call.ledger.sites if site.node is call.node for node in site.map.path}
    return value.hidden.summaries - read
