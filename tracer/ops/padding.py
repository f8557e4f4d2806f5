"""Padding: places that no token has."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fxplain.labels import Value
from fxplain.ops.catenation import side_by_side, unsqueezed
from fxplain.ops.table import Call, Operand, transfer


@transfer("aten::constant_pad_nd", "aten::pad")
def pad(call: Call) -> Value:
    """Padding has no label: pad the labels with zeros, whatever the data are padded with."""
    operand = call.operands()[0]
    mode = call.argument("mode", "constant")
    padding = list(call.argument("pad"))

    def operation(labels: Tensor) -> Tensor:
        if mode == "constant":
            return torch.nn.functional.pad(labels, padding)
        return torch.nn.functional.pad(labels.double(), padding, mode=mode).round().long()

    return call.carry(operand, slots=[slot.run(operation, operand.shape) for slot in operand.value.slots])


@transfer("aten::pad_sequence")
def pad_sequence(call: Call) -> Value:
    """Sequences of several lengths, one for each sample: padded, then stacked."""
    operands = call.operands()
    longest = max(operand.shape[0] for operand in operands)
    before = call.argument("padding_side", "right") == "left"
    axis = 0 if call.argument("batch_first", False) else 1
    return side_by_side(call, [unsqueezed(_filled(o, longest, before), axis) for o in operands], axis)


def _filled(operand: Operand, length: int, before: bool) -> Operand:
    """The operand with so many places along its first axis."""
    missing = length - operand.shape[0]
    sides = (missing, 0) if before else (0, missing)

    def padded(tensor: Tensor) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, 0) * (tensor.ndim - 1) + sides)

    slots = (
        [slot.run(padded, operand.shape) for slot in operand.value.slots] if missing else operand.value.slots
    )
    return replace(operand.with_slots(slots), tensor=padded(operand.tensor))
