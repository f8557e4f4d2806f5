"""LibraGrad on a captured graph: which operations get another derivative, found by kind of operation.

What an operation is to be replaced by is said in ``rules/libra.py``; here it is found where. A node is *live*
if the balanced gradient passes it: it depends on the data of an input by more than constants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from fxplain.attention.census import census
from fxplain.attention.labelled import Labelled
from fxplain.attention.labelling import is_pointwise
from fxplain.labels.call import aten, op_name, pick
from fxplain.labels.findings import Findings
from fxplain.labels.flows import Kernel
from fxplain.labels.labels import STRONG
from fxplain.ops.kernels import compute
from fxplain.ops.sampling import SAMPLERS
from fxplain.rules import libra
from fxplain.run.replay import Surrogate, Surrogates

PRODUCTS = {
    **dict.fromkeys(aten("mul multiply matmul mm bmm mv dot"), (0, 1)),
    **dict.fromkeys(aten("linear"), (0, 1)),
    **dict.fromkeys(aten("addmm baddbmm addbmm"), (1, 2)),
}
"""Bilinear operation -> the places of its two factors."""
GATES = frozenset(aten("gelu silu hardswish mish"))
SQUASHING = frozenset(aten("sigmoid tanh erf hardsigmoid hardtanh clamp softsign"))
STATISTICS = frozenset(
    aten("rsqrt sqrt var std norm linalg_vector_norm linalg_norm var_mean std_mean frobenius_norm")
)
NORMS = frozenset(aten("layer_norm native_layer_norm rms_norm _fused_rms_norm group_norm native_group_norm"))


def balanced(labelled: Labelled) -> Surrogates:
    """What to run in place of some operations so that gradients are balanced."""
    return Balance(labelled).found


class Balance:
    """One look at a graph, first operation to last."""

    def __init__(self, labelled: Labelled) -> None:
        self.findings: Findings = labelled.findings
        self.live: set[fx.Node] = set()
        self.found: dict[fx.Node, Surrogate] = {}
        whole = [site for site in labelled.classified.sites if site.role == "attention"]
        sites = [part for site in whole for part in site.map.parts or (site,)]
        self.maps = {site.map.held for site in sites}
        self.fused = {site.node for site in sites if isinstance(site.map, Kernel)}
        entries = census(self.findings, labelled.classified.sites)
        returned = {entry.node for entry in entries if entry.role == "output distribution"}
        self.weights = {
            node for node, _ in self.findings.ledger.remarks.softmaxes.values() if node.name not in returned
        } - self.fused
        self._sources: dict[fx.Node, frozenset[fx.Node]] = {}
        nodes = list(labelled.captured.graph.graph.nodes)
        for node in nodes:
            if node.op == "call_function":
                self._visit(node)
        self._prune(nodes)

    def _prune(self, nodes: Sequence[fx.Node]) -> None:
        """Leave as they are operations whose gradient ends at a constant further on."""
        passed: set[fx.Node] = set()
        for node in reversed(nodes):
            if node.op == "output":
                passed.update(node.all_input_nodes)
            elif node in passed and node in self.fused:
                passed.update(used for used in node.args[2:3] if isinstance(used, fx.Node))
            elif node in passed and node in self.live:
                passed.update(node.all_input_nodes)
        self.found = {node: surrogate for node, surrogate in self.found.items() if node in passed}

    def _visit(self, node: fx.Node) -> None:
        surrogate, live = self._surrogate(node)
        if surrogate is not None:
            self.found[node] = surrogate
        if live:
            self.live.add(node)
            self._from(node)

    def _surrogate(self, node: fx.Node) -> tuple[Surrogate | None, bool]:
        """What replaces a node, and whether the gradient passes it."""
        alive = [used for used in node.all_input_nodes if used in self.live]
        if node in self.maps or (alive and self._is_constant(node)):
            return _detached, False
        if not alive:
            return None, self._is_born(node)
        if node in self.fused:
            return _constant_map, node.args[2] in self.live if len(node.args) > 2 else True
        name = op_name(node).removesuffix("_")
        if name in NORMS:
            return _NORMS[name], True
        if name in GATES:
            return _gated, True
        return self._product(node, name), True

    def _is_constant(self, node: fx.Node) -> bool:
        name = op_name(node).removesuffix("_")
        return node in self.weights or name in STATISTICS

    def _is_born(self, node: fx.Node) -> bool:
        """Whether the data of an input become tokens here."""

        def named(used: fx.Node) -> bool:
            return any(slot.strength == STRONG for slot in self.findings.value(used).active)

        return named(node) and not any(named(used) for used in node.all_input_nodes)

    def _product(self, node: fx.Node, name: str) -> Surrogate | None:
        if name in ("aten::div", "aten::true_divide"):
            return partial(_operand_fixed, 1) if node.args[1] in self.live else None
        if name in SAMPLERS:
            return partial(_operand_fixed, 1) if node.args[1] in self.live else None
        if name == "aten::square" or (name == "aten::pow" and node.args[1:] == (2,)):
            return _squared
        if name == "aten::glu":
            return _glu
        if name not in PRODUCTS:
            return None
        places = PRODUCTS[name]
        left, right = (node.args[place] for place in places)
        if not (isinstance(left, fx.Node) and isinstance(right, fx.Node)):
            return None
        if left not in self.live or right not in self.live:
            return None
        gate = self._gate(left, right)
        return partial(_halved, places) if gate is None else partial(_operand_fixed, places[gate])

    def _gate(self, left: fx.Node, right: fx.Node) -> int | None:
        """In ``x g(x)`` spelled out: which factor is the gate, a squashed function of the same elements."""
        if self._from(left) != self._from(right):
            return None
        squashed = [self._is_squashed(left), self._is_squashed(right)]
        return squashed.index(True) if squashed.count(True) == 1 else None

    def _from(self, node: fx.Node) -> frozenset[fx.Node]:
        """The live nodes that a node is a function of, element by element."""
        if node not in self._sources:
            inside = node.op == "call_function" and is_pointwise(node)
            parts = [self._from(used) for used in node.all_input_nodes if used in self.live]
            self._sources[node] = frozenset().union(*parts) if inside and parts else frozenset({node})
        return self._sources[node]

    def _is_squashed(self, node: fx.Node, depth: int = 8) -> bool:
        """Whether a squashing function was taken, scaled and shifted by constants at most since."""
        if op_name(node).removesuffix("_") in SQUASHING:
            return True
        alive = [used for used in node.all_input_nodes if used in self.live]
        return depth > 0 and len(alive) == 1 and is_pointwise(node) and self._is_squashed(alive[0], depth - 1)


def _detached(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with torch.no_grad():
        return compute(node, args, kwargs)


def _constant_map(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A fused attention whose map is a constant: everything but the values is cut off."""
    kept = [arg if place == 2 else _cut(arg) for place, arg in enumerate(args)]
    return compute(node, kept, {name: _cut(arg) for name, arg in kwargs.items()})


