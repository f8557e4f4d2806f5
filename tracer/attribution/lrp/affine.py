"""Sums of products: linear maps, matrix products and convolutions, by a weight or by an activation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from fxplain.attribution.lrp.moving import homogeneous, linear_map
from fxplain.attribution.lrp.table import Call, Shares, relevance_rule
from fxplain.rules.lrp_products import Linear, Product, bilinear_rule, epsilon_rule


@dataclass(frozen=True)
class Form:
    """A call as ``product(left, right) + added``: names of the arguments, and the product itself."""

    left: str
    right: str
    product: Product
    added: str | None = None


FORMS: dict[str, Callable[[Call], Form]] = {}


def _form(names: str) -> Callable[[Callable[[Call], Form]], Callable[[Call], Form]]:
    def register(function: Callable[[Call], Form]) -> Callable[[Call], Form]:
        for name in names.split():
            FORMS[f"aten::{name}"] = function
        return function

    return register


@_form("linear")
def _linear(call: Call) -> Form:
    return Form("input", "weight", Linear(), "bias")


@_form("matmul mm bmm mv dot vdot inner kron outer linalg_vecdot")
def _matmul(call: Call) -> Form:
    names = [argument.name for argument in call.node.target._schema.arguments]  # type: ignore[union-attr]
    return Form(names[0], names[1], lambda a, b: call.node.target(a, b))  # type: ignore[operator]


@_form("tensordot")
def _tensordot(call: Call) -> Form:
    dims = [call.argument(name) for name in ("dims_self", "dims_other")]
    return Form("self", "other", lambda a, b: call.node.target(a, b, *dims))  # type: ignore[operator]


@_form("addmm addbmm baddbmm addmv addr")
def _added_product(call: Call) -> Form:
    names = [argument.name for argument in call.node.target._schema.arguments]  # type: ignore[union-attr]
    zero, alpha = torch.zeros_like(call.argument(names[0])), call.argument("alpha", 1)
    return Form(
        names[1],
        names[2],
        lambda a, b: call.node.target(zero, a, b, alpha=alpha),  # type: ignore[operator]
        names[0],
    )


@_form("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution")
def _convolution(call: Call) -> Form:
    rest = {
        name: call.argument(name)
        for name in (a.name for a in call.node.target._schema.arguments[3:])  # type: ignore[union-attr]
        if call.argument(name) is not None
    }
    bias = {"bias": None}

    def product(x: Tensor, w: Tensor) -> Tensor:
        made: Tensor = call.node.target(input=x, weight=w, **bias, **rest)  # type: ignore[operator]
        return made

    return Form("input", "weight", product, "bias")


@_form("_grouped_mm")
def _grouped(call: Call) -> Form:
    offsets = call.argument("offs")
    return Form("self", "mat2", lambda a, b: grouped_product(a, b, offsets), "bias")


def grouped_product(rows: Tensor, matrices: Tensor, offsets: Tensor) -> Tensor:
    """Rows [n, a] in groups that end at ``offsets`` [g], each by its own matrix of [g, a, b]: [n, b]."""
    ends = offsets.tolist()
    starts = [0, *ends[:-1]]
    parts = [rows[i:j] @ matrix for i, j, matrix in zip(starts, ends, matrices, strict=True)]
    rest = rows.new_zeros(rows.shape[0] - (ends[-1] if ends else 0), matrices.shape[-1])
    return torch.cat([*parts, rest])


@relevance_rule(*FORMS)
def products(call: Call) -> Shares:
    """A product of an activation and a weight, or of two activations."""
    form, relevance = FORMS[call.op](call), call.relevance
    if form.added is not None and call.carries(form.added):  # an activation, not a bias
        node, term = call.source(form.added), call.argument(form.added)
        assert node is not None
        beta = call.argument("beta", 1)
        product = form.product(call.argument(form.left), call.argument(form.right))
        terms = [product, (beta * term).expand_as(product)]
        relevance, apart = call.rules.addition(terms, relevance, call.total)
        shares = [(node, apart.sum_to_size(term.shape))]
        return [*shares, *_product(replace(call, results=(product,)), form, relevance)]
    return _product(call, form, relevance)


def _product(call: Call, form: Form, relevance: Tensor) -> Shares:
    left, right = call.source(form.left), call.source(form.right)
    a, b = call.argument(form.left), call.argument(form.right)
    if call.carries(form.left) and call.carries(form.right):
        assert left is not None
        assert right is not None
        return two_activations(call, form.product, (left, a), (right, b), relevance)
    swapped: Product = lambda one, other: form.product(other, one)  # noqa: E731
    node, x, w, product = (left, a, b, form.product) if call.carries(form.left) else (right, b, a, swapped)
    assert node is not None
    if node in call.sides.maps:  # values that are constants are no weights
        return [(node, epsilon_rule(product, x, w, call.result, relevance, call.rules.epsilon))]
    is_raw_image = "conv" in call.op and node in call.sides.raw
    rule = call.rules.raw if is_raw_image else call.rules.affine
    return [(node, rule(product, x, w, call.result, relevance))]


def two_activations(
    call: Call,
    product: Product,
    left: tuple[fx.Node, Tensor],
    right: tuple[fx.Node, Tensor],
    relevance: Tensor,
) -> Shares:
    """A product of two activations; of an attention map and its values, by the set's rule for that."""
    for one, other, swap in ((left, right, False), (right, left, True)):
        if call.rules.attention == "values" and _is_map(call, one[0]):
            by_map: Any = (lambda x, w: product(x, w)) if swap else (lambda x, w: product(w, x))
            rule = call.rules.affine
            return [(other[0], rule(by_map, other[1], one[1], call.result, relevance))]
    first, second = bilinear_rule(product, left[1], right[1], relevance, call.rules.epsilon)
    return [(left[0], first), (right[0], second)]


def _is_map(call: Call, node: fx.Node) -> bool:
    return node in call.sides.maps


@relevance_rule("aten::einsum")
def einsum(call: Call) -> Shares:
    """Of one operand a linear map; of two a product; of more a product of the carriers, all alike."""
    equation, tensors = call.argument("equation"), call.argument("tensors")
    nodes: Any = call.node.args[1]
    places = [place for place, node in enumerate(nodes) if node in call.sides.carriers]

    def run(replaced: dict[int, Tensor]) -> Tensor:
        made: Tensor = torch.einsum(equation, [replaced.get(p, t) for p, t in enumerate(tensors)])
        return made

    if len(places) == 1:
        (place,) = places
        others = [p for p in range(len(tensors)) if p != place]
        if not others:
            return linear_map(call)
        weight = others[0]
        product: Product = lambda x, w: run({place: x, weight: w})  # noqa: E731
        rule = call.rules.affine
        return [(nodes[place], rule(product, tensors[place], tensors[weight], call.result, call.relevance))]
    if len(places) == 2:
        a, b = places
        both: Product = lambda x, w: run({a: x, b: w})  # noqa: E731
        return two_activations(call, both, (nodes[a], tensors[a]), (nodes[b], tensors[b]), call.relevance)
    return homogeneous(call)
