"""What is done with a sum of tokens next: is it read by queries, over the features that stood for keys?

Normalised keys times values, [feature, token] by [token, dim], look like learned maps that pool tokens. They
are a summary of linear attention where a query sums over the *features* of the keys next; where the pooled
tokens meet other data over their own features (two pooled texts are compared), they were attended to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, fx

from fxplain.labels.call import Call, aten, op_name
from fxplain.labels.value import Value
from fxplain.recognise.around import LAYING, behind, run_on

PRODUCTS = aten("matmul mm bmm einsum baddbmm mv dot tensordot")
LINEARS = aten("linear addmm conv1d conv2d conv3d convolution")
Numbers = Tensor | None
"""Laid out as a tensor: which feature each element is of; None if that was lost sight of."""


RULE = "a summary that queries read"


def read_by_data(call: Call, features: Sequence[int]) -> bool:
    """Whether a product with other data sums over these axes of the result, as queries do that read keys."""
    stack: list[tuple[fx.Node, Numbers]] = [(call.node, _numbered(call.result.shape, features))]
    seen, made = {call.node}, {call.node, *behind(call.node)}
    while stack:
        node, numbers = stack.pop()
        for user in node.users:
            reads = op_name(user) in PRODUCTS and _of_data(call, user, made)
            if reads and _sums(user, node, numbers):
                call.matched(RULE)
                return True
            if user not in seen and op_name(user) not in (*PRODUCTS, *LINEARS):
                seen.add(user)
                stack.append((user, _laid_out(user, node, numbers)))
    call.unmatched(RULE, "no product with other data sums over its features")
    return False


def _of_data(call: Call, product: fx.Node, made: set[fx.Node]) -> bool:
    """Whether other data have a part in a product: what asked for pooled tokens is made of these."""
    others = [call.values.get(other) for other in product.all_input_nodes if other not in made]
    return any(not isinstance(other, Value) or other.from_input for other in others)


def _numbered(shape: Sequence[int], axes: Sequence[int]) -> Tensor:
    sizes = [size if axis in axes else 1 for axis, size in enumerate(shape)]
    return torch.arange(torch.Size(sizes).numel()).view(sizes).expand(tuple(shape))


def _laid_out(user: fx.Node, node: fx.Node, numbers: Numbers) -> Numbers:
    """The numbers after another operation: laid out as it does, or as they are where it keeps the shape."""
    value = user.meta.get("val")
    if numbers is None or not isinstance(value, Tensor):
        return None
    if value.shape == numbers.shape and op_name(user) not in LAYING:
        return numbers
    if user.all_input_nodes != [node]:
        return None
    try:
        result = run_on(user, numbers)
    except (RuntimeError, TypeError):
        return None
    return result if isinstance(result, Tensor) and result.shape == value.shape else None


def _sums(product: fx.Node, node: fx.Node, numbers: Numbers) -> bool:
    """Whether a product sums over different features; so too where that cannot be told."""
    if numbers is None:
        return True
    return any(
        bool((part != part.narrow(axis, 0, 1)).any()) for part, axis in _summed(product, node, numbers)
    )


def _summed(product: fx.Node, node: fx.Node, numbers: Tensor) -> Iterator[tuple[Tensor, int]]:
    """The axes that a product sums over, of each operand that the node is."""
    if op_name(product) == "aten::einsum":
        inputs, arrow, output = str(product.args[0]).replace(" ", "").partition("->")
        kept = output if arrow else "".join(c for c in inputs if inputs.count(c) == 1)
        operands: Sequence[object] = product.args[1]  # type: ignore[assignment]
        for letters, operand in zip(inputs.split(","), operands, strict=True):
            dots = "." * (numbers.ndim - len(letters.replace("...", "")))
            whole = enumerate(letters.replace("...", dots))
            lost = [place for place, c in whole if c.isalpha() and c not in kept]
            yield from ((numbers, place) for place in lost if operand is node)
        return
    if op_name(product) == "aten::tensordot":
        dims: Sequence[Sequence[int]] = product.args[2:4]  # type: ignore[assignment]
        for operand, axes in zip(product.args[:2], dims, strict=True):
            yield from ((numbers, axis) for axis in axes if operand is node)
        return
    left, right = product.args[1:3] if op_name(product) == "aten::baddbmm" else product.args[:2]
    if left is node:
        yield numbers, numbers.ndim - 1
    if right is node:
        yield numbers, max(numbers.ndim - 2, 0)
