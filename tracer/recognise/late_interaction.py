"""Late interaction: similarities of two texts' tokens, of which each row's largest, or their sum, is read.

Such a number is a feature of the row's token, and made of those of its columns. A softmax takes the largest
score of a row too, or its sum, but to scale what else is made of these columns: that is no feature.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from fxplain.labels.call import Call, aten, op_name
from fxplain.labels.labels import STRONG, Slot, broadcast, codes_of, samples_of
from fxplain.labels.value import Operand, Value
from fxplain.ops.meeting.mixing import record

MOVING = frozenset(
    aten("view reshape unsqueeze squeeze expand expand_as clone detach permute transpose where cat stack")
)

RULE = "late interaction"
BLOCKWISE = frozenset(aten("sum amax"))


def features_of_rows(call: Call, operand: Operand, axes: Sequence[int], rows: Sequence[Slot]) -> list[Slot]:
    """The slots of a map's rows, which take in the columns that were summed up, or picked from."""
    columns = [slot for slot in operand.value.active if any(slot.varies(axis) for axis in axes)]
    firm = all(slot.strength == STRONG for slot in (*rows, *columns))
    if len(rows) != 1 or len(columns) != 1 or not firm or not rows[0].token_axes:
        call.unmatched(RULE, "it is not over the columns of one map of inputs' tokens by inputs' tokens")
        return list(rows)
    result = call.result[0] if isinstance(call.result, tuple) else call.result
    if not isinstance(result, Tensor) or not result.is_floating_point() or operand.node is None:
        return list(rows)
    if _samples_apart(rows[0], columns[0]):
        call.unmatched(RULE, "its rows and columns are of different samples")
        return list(rows)
    if _scales(call, rows[0], columns[0]):
        call.unmatched(RULE, "it only scales something else that is made of the columns, as a softmax does")
        return list(rows)
    call.matched(RULE)
    return [record(call, operand, rows[0], columns[0], adds=True)]


EXTREMES, TOTALS = aten("amax max logsumexp"), aten("sum")
EASING = aten("add clamp clamp_min clamp_max detach maximum")
"""What is done to a row's sum or maximum before it is used: small numbers are added, bounds set."""


def normalises(call: Call, operand: Operand) -> bool:
    """Whether a maximum is only subtracted from what it was taken of, or a sum only divides it.

    That is half of a softmax, and a statistic: no token is made of the others, and none asks for anything.
    """
    ends = {**dict.fromkeys(EXTREMES, aten("sub")), **dict.fromkeys(TOTALS, aten("div"))}.get(call.op)
    if ends is None or operand.node is None or not call.node.users:
        return False
    stack = [call.node]
    while stack:
        node = stack.pop()
        for user in node.users:
            ending = op_name(user).removesuffix("_") in ends and user.args[1] is node
            if ending and _same(user.args[0], operand.node):
                continue
            eases = op_name(user) in (*MOVING, *EASING) and user.all_input_nodes == [node]
            if not (eases or "getitem" in op_name(user)):
                return False
            stack.append(user)
    return True


def _same(one: object, other: fx.Node) -> bool:
    """Whether two nodes are one, or the same pointwise operation on the same."""
    return one is other or (
        isinstance(one, fx.Node)
        and one.target is other.target
        and torch.Tag.pointwise in getattr(one.target, "tags", ())
        and (one.args, one.kwargs) == (other.args, other.kwargs)
    )


def _samples_apart(rows: Slot, columns: Slot) -> bool:
    """Whether rows of one sample meet columns of another, as where all pictures meet all texts."""
    one, other = broadcast(samples_of(rows.labels), samples_of(columns.labels))
    return bool(((one != other) & (one >= 0) & (other >= 0)).any())


def _scales(call: Call, rows: Slot, columns: Slot) -> bool:
    """Whether what becomes of a row's number multiplies, or is taken from, something else that is made of the
    columns: it is a statistic of a softmax then, or a gate on an attention. What is made of the row alone
    (its norm, a weight that it tells) only scales the feature."""
    chain, stack = {call.node}, [call.node]
    while stack:
        for user in stack.pop().users:
            passes = torch.Tag.pointwise in getattr(user.target, "tags", ())
            if passes and op_name(user).removesuffix("_") != "aten::add":
                others = [node for node in user.all_input_nodes if node not in chain]
                if _made_of(call, others, rows, columns, chain):
                    return True
            moves = op_name(user) in MOVING or "getitem" in op_name(user) or _adds_blocks(call, user)
            if user not in chain and (passes or moves):
                chain.add(user)
                stack.append(user)
    return False


def _adds_blocks(call: Call, user: fx.Node) -> bool:
    """Whether a sum is of numbers of one row, such as those of blocks of its keys: as many are left as there
    were before they were laid side by side."""
    numbers, sums = (node.meta.get("val") for node in (call.node, user))
    several = isinstance(numbers, tuple | list)
    if op_name(user) not in BLOCKWISE or not isinstance(sums, Tensor) or several or numbers is None:
        return False
    return bool(sums.numel() >= numbers.numel())


def _made_of(call: Call, nodes: Sequence[fx.Node], rows: Slot, columns: Slot, chain: set[fx.Node]) -> bool:
    """Whether the columns are behind some nodes, otherwise than through the chain: told by labels where there
    are any already, else by inputs."""
    codes = torch.unique(codes_of(columns.labels))
    sources = {call.ledger.tokens.source_of(code) for code in codes.tolist() if code >= 0}
    stack, seen = list(nodes), set(nodes) | chain
    while stack:
        node = stack.pop()
        value = call.values.get(node)
        if isinstance(value, Value) and value.labelled:
            if value.hidden.summaries or any(_holds(call, slot, rows, columns) for slot in value.active):
                return True
            continue
        if node.op == "placeholder" and isinstance(value, Value) and value.root in sources:
            return True
        fresh = [used for used in node.all_input_nodes if used not in seen]
        seen.update(fresh)
        stack.extend(fresh)
    return False


def _holds(call: Call, slot: Slot, rows: Slot, columns: Slot) -> bool:
    """Whether some tokens are among these columns, or pooled from them, or have read them since the rows met
    them."""
    since = [call.ledger.sites[read].cols for read in slot.reads - rows.reads]
    among = [codes_of(own.labels) for own in (slot, *since)]
    known = torch.unique(codes_of(columns.labels))
    return call.ledger.mixed_from(slot, [columns]) or any(
        bool((torch.isin(codes, known) & (codes >= 0)).any()) for codes in among
    )
