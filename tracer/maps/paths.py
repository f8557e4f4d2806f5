"""The few operations of one step run again, for the gradient that goes through these alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxplain.run.replay import Replay


def through_path(
    operands: Sequence[fx.Node],
    path: Sequence[fx.Node],
    replay: Replay,
    gradient: Tensor | None,
    shape: Sequence[int] | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Operands, and the gradient that a path alone carries from its last operation to each of them.

    Without a gradient of the output, that is of the sum of the output: what the path weighs operands by.
    """
    leaves, output = along(operands, path, replay, shape)
    wanted = torch.ones_like(output) if gradient is None else gradient.to(output.dtype)
    found = torch.autograd.grad(output, leaves, wanted, allow_unused=True)
    pairs = zip(leaves, found, strict=True)
    local = [torch.zeros_like(leaf) if grown is None else grown for leaf, grown in pairs]
    return [leaf.detach() for leaf in leaves], local


def along(
    operands: Sequence[fx.Node],
    path: Sequence[fx.Node],
    replay: Replay,
    shape: Sequence[int] | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Leaves with the values of operands, and what a path makes of them, with its graph.

    ``shape``: what the operands are broadcast to.
    """
    real: dict[fx.Node, Any] = {}
    leaves: list[Tensor] = []
    with torch.enable_grad():
        for node in operands:
            value = replay.kept[node.name] if node.name in replay.kept else _call(node, real, replay)
            value = value.detach() if shape is None else value.detach().expand(tuple(shape))
            real[node] = value.clone().requires_grad_()
            leaves.append(real[node])
        for node in path:
            real[node] = _call(node, real, replay)
    output = real[path[-1]]
    return leaves, output[0] if isinstance(output, tuple | list) else output


def _call(node: fx.Node, real: dict[fx.Node, Any], replay: Replay) -> Any:
    def value(used: fx.Node) -> Any:
        if used in real:
            return real[used]
        kept = replay.kept[used.name]
        return kept.detach() if isinstance(kept, Tensor) else kept

    args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
    return node.target(*args, **kwargs)  # type: ignore[operator]
