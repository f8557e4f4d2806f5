"""Operations without a transfer function, asked by experiment: element by element, or token by token?

Noise goes into some places of the operand. If exactly these places of the result change, in two draws, the
operation treats every place by itself, and labels stay; if exactly these rows do, it treats every row so, and
labels are carried as a linear map carries them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fxplain.labels.call import Call
from fxplain.labels.value import Operand, Value
from fxplain.ops.reading import reduced

DRAWS = 2


def by_experiment(call: Call) -> Value | None:
    """The value of the result if the operation provably treats the places, or rows, of one operand apart."""
    result = call.result
    if not isinstance(result, Tensor) or not result.is_floating_point() or not result.ndim:
        return None
    labelled = [o for o in call.operands() if o.value.labelled and o.tensor.is_floating_point()]
    if len(labelled) != 1 or labelled[0].node is None:
        return None
    operand = labelled[0]
    slots = operand.value.active
    if operand.shape == tuple(result.shape) and _apart(call, operand, operand.ndim):
        return call.carry(*call.operands(), slots=slots)
    last = operand.ndim - 1
    kept = reduced(operand.ndim, [last], keep=True).survivors(slots)
    within_rows = operand.shape[:last] == tuple(result.shape[:-1]) and len(kept) == len(slots)
    if operand.ndim > 1 and within_rows and _apart(call, operand, last):
        return call.carry(*call.operands(), slots=kept)
    return None


def _apart(call: Call, operand: Operand, axes: int) -> bool:
    """Whether noise at places along the first ``axes`` axes changes the result at these places alone."""
    return all(_stays(call, operand, axes, draw) for draw in range(DRAWS))


def _stays(call: Call, operand: Operand, axes: int, draw: int) -> bool:
    generator = torch.Generator().manual_seed(draw)
    shape = operand.shape[:axes]
    chosen = torch.rand(shape, generator=generator) < 0.5
    if not bool(chosen.any()) or bool(chosen.all()):
        chosen = (torch.arange(chosen.numel()) % 2 == draw % 2).view(shape)
    chosen = chosen.to(operand.tensor.device)
    noise = torch.randn(operand.shape, generator=generator).to(operand.tensor)
    scale = operand.tensor.detach().float().std().clamp_min(1e-3).to(operand.tensor)
    where = chosen.view(*shape, *[1] * (operand.ndim - axes))
    again = _again(call, operand, operand.tensor + noise * scale * where)
    changed = (again != call.result).reshape(*shape, -1).any(-1)
    # a place that noise does not move (the flat part of a clamp) is no proof of anything: others must
    return bool((changed <= chosen).all()) and bool(changed.any())


def _again(call: Call, operand: Operand, moved: Tensor) -> Tensor:
    """The operation once more, with the operand replaced."""
    real = _reals(call)

    def value(node: fx.Node) -> Any:
        return moved if node is operand.node else real[node]

    args, kwargs = fx.node.map_arg((call.node.args, call.node.kwargs), value)
    result: Tensor = call.node.target(*args, **kwargs)  # type: ignore[operator]
    return result


def _reals(call: Call) -> dict[fx.Node, Any]:
    """The real values of the node's inputs."""
    found: dict[fx.Node, Any] = {}
    pairs = [*zip(call.node.args, call.args, strict=True)]
    pairs += [(call.node.kwargs[name], call.kwargs[name]) for name in call.node.kwargs]
    for node, real in pairs:
        items = zip(node, real, strict=True) if isinstance(node, list | tuple) else [(node, real)]
        found.update({n: r for n, r in items if isinstance(n, fx.Node)})
    return found
