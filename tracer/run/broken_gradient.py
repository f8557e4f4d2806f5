"""Where a gradient ends, or stops being finite: looked for once one is missing."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from fxplain.run.replay import Surrogates, execute, tap
from fxplain.run.target import Resolved, rescored
from fxplain.where import place_of

if TYPE_CHECKING:
    from fxplain.attention.labelled import Labelled


def origin(
    labelled: Labelled, bound: Mapping[str, Tensor], surrogates: Surrogates, resolved: Resolved
) -> fx.Node | None:
    """The operation whose result has a finite gradient and whose operand has none, if that is seen."""
    captured = labelled.captured
    taps = {site.tap for site in labelled.classified.sites}
    tapped: list[Tensor] = []
    finite: dict[fx.Node, bool] = {}

    def watch(node: fx.Node, value: Any) -> Any:
        if node in taps:
            value, tensor = tap(value, gradients=True)
            tapped.append(tensor)
        for tensor in value if isinstance(value, (tuple, list)) else [value]:
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(lambda g: finite.update({node: bool(g.isfinite().all())}))  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        outputs = execute(captured, bound, watch, surrogates)
        scores = rescored(resolved, outputs, labelled.findings, captured)
        torch.autograd.grad(scores.sum(), tapped, allow_unused=True)
    last = next((node for node in reversed(captured.graph.graph.nodes) if finite.get(node) is False), None)
    return None if last is None else next((user for user in last.users if finite.get(user)), last)


def ended(labelled: Labelled, output: str) -> str:
    """In words, that no gradient of an output reaches an attention, and where its way ends."""
    text = f"no path from {len(labelled.classified.attentions)} attentions to the score"
    choice = _choice(labelled, output)
    if choice is None:
        return text
    return f"{text}: {place_of(choice)} chooses numbers of entries, and no gradient passes a choice"


def _choice(labelled: Labelled, output: str) -> fx.Node | None:
    """The first choice (whose result is integers) that lies between the attentions and an output."""
    graph = labelled.captured.graph.graph
    node: fx.Node
    results = next(node for node in graph.nodes if node.op == "output").args[0]
    behind = {results[labelled.captured.outputs.index(output)]}
    for node in reversed(graph.nodes):
        if node in behind:
            behind.update(node.all_input_nodes)
    carried = {site.node for site in labelled.classified.sites if site.attends}
    for node in graph.nodes:
        if any(used in carried for used in node.all_input_nodes):
            carried.add(node)
            value = node.meta.get("val")
            if node in behind and isinstance(value, Tensor) and not value.dtype.is_floating_point:
                return node.all_input_nodes[0] if node.target is operator.getitem else node
    return None
