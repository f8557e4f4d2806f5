"""Fourier transforms: along features they work token by token; along tokens they mix all of them.

A spectrum has no tokens. Those that it is of come back where it is transformed back, or where its real part
is taken for data (as in FNet): each place stands for the token that lay there, and takes in the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fxplain.labels import Slot, Spectrum, Value
from fxplain.ops.operator import follow_operator
from fxplain.ops.table import Call, Operand, aten, transfer

FORWARD = "fft_fft fft_rfft fft_fft2 fft_rfft2 fft_fftn fft_rfftn"
BACKWARD = "fft_ifft fft_irfft fft_ifft2 fft_irfft2 fft_ifftn fft_irfftn fft_hfft"
MIXING = "FFT mixing", "a Fourier transform along tokens mixes all of them"
LAST_TWO = [-2, -1]


@transfer(*aten(FORWARD))
def forward(call: Call) -> Value:
    """Labels of tokens along the transformed axes are set aside; others stay."""
    operand = call.operands()[0]
    axes = _axes(call, operand)
    if not any(slot.varies(axis) for slot in operand.value.active for axis in axes):
        return call.carry(operand, slots=operand.value.active)
    call.ledger.unfollowed[call.node] = MIXING
    return call.carry(operand, spectrum=Spectrum(operand.value.active, operand.shape, operand.node))


@transfer(*aten(BACKWARD))
def backward(call: Call) -> Value:
    """The tokens whose spectrum it was come back to their places."""
    operand = call.operands()[0]
    known = operand.value.spectrum
    if known is not None:
        if call.result.ndim != len(known.shape):
            raise ValueError("a spectrum of tokens is transformed back to other axes")
        return call.carry(operand, slots=_mixed(call, known), spectrum=None)
    if any(slot.varies(axis) for slot in operand.value.active for axis in _axes(call, operand)):
        call.ledger.unfollowed[call.node] = MIXING
    return call.carry(operand, slots=operand.value.active)


@transfer("aten::fft_fftshift", "aten::fft_ifftshift")
def shifted(call: Call) -> Value:
    """A spectrum in another order; tokens in another order, where there is none."""
    operand = call.operands()[0]
    slots = [slot.run(lambda labels: _again(call, labels), operand.shape) for slot in operand.value.slots]
    return call.carry(operand, slots=slots)


def taken_for_data(call: Call, value: Value) -> Value:
    """The value of a spectrum's real part or size: tokens are back where the shape is theirs."""
    known = value.spectrum
    if known is None or value.slots or tuple(call.result.shape) != known.shape:
        return value
    return replace(value, slots=tuple(_mixed(call, known)), spectrum=None)


def _mixed(call: Call, known: Spectrum) -> list[Slot]:
    """The tokens at their places in the result, where each has taken in the others."""
    found = []
    for slot in known.slots:
        made = replace(slot, labels=_fitted(slot.labels, known.shape, call.result.shape))
        taken = (
            follow_operator(call, known.source, slot, made, alone=False) if known.source is not None else None
        )
        found.append(taken or made)
    return found


def _fitted(labels: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Labels of a tensor that is longer now, for it was padded, or shorter; places beyond have none."""
    for axis, size in enumerate(labels.shape):
        if size > 1 and new[axis] != old[axis]:
            kept = labels.narrow(axis, 0, min(size, new[axis]))
            beyond = [new[axis] - kept.shape[axis] if a == axis else n for a, n in enumerate(kept.shape)]
            labels = torch.cat([kept, kept.new_zeros(beyond)], axis)
    return labels


def _again(call: Call, labels: Tensor) -> Tensor:
    moved: Tensor = call.node.target(labels, *call.args[1:], **call.kwargs)  # type: ignore[operator]
    return moved


def _axes(call: Call, operand: Operand) -> list[int]:
    """The transformed axes: all of them, the last two or the last one, where none are named."""
    default = -1 if call.op.removeprefix("aten::fft_").removeprefix("i") in ("fft", "rfft", "hfft") else None
    dims = call.argument("dim", LAST_TWO if call.op.endswith("2") else default)
    dims = list(range(operand.ndim)) if dims is None else [dims] if isinstance(dims, int) else list(dims)
    return [int(dim) % operand.ndim for dim in dims]
