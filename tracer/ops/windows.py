"""Convolutions and pooling over a grid: tokens are born on it, or mixed with their neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fxplain.labels.call import Call, aten
from fxplain.labels.flows import Window
from fxplain.labels.labels import Slot, compact
from fxplain.labels.value import Operand, Value
from fxplain.ops.meeting.mixing import new_tokens, pooled, pooled_along, record, record_map
from fxplain.ops.reading import reduced
from fxplain.ops.table import transfer
from fxplain.ops.taps import ADAPTIVE, CONVOLUTIONS, POOLINGS, adaptive_windows, per_axis
from fxplain.ops.tokens import grid_birth

UPSAMPLINGS = """upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d
_upsample_bilinear2d_aa _upsample_bicubic2d_aa interpolate"""


@transfer(*aten(CONVOLUTIONS))
def convolution(call: Call) -> Value:
    """A kernel of one place is a linear map; a wider one bears a grid, or mixes tokens if they have
    attended."""
    operand, weight = call.operands()[:2]
    kernel = tuple(weight.shape[2:])
    channel = operand.ndim - len(kernel) - 1
    if "transpose" in call.op or bool(call.argument("transposed", False)):
        dims = len(kernel)
        strides = per_axis(call.argument("stride"), dims) or [1] * dims
        dilations = per_axis(call.argument("dilation"), dims) or [1] * dims
        sizes = zip(kernel, dilations, strides, strict=True)
        overlap = [channel + 1 + axis for axis, (k, d, s) in enumerate(sizes) if (k - 1) * d >= s]
        note_blending(call, operand, overlap)
        return _at_nearest(call, operand, channel)
    slots = operand.value.active
    if not slots:
        return grid_birth(call, operand, channel)
    of_map = _slid_over_map(slots, operand, call.result, channel)
    if of_map is not None:
        return call.carry(operand, slots=of_map)
    if _over_features(slots, operand, call.result, kernel, summed=[channel]):
        return call.carry(operand, slots=slots)
    if all(size == 1 for size in kernel) and operand.shape[channel + 1 :] == call.result.shape[channel + 1 :]:
        kept = reduced(operand.ndim, [channel], keep=True).survivors(slots)
        return call.carry(operand, slots=kept or pooled_along(call, operand, [channel]))
    return call.carry(operand, slots=[taps(call, operand, slots[0], kernel)])


def _over_features(
    slots: Sequence[Slot], operand: Operand, result: Tensor, kernel: Sequence[int], summed: Sequence[int] = ()
) -> bool:
    """Whether a window, over the last axes, takes in features alone: every axis of tokens stays as it is, a
    place at a time. ``summed``: what it sums over beside the window (the channels of a convolution)."""
    grid = range(operand.ndim - len(kernel), operand.ndim)
    slid = [axis for axis, size in zip(grid, kernel, strict=True) if size > 1]
    resized = [axis for axis in grid if operand.shape[axis] != result.shape[axis]]
    moved = {*summed, *slid, *resized}
    return bool(slid) and not any(slot.varies(axis) for slot in slots for axis in moved)


def _slid_over_map(
    slots: Sequence[Slot], operand: Operand, result: Tensor, channel: int
) -> list[Slot] | None:
    """The labels after a window went over the rows and columns of a map, whose places keep their row and
    column; None where it is no map, or becomes one of another size. Padding around it has no label."""
    if len(slots) < 2 or any(slot.varies(channel) for slot in slots):
        return None
    kept = list(slots)
    for axis in range(channel + 1, operand.ndim):
        if operand.shape[axis] == result.shape[axis]:
            continue
        lines = [_labelled_places(slot, axis) for slot in slots if slot.varies(axis)]
        inside = next((line for line in lines if len(line) == result.shape[axis]), None)
        if inside is None:
            return None
        kept = [_narrowed(slot, axis, inside) for slot in kept]
    return kept


def _labelled_places(slot: Slot, axis: int) -> Tensor:
    others = [other for other in range(slot.labels.ndim) if other != axis]
    return slot.labels.amax(others).reshape(-1).nonzero().reshape(-1)


def _narrowed(slot: Slot, axis: int, places: Tensor) -> Slot:
    if not slot.varies(axis):
        return slot
    return replace(slot, labels=slot.labels.index_select(axis, places))


def taps(call: Call, operand: Operand, old: Slot, kernel: Sequence[int]) -> Slot:
    """New tokens on the output's grid, each made of the old ones in its window.

    Which old token each place of the kernel reads is worked out by :func:`concrete`, if anybody asks: a
    convolutional stem has fifty of these, and its tokens count from its end.
    """
    first = call.result[0] if isinstance(call.result, tuple) else call.result
    shape, channel = tuple(first.shape), operand.ndim - len(kernel) - 1
    if old.varies(channel):  # features of several tokens side by side: one token a place first
        old = pooled(call, operand, old, [channel]) or old
    kept = [axis for axis in sorted(old.axes) if axis < channel]
    grid = range(channel + 1, operand.ndim)
    features = [axis for axis in grid if operand.shape[axis] > 1 and not old.varies(axis)]
    kept += [axis for axis in grid if shape[axis] > 1 and axis not in features]
    gone = [channel, *features]
    sizes = [1 if axis in gone else size for axis, size in enumerate(shape)]
    rows = new_tokens(call, old, kept, sizes, kernel)
    assert operand.node is not None
    window = Window(operand.node, tuple(kernel), channel, shape)
    new = record_map(call, window, operand.shape, rows, old)
    return replace(rows, reads=new.reads)


@transfer(*aten(POOLINGS))
def pooling(call: Call) -> Value | tuple[Value, ...]:
    """Windows of a pooling: a new grid before any attention, else taps like a convolution's."""
    operand = call.operands()[0]
    dims = 1 if "1d" in call.op else 3 if "3d" in call.op else 2
    slots = operand.value.active
    kernel = per_axis(call.argument("kernel_size"), dims)
    first = call.result[0] if isinstance(call.result, tuple) else call.result
    if not slots:
        value = _resized(call, operand, operand.ndim - dims)
    elif _over_features(slots, operand, first, kernel):
        value = call.carry(operand, slots=slots)
    else:
        value = call.carry(operand, slots=[taps(call, operand, slots[0], kernel)])
    return (value, value) if isinstance(call.result, tuple) else value


