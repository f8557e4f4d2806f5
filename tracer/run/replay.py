"""Run the captured graph again with gradients that start at the attentions, and no earlier."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from fxplain.capture.captured import Captured
from fxplain.capture.guard import same_random_numbers
from fxplain.labels.flows import Site
from fxplain.ops.kernels import compute
from fxplain.run.entries import Entries, Entry
from fxplain.run.mask_flags import PlainMasks

Surrogate = Callable[[fx.Node, "tuple[Any, ...]", "dict[str, Any]"], Any]
"""(node, its arguments by place, by name) -> what to go on with in place of the operation's own result."""
Surrogates = Mapping[fx.Node, Surrogate]
NO_SURROGATES: Surrogates = MappingProxyType({})
Gradients = Mapping[str, "Tensor | None"]
"""Node -> gradient of a score to its tapped tensor; None where the score does not depend on it."""
Check = Callable[[str, "Tensor | None"], None]
"""Sees a node's name and the gradient to its tapped tensor, and may refuse it."""


@dataclass(frozen=True)
class Replay:
    """One forward pass: the outputs, and what the sites need, by node."""

    outputs: tuple[Tensor, ...]
    tapped: Mapping[str, Tensor]
    """Node -> the tensor that gradients are taken of (a map, or the output of a fused or mixing site)."""
    kept: Mapping[str, Any]
    """Node -> its value, for the operands of the sites."""
    causal: Mapping[str, bool] = field(default_factory=dict)
    """Kernel -> whether its mask is causal, where that or nothing is all that the mask says."""
    largest: int = 0
    """Bytes of the largest value with a gradient."""
    entries: tuple[Entry, ...] = ()
    """Where inputs enter, if gradients there are wanted."""
    backward: Callable[[Tensor, Check], Gradients] | None = None
    """How gradients are taken, where the graph does not hold what they need."""
    values: dict[fx.Node, Any] = field(default_factory=dict)
    """Every node's value without its gradient, in order, where all were asked for."""

    def gradients(self, score: Tensor, retain: bool, check: Check) -> Gradients:
        """The gradients of a score to all that is tapped, each checked as soon as it is there."""
        if self.backward is not None:
            return self.backward(score, check)
        found = gradients_of(score, self.differentiated, retain)
        for name in self.tapped:
            check(name, found.get(name))
        return found

    @property
    def differentiated(self) -> Mapping[str, Tensor]:
        """All tensors that gradients are taken of, by name; entries by theirs."""
        entered = {entry_name(place): entry.tensor for place, entry in enumerate(self.entries)}
        return {**self.tapped, **entered} if entered else self.tapped


def entry_name(place: int) -> str:
    """What the gradient at an entry goes by among those at nodes."""
    return f"entry {place}"


def replay(
    captured: Captured,
    bound: Mapping[str, Tensor],
    sites: Iterable[Site],
    gradients: bool,
    surrogates: Surrogates = NO_SURROGATES,
    entries: Entries | None = None,
    everything: bool = False,
) -> Replay:
    """Run the graph, keeping the operands of the sites, or ``everything``; with gradients from the first of
    the sites on, or from where inputs enter.

    Nothing before that is differentiated, and no parameter is.
    """
    sites = tuple(sites)
    taps = {site.tap for site in sites}
    wanted = {node for site in sites for node in site.keeps}
    tapped: dict[str, Tensor] = {}
    kept: dict[str, Any] = {}
    values: dict[fx.Node, Any] = {}
    largest = 0

    def change(node: fx.Node, value: Any) -> Any:
        nonlocal largest
        if entries is not None:
            value = entries.change(node, value)
        if node in taps:
            value, tapped[node.name] = tap(value, gradients)
        if node in wanted:
            kept[node.name] = value
        if everything:
            values[node] = _detached(value)
        if isinstance(value, Tensor) and value.requires_grad:
            largest = max(largest, value.nbytes)
        return value

    masks = PlainMasks(sites)
    plain: dict[fx.Node, Surrogate] = dict.fromkeys(masks.nodes, masks.run)
    with same_random_numbers(), torch.set_grad_enabled(gradients):  # those that labels were made with
        outputs = execute(captured, bound, change, {**plain, **surrogates})
    found = tuple(entries.found) if entries else ()
    return Replay(outputs, tapped, kept, masks.causal, largest, found, values=values)


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    return type(value)(map(_detached, value)) if type(value) in (tuple, list) else value


def execute(
    captured: Captured,
    bound: Mapping[str, Tensor],
    change: Callable[[fx.Node, Any], Any],
    surrogates: Surrogates = NO_SURROGATES,
    known: Mapping[fx.Node, Any] = MappingProxyType({}),
) -> tuple[Tensor, ...]:
    """The graph's outputs.

    Args:
        captured, bound: the graph, and a tensor for each of its placeholders.
        change: sees every value as it is computed, and answers with the one to go on with.
        surrogates: what is run in place of some operations.
        known: values that are taken as they are; what only they depend on is not run.
    """
    nodes = _needed(captured.graph.graph, known)
    last_use = {used: node for node in nodes if node not in known for used in node.all_input_nodes}
    real: dict[fx.Node, Any] = {}
    for node in nodes:
        if node.op == "output":
            return tuple(real[n] for n in node.args[0] if isinstance(n, fx.Node))  # type: ignore[union-attr]
        if node in known:
            real[node] = known[node]
            continue
        real[node] = change(node, run_node(captured, bound, node, real, surrogates))
        for used in node.all_input_nodes:
            if last_use[used] is node:
                real.pop(used, None)
    raise AssertionError("a graph without output")


def _needed(graph: fx.Graph, known: Mapping[fx.Node, Any]) -> list[fx.Node]:
    """The nodes that the outputs depend on if some are known, in order; all if none is."""
    nodes = list(graph.nodes)
    if not known:
        return nodes
    needed = {nodes[-1]}
    for node in reversed(nodes):
        if node in needed and node not in known:
            needed.update(node.all_input_nodes)
    return [node for node in nodes if node in needed]


def run_node(
    captured: Captured,
    bound: Mapping[str, Tensor],
    node: fx.Node,
    real: Mapping[fx.Node, Any],
    surrogates: Surrogates,
) -> Any:
    """The value of one node, from those of its operands."""
    if node.op == "placeholder":
        return bound[node.name]
    if node.op == "get_attr":
        return getattr(captured.graph, str(node.target))
    args, kwargs = arguments(node, real)
    if node in surrogates:
        return surrogates[node](node, args, kwargs)
    return compute(node, args, kwargs)


def arguments(node: fx.Node, real: Mapping[fx.Node, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A node's arguments with real values in the place of nodes."""
    return fx.node.map_arg((node.args, node.kwargs), lambda n: real[n])


def tap(value: Any, gradients: bool) -> tuple[Any, Tensor]:
    """Make a tensor one that gradients can be taken of; of several results the first is the output."""
    several = isinstance(value, tuple | list)
    tensor: Tensor = value[0] if several else value
    if gradients and not tensor.requires_grad:
        tensor = tensor.detach().requires_grad_()
    return ((tensor, *value[1:]) if several else tensor), tensor


def gradients_of(
    score: Tensor, tapped: Mapping[str, Tensor], retain: bool = False
) -> dict[str, Tensor | None]:
    """The gradient of a scalar score to each tapped tensor; None where the score does not depend on it."""
    names = [name for name, tensor in tapped.items() if tensor.requires_grad]
    if not names:
        return {}
    found = torch.autograd.grad(
        score, [tapped[name] for name in names], allow_unused=True, retain_graph=retain
    )
    return dict(zip(names, found, strict=True))
