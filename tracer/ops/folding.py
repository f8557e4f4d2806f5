"""Folding windows back onto a grid: a layout where they lie side by side, a mixing where they overlap."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fxplain.labels import Slot, Value, compact
from fxplain.ops.mixing import new_tokens, record
from fxplain.ops.table import Call, Operand, transfer


@transfer("aten::col2im")
def folding(call: Call) -> Value:
    """Every element of the windows goes to one place of the grid; places that get several are new tokens."""
    operand = call.operands()[0]
    if not operand.value.active:
        return call.carry(operand)
    if int(_folded(call, torch.ones(operand.shape, dtype=torch.float64)).max()) == 1:
        moved = [(s, _folded(call, s.expanded(operand.shape).double())) for s in operand.value.active]
        return call.carry(operand, slots=[replace(s, labels=compact(m.round().long())) for s, m in moved])
    if operand.ndim != 3:
        raise ValueError("overlapping windows without a batch axis")
    return call.carry(operand, slots=[_summed(call, operand, operand.value.active[0])])


def _folded(call: Call, windows: Tensor) -> Tensor:
    """The operation itself on other numbers."""
    result: Tensor = call.node.target(windows, *call.args[1:], **call.kwargs)  # type: ignore[operator]
    return result


def _summed(call: Call, operand: Operand, old: Slot) -> Slot:
    """New tokens on the grid [batch, 1, height, width]; each element of the windows goes into one of them."""
    _, channels, height, width = call.result.shape
    wide = replace(old, labels=old.labels.reshape(old.labels.shape[0], 1, 1, -1))
    kept = [axis for axis in (0, 2, 3) if axis or old.varies(0)]
    rows = new_tokens(call, wide, kept, (old.labels.shape[0], 1, height, width))
    names = ("kernel_size", "dilation", "padding", "stride")
    geometry = [call.argument(name) for name in names]
    grid = rows.labels.expand(-1, 1, height, width).double()
    windows = torch.ops.aten.im2col(grid, *geometry).round().long()
    spread = replace(rows, labels=compact(windows.repeat(1, channels, 1)))
    new = record(call, "pooled", [operand], spread, old, tuple(operand.shape))
    return replace(rows, reads=new.reads)
