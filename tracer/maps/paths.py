"""The few operations of one step run again, for the gradient that goes through these alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fxplain.labels.flows import Site
from fxplain.run.replay import Replay


def through_path(site: Site, replay: Replay, gradient: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
    """A site's operands, and the gradient that its path alone carries from its output to each of them.

    Without a gradient of the output, that is of the sum of the output: what the path weighs operands by.
    """
    leaves, first = along(site, replay)
    wanted = torch.ones_like(first) if gradient is None else gradient.to(first.dtype)
    found = torch.autograd.grad(first, leaves, wanted, allow_unused=True)
    pairs = zip(leaves, found, strict=True)
    local = [torch.zeros_like(leaf) if grown is None else grown for leaf, grown in pairs]
    return [leaf.detach() for leaf in leaves], local


def along(site: Site, replay: Replay) -> tuple[list[Tensor], Tensor]:
    """Leaves with the values of a site's operands, and what its path makes of them, with its graph."""
    real: dict[fx.Node, Any] = {}
    leaves: list[Tensor] = []
    with torch.enable_grad():
        for node in site.operands:
            value = replay.kept[node.name] if node.name in replay.kept else _call(node, real, replay)
            real[node] = value.detach().clone().requires_grad_()
            leaves.append(real[node])
        for node in site.path:
            real[node] = _call(node, real, replay)
        output = real[site.node]
    return leaves, output[0] if isinstance(output, tuple | list) else output


def _call(node: fx.Node, real: dict[fx.Node, Any], replay: Replay) -> Any:
    def value(used: fx.Node) -> Any:
        if used in real:
            return real[used]
        kept = replay.kept[used.name]
        return kept.detach() if isinstance(kept, Tensor) else kept

    args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
    return node.target(*args, **kwargs)  # type: ignore[operator]
