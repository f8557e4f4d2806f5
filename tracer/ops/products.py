"""How sums of products are spelled: linear maps, matrix products, einsum, tensordot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fxplain.labels.call import Call
from fxplain.labels.value import Operand, Value
from fxplain.ops.elementwise import pointwise
from fxplain.ops.meeting.contraction import contract
from fxplain.ops.reading import lettered, letters_for, reduced
from fxplain.ops.table import transfer
from fxplain.ops.tokens import tokens_at


@transfer("aten::linear")
def linear(call: Call) -> Value:
    operand, weight = call.operands()[:2]
    letters = letters_for(operand.ndim, skip="YZ")
    last = letters[-1]
    rows = "Z" if weight.ndim == 2 else ""
    return contract(
        call, operand, _unlabelled_weight(weight), f"{letters},{rows}{last}->{letters[:-1]}{rows}"
    )


@transfer("quantized::linear_dynamic", "quantized::linear_dynamic_fp16", "quantized::linear_relu_dynamic")
def packed_linear(call: Call) -> Value:
    """A linear map whose weight is packed away: tokens are born, or stay."""
    operand = call.operands()[0]
    last = operand.ndim - 1
    awake = tokens_at(call, operand, [last])
    slots = reduced(operand.ndim, [last], keep=True).survivors(awake.value.active)
    if len(slots) < len(awake.value.active):
        raise ValueError("a packed linear map sums over tokens")
    call.ledger.remarks.without_gradient.append(call.node)
    return call.carry(awake, slots=slots)


def _unlabelled_weight(weight: Operand) -> Operand:
    """A weight that is itself computed from parameters is still a weight, not tokens."""
    return (
        weight
        if weight.value.from_input
        else weight.with_slots([s for s in weight.value.slots if s.strength == 0])
    )


@transfer("aten::matmul", "aten::mm", "aten::bmm", "aten::mv", "aten::dot", "aten::vdot")
def matmul(call: Call) -> Value:
    one, other = call.operands()[:2]
    return contract(call, one, other, matmul_spec(one.ndim, other.ndim))


def matmul_spec(left: int, right: int) -> str:
    """Letters of a matrix product with broadcast leading axes.

    >>> matmul_spec(3, 2)
    'aXY,YZ->aXZ'
    """
    batch = letters_for(max(left, right, 2) - 2, skip="XYZ")
    ours = batch[len(batch) - (left - 2) :] + "XY" if left > 1 else "Y"
    theirs = batch[len(batch) - (right - 2) :] + "YZ" if right > 1 else "Y"
    ours = "XY" if left == 2 else ours
    theirs = "YZ" if right == 2 else theirs
    return f"{ours},{theirs}->{batch}{'X' if left > 1 else ''}{'Z' if right > 1 else ''}"


@transfer("aten::addmm", "aten::baddbmm", "aten::addbmm", "aten::addmv")
def added_matmul(call: Call) -> Value:
    """bias + product: the product's labels, merged with the bias' if that is data (scores plus a bias)."""
    bias, one, other = call.operands()[:3]
    if call.op == "aten::addmm":
        other = _unlabelled_weight(other)
    product = contract(call, one, other, matmul_spec(one.ndim, other.ndim))
    if not bias.value.labelled:
        return product
    assert call.node is not None
    merged = pointwise(call, [Operand(call.node, call.result, product), bias])
    return replace(merged, softmaxes=product.softmaxes)


@transfer("aten::einsum")
def einsum(call: Call) -> Value:
    """Letters as given; more than two operands are contracted from left to right."""
    operands = call.operands()
    inputs, output = einsum_letters(str(call.args[0]), [o.ndim for o in operands])
    if len(operands) == 1:
        kept = lettered(inputs[0], output).survivors(operands[0].value.active)
        return call.carry(operands[0], slots=kept)
    if len(operands) > 2 or any(len(set(letters)) < len(letters) for letters in inputs):
        call.ledger.remarks.losses[call.node.name] = call.node
        return call.carry(*operands, lost=frozenset({call.node.name}))
    return contract(call, operands[0], operands[1], f"{inputs[0]},{inputs[1]}->{output}")


def einsum_letters(equation: str, ndims: Sequence[int]) -> tuple[list[str], str]:
    """The letters of each operand and of the result, with the ellipsis and the implicit result spelled
    out."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    used = "".join(terms)
    extra = max(
        [n - len(t.replace("...", "")) for t, n in zip(terms, ndims, strict=True) if "..." in t], default=0
    )
    dots = letters_for(extra, skip=used)
    full = []
    for term, ndim in zip(terms, ndims, strict=True):
        own = ndim - len(term.replace("...", ""))
        full.append(term.replace("...", dots[extra - own :]))
    if not arrow:
        once = sorted(c for c in set(used) if c.isalpha() and used.count(c) == 1)
        return full, dots + "".join(once)
    return full, right.replace("...", dots)


@transfer("aten::tensordot")
def tensordot(call: Call) -> Value:
    one, other = call.operands()[:2]
    dims: Any = (call.argument("dims_self"), call.argument("dims_other"))
    ours = letters_for(one.ndim)
    theirs = list(letters_for(other.ndim, skip=ours))
    for mine, yours in zip(*dims, strict=True):
        theirs[yours] = ours[mine]
    gone = {ours[axis] for axis in dims[0]}
    output = "".join(c for c in [*ours, *theirs] if c not in gone)
    return contract(call, one, other, f"{ours},{''.join(theirs)}->{output}")


@transfer("aten::bilinear")
def bilinear(call: Call) -> Value:
    """``x1[..., i] W[o, i, j] x2[..., j]``: both sum over their features, place by place."""
    operands = [tokens_at(call, operand, [operand.ndim - 1]) for operand in call.operands()[:2]]
    merged = pointwise(call, operands)
    if any(slot.varies(call.result.ndim - 1) for slot in merged.active):
        raise ValueError("a bilinear map that sums over tokens")
    return replace(merged, softmaxes=frozenset())


@transfer("aten::cdist", "aten::_cdist_forward")
def cdist(call: Call) -> Value:
    """Distances between all rows of two tensors: scores, as the product of one with the other transposed."""
    one, other = call.operands()[:2]
    batch = letters_for(max(one.ndim, other.ndim) - 2, skip="XYZ")
    ours, theirs = (batch[len(batch) - (operand.ndim - 2) :] for operand in (one, other))
    return contract(call, one, other, f"{ours}XY,{theirs}ZY->{batch}XZ")