def _cut(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _gated(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return libra.gated(lambda x: compute(node, (x, *args[1:]), kwargs), args[0])


def _halved(places: tuple[int, int], node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    def product(left: Tensor, right: Tensor) -> Tensor:
        changed = _with(args, zip(places, (left, right), strict=True))
        result: Tensor = compute(node, changed, kwargs)
        return result

    return libra.halved(product, args[places[0]], args[places[1]])


def _operand_fixed(place: int, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return compute(node, _with(args, [(place, args[place].detach())]), kwargs)


def _with(args: Iterable[Any], changes: Iterable[tuple[int, Any]]) -> tuple[Any, ...]:
    changed = list(args)
    for place, value in changes:
        changed[place] = value
    return tuple(changed)


def _squared(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] * args[0].detach()


def _glu(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    axis = pick(node, args, kwargs, "dim", -1)
    values, gates = args[0].chunk(2, axis)
    return libra.halved(torch.mul, values, gates.sigmoid())


def _norm(
    rule: Callable[[Tensor, Tensor, tuple[int, ...], Tensor | None, float], Tensor],
) -> Surrogate:
    """A norm over the last axes: its value as it is, its statistics constants."""

    def surrogate(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with torch.no_grad():
            value = compute(node, args, kwargs)
        axes = tuple(range(-len(pick(node, args, kwargs, "normalized_shape")), 0))
        weight, eps = pick(node, args, kwargs, "weight"), _eps(node, args, kwargs)
        first = value[0] if isinstance(value, tuple | list) else value
        changed = rule(first, args[0], axes, weight, eps)
        return (changed, *value[1:]) if isinstance(value, tuple | list) else changed

    return surrogate


def _group_norm(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with torch.no_grad():
        value = compute(node, args, kwargs)
    several = isinstance(value, tuple | list)
    groups = pick(node, args, kwargs, "group" if several else "num_groups")
    weight, eps = pick(node, args, kwargs, "weight"), _eps(node, args, kwargs)
    changed = libra.group_norm(value[0] if several else value, args[0], groups, weight, eps)
    return (changed, *value[1:]) if several else changed


def _eps(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """What is added to a variance; an RMS norm left to itself takes the type's own epsilon."""
    default = next((a.default_value for a in node.target._schema.arguments if a.name == "eps"), None)  # type: ignore[union-attr]
    eps = pick(node, args, kwargs, "eps", default)
    return torch.finfo(args[0].dtype).eps if eps is None else float(eps)


_NORMS: dict[str, Surrogate] = {
    **dict.fromkeys(aten("layer_norm native_layer_norm"), _norm(libra.layer_norm)),
    **dict.fromkeys(aten("rms_norm _fused_rms_norm"), _norm(libra.rms_norm)),
    **dict.fromkeys(aten("group_norm native_group_norm"), _group_norm),
}
