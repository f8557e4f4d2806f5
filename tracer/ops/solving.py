"""Solved linear systems A x = b, as delta rules have them: each place of x takes in others that A couples."""

from __future__ import annotations

from fxplain.labels import Slot, Value
from fxplain.ops.operator import follow_operator
from fxplain.ops.table import Call, Operand, aten, transfer

SOLVING = "solved system", "a linear system over tokens mixes those that it couples"


@transfer(
    *aten("linalg_inv inverse linalg_inv_ex linalg_pinv matrix_exp linalg_matrix_exp linalg_matrix_power")
)
def matrix(call: Call) -> Value | tuple[Value, ...]:
    """A function of a map is a map between the same tokens."""
    operand = call.operands()[0]
    slots = operand.value.active
    if len(slots) == 1 and slots[0].token_axes & {operand.ndim - 1, operand.ndim - 2}:
        raise ValueError("the inverse of a matrix whose rows alone are tokens")
    value = call.carry(operand, slots=slots, softmaxes=frozenset())
    return (value,) * len(call.result) if isinstance(call.result, tuple) else value


@transfer(*aten("linalg_solve_triangular linalg_solve cholesky_solve triangular_solve"))
def solve(call: Call) -> Value | tuple[Value, ...]:
    """The places of the right-hand side stay those of its tokens; a system for none is a map itself."""
    system, given = call.operands()[:2]
    if call.op in ("aten::cholesky_solve", "aten::triangular_solve"):
        system, given = given, system
    if not given.value.labelled:
        value = call.carry(system, given, slots=system.value.active, softmaxes=frozenset())
    else:
        value = call.carry(given, system, slots=_taken_in(call, system, given), softmaxes=frozenset())
    return (value,) * len(call.result) if isinstance(call.result, tuple) else value


def _taken_in(call: Call, system: Operand, given: Operand) -> list[Slot]:
    """The slots of the right-hand side; those along the coupled axis with what they take in."""
    left = bool(call.argument("left", True))
    axis = given.ndim - (2 if left else 1)
    if given.ndim != call.result.ndim:
        raise ValueError("a system solved for a batch of vectors")
    found = []
    for slot in given.value.active:
        if slot.varies(axis) and given.node is not None:
            call.ledger.unfollowed[call.node] = SOLVING
            slot = follow_operator(call, given.node, slot, slot) or slot
        found.append(slot)
    return found