@transfer(*aten(ADAPTIVE))
def adaptive_pooling(call: Call) -> Value | tuple[Value, ...]:
    """Pooling to a given grid; every old place goes into the new place that covers it."""
    operand = call.operands()[0]
    dims = 1 if "1d" in call.op else 3 if "3d" in call.op else 2
    first = call.result[0] if isinstance(call.result, tuple) else call.result
    channel = operand.ndim - dims - 1
    slots = operand.value.active
    space = list(range(channel + 1, operand.ndim))
    if operand.shape == first.shape:
        value = call.carry(operand, slots=operand.value.slots)
    elif not slots:
        value = _resized(call, operand, channel + 1)
    elif all(first.shape[axis] == 1 for axis in space):
        value = call.carry(operand, slots=pooled_along(call, operand, space))
    elif all(operand.shape[axis] % first.shape[axis] == 0 for axis in space):
        value = call.carry(operand, slots=[_regrid(call, operand, slots[0], channel, tuple(first.shape))])
    else:
        starts = [adaptive_windows(operand.shape[axis], first.shape[axis]) for axis in space]
        kernel = [int((stop - start).max()) for start, stop in starts]
        value = call.carry(operand, slots=[taps(call, operand, slots[0], kernel)])
    return (value, value) if isinstance(call.result, tuple) else value


def _regrid(call: Call, operand: Operand, old: Slot, channel: int, shape: tuple[int, ...]) -> Slot:
    kept = [a for a in sorted(old.axes) if a <= channel] + [
        a for a in range(channel + 1, len(shape)) if shape[a] > 1
    ]
    rows = new_tokens(call, old, kept, [1 if a == channel else s for a, s in enumerate(shape)])
    on_old = rows.labels
    for axis in range(channel + 1, operand.ndim):
        index = torch.arange(operand.shape[axis]) * on_old.shape[axis] // operand.shape[axis]
        on_old = on_old.index_select(axis, index)
    new = record(call, operand, replace(rows, labels=on_old), old)
    return replace(rows, reads=new.reads)


@transfer(*aten(UPSAMPLINGS))
def upsampling(call: Call) -> Value:
    """Every new place belongs to the nearest old token."""
    operand = call.operands()[0]
    channel = operand.ndim - (1 if "1d" in call.op else 3 if "3d" in call.op else 2) - 1
    grid = range(channel + 1, operand.ndim)
    note_blending(call, operand, [axis for axis in grid if operand.shape[axis] != call.result.shape[axis]])
    return _at_nearest(call, operand, channel)


BLENDING = "resampling", "blends neighbouring tokens; each place counts as the nearest"


def note_blending(call: Call, operand: Operand, axes: Sequence[int]) -> None:
    """Note that places along these axes are made of several tokens, and count as the one of their labels."""
    if any(slot.varies(axis) for slot in operand.value.active for axis in axes):
        call.ledger.remarks.unfollowed[call.node] = BLENDING


def _resized(call: Call, operand: Operand, first: int) -> Value:
    """Data that bears no tokens yet, pooled by windows: every new place belongs to one that it covers."""
    result = call.result[0] if isinstance(call.result, tuple) else call.result
    if all(size == 1 for size in result.shape[first:]):
        return call.carry(operand)
    slots = []
    for slot in operand.value.slots:
        labels = slot.expanded(operand.shape)
        for axis in range(first, operand.ndim):
            labels = _nearest(labels, axis, result.shape[axis])
        slots.append(replace(slot, labels=compact(labels)))
    return call.carry(operand, slots=slots)


def _nearest(labels: Tensor, axis: int, size: int) -> Tensor:
    return labels.index_select(axis, torch.arange(size) * labels.shape[axis] // size)


def _at_nearest(call: Call, operand: Operand, channel: int) -> Value:
    slots = []
    for slot in operand.value.active:
        labels = slot.expanded(operand.shape)
        if "conv" in call.op:  # channels are summed up
            if slot.varies(channel):
                raise ValueError("a transposed convolution over features of several tokens")
            labels = labels.narrow(channel, 0, 1)
        for axis in range(channel + 1, operand.ndim):
            labels = _nearest(labels, axis, call.result.shape[axis])
        slots.append(replace(slot, labels=compact(labels)))
    if slots or operand.value.labelled:
        return call.carry(operand, slots=slots)
    return grid_birth(call, operand, channel) if "conv" in call.op else _resized(call, operand, channel + 1)


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
    on_windows = replace(rows, labels=compact(windows.repeat(1, channels, 1)))
    new = record(call, operand, on_windows, old)
    return replace(rows, reads=new.reads)
