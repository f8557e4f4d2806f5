"""Late interaction: similarities of two texts' tokens, of which each row's largest, or their sum, is read.

Such a number is a feature of the row's token, and made of those of its columns. A softmax takes the largest
score of a row too, but to give it back to the scores it came from: that is no feature.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from fxplain.labels import STRONG, Slot, broadcast, samples_of
from fxplain.ops.mixing import record
from fxplain.ops.table import Call, Operand, aten, op_name

MOVING = frozenset(
    aten("view reshape unsqueeze squeeze expand expand_as clone detach permute transpose where")
)
NUMBERS = frozenset(aten("sum mean amax amin max min logsumexp norm linalg_vector_norm var std"))


def features_of_rows(call: Call, operand: Operand, axes: Sequence[int], alive: Sequence[Slot]) -> list[Slot]:
    """The slots of a map's rows, which take in the columns that were summed up, or picked from."""
    columns = [slot for slot in operand.value.active if any(slot.varies(axis) for axis in axes)]
    firm = all(slot.strength == STRONG for slot in (*alive, *columns))
    if len(alive) != 1 or len(columns) != 1 or not firm or not alive[0].token_axes:
        return list(alive)
    result = call.result[0] if isinstance(call.result, tuple) else call.result
    if not isinstance(result, Tensor) or not result.is_floating_point() or operand.node is None:
        return list(alive)
    if _samples_apart(alive[0], columns[0]) or _given_back(call.node, operand.node):
        return list(alive)
    return [record(call, "pooled", [operand], alive[0], columns[0], operand.shape, adds=True)]


def _samples_apart(rows: Slot, columns: Slot) -> bool:
    """Whether rows of one sample meet columns of another, as where all pictures meet all texts."""
    one, other = broadcast(samples_of(rows.labels), samples_of(columns.labels))
    return bool(((one != other) & (one >= 0) & (other >= 0)).any())


def _given_back(reduced: fx.Node, map: fx.Node) -> bool:
    """Whether what became of a map's rows meets the map again, or something else made of it."""
    made = _behind(map, reduced)
    stack, seen = [reduced], {reduced}
    while stack:
        for user in stack.pop().users:
            if any(node in made for node in user.all_input_nodes):
                return True
            passes = torch.Tag.pointwise in getattr(user.target, "tags", ()) or op_name(user) in MOVING
            if user not in seen and (passes or "getitem" in op_name(user)):
                seen.add(user)
                stack.append(user)
    return False


def _behind(map: fx.Node, but: fx.Node) -> set[fx.Node]:
    """All nodes that depend on the map otherwise than through one of its users, or such a number."""
    found, stack = {map}, [map]
    while stack:
        for user in stack.pop().users:
            if user is not but and user not in found and op_name(user) not in NUMBERS:
                found.add(user)
                stack.append(user)
    return found
