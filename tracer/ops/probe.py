"""Operations without a transfer function, asked by experiment: do they work token by token?

If noise in some rows of the operand changes these rows of the result and no other, in two draws, the
operation maps every token by itself, and labels are carried as a linear map carries them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from fxplain.labels import Slot, Value
from fxplain.ops.table import Call, Operand

DRAWS = 2


def by_row(call: Call) -> Value | None:
    """The value of the result if the operation provably treats the rows of one labelled operand apart."""
    result = call.result
    if not isinstance(result, Tensor) or not result.is_floating_point() or result.ndim < 2:
        return None
    labelled = [o for o in call.operands() if o.value.labelled and o.tensor.is_floating_point()]
    if len(labelled) != 1 or labelled[0].shape[:-1] != result.shape[:-1] or labelled[0].node is None:
        return None
    operand = labelled[0]
    slots = [slot for slot in operand.value.active if not slot.varies(operand.ndim - 1)]
    if not slots or not all(_rows_apart(call, operand, draw) for draw in range(DRAWS)):
        return None
    return call.carry(*call.operands(), slots=[_narrow(slot) for slot in slots])


def _narrow(slot: Slot) -> Slot:
    return replace(slot, labels=slot.labels.narrow(-1, 0, 1))


def _rows_apart(call: Call, operand: Operand, draw: int) -> bool:
    generator = torch.Generator().manual_seed(draw)
    rows = operand.tensor.shape[:-1].numel()
    chosen = (torch.rand(rows, generator=generator) < 0.5).to(operand.tensor.device)
    if not bool(chosen.any()) or bool(chosen.all()):
        chosen = torch.arange(rows, device=operand.tensor.device) % 2 == draw % 2
    noise = torch.randn(operand.tensor.shape, generator=generator).to(operand.tensor)
    spread = operand.tensor.detach().float().std().clamp_min(1e-3).to(operand.tensor)
    moved = operand.tensor + noise * spread * chosen.view(*operand.shape[:-1], 1)

    def value(node: fx.Node) -> Any:
        return moved if node is operand.node else real[node]

    real = dict(zip(call.node.all_input_nodes, _reals(call), strict=True))
    args, kwargs = fx.node.map_arg((call.node.args, call.node.kwargs), value)
    again = call.node.target(*args, **kwargs)  # type: ignore[operator]
    changed = (again != call.result).reshape(rows, -1).any(-1)
    return bool((changed == chosen).all())


def _reals(call: Call) -> list[Any]:
    """The real values of the node's inputs, in the order of ``all_input_nodes``."""
    found: dict[fx.Node, Any] = {}
    pairs = [*zip(call.node.args, call.args, strict=True)]
    pairs += [(call.node.kwargs[name], call.kwargs[name]) for name in call.node.kwargs]
    for node, real in pairs:
        items = zip(node, real, strict=True) if isinstance(node, list | tuple) else [(node, real)]
        found.update({n: r for n, r in items if isinstance(n, fx.Node)})
    return [found[node] for node in call.node.all_input_nodes]
