"""An operation that nobody has written a rule for, asked by experiment what it does to its operands."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx

from fxplain.attribution.lrp.moving import linear_map
from fxplain.attribution.lrp.pointwise import identity
from fxplain.attribution.lrp.table import Call, Shares
from fxplain.rules.lrp_products import Product

TOLERANCE = 1e-3
"""Relative difference at which two results count as the same."""


def by_experiment(call: Call) -> Shares | None:
    """The rule of a linear map, a product with a weight or an activation, if it is one; else None.

    Linear in the operand that carries relevance, and in one other: a product. Linear in what carries alone:
    a sum. A change of one element that changes the same element alone: an activation.
    """
    if len(call.results) != 1 or not call.result.is_floating_point():
        return None
    carriers = [node for node, _ in call.carriers]
    generator = torch.Generator().manual_seed(0)
    if not _is_linear(call, carriers, generator):
        return identity(call) if len(carriers) == 1 and _is_pointwise(call, generator) else None
    if len(carriers) > 1:
        return linear_map(call)
    weights = [n for n, v in call.operands if n is not carriers[0] and v.is_floating_point()]
    for weight in weights:
        if _is_linear(call, [weight], generator):
            return _product(call, carriers[0], weight)
    return linear_map(call)


def _product(call: Call, node: fx.Node, weight: fx.Node) -> Shares:
    values = dict(call.operands)
    product: Product = lambda x, w: call.again({node: x, weight: w})  # noqa: E731
    rule = call.rules.affine
    return [(node, rule(product, values[node], values[weight], call.result, call.relevance))]


def _is_linear(call: Call, nodes: list[fx.Node], generator: torch.Generator) -> bool:
    """Whether f(a + 2 b) = f(a) + 2 f(b), for two draws of all these operands together."""
    values = dict(call.operands)
    one, other = ({n: _noise(values[n], generator) for n in nodes} for _ in range(2))
    both = {n: one[n] + 2 * other[n] for n in nodes}
    return _same(call.again, both, lambda: call.again(one) + 2 * call.again(other))


def _is_pointwise(call: Call, generator: torch.Generator) -> bool:
    node, value = call.carriers[0]
    if call.result.shape != value.shape:
        return False
    chosen = torch.rand(value.shape, generator=generator).to(value.device) < 0.5
    changed = torch.where(chosen, _noise(value, generator), value)
    with torch.no_grad():
        moved: Tensor = call.again({node: changed})
    return bool(torch.equal(moved[~chosen], call.result[~chosen]))


def _same(
    run: Callable[[dict[fx.Node, Tensor]], Tensor], given: dict[fx.Node, Tensor], wanted: Callable[[], Tensor]
) -> bool:
    with torch.no_grad():
        found, expected = run(given), wanted()
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    return largest > 0 and float((found - expected).abs().max()) <= TOLERANCE * largest


def _noise(value: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(value.shape, generator=generator).to(value)
