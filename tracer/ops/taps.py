"""Where the windows of convolutions and poolings lie, and what each of their places adds to the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from fxplain.labels.call import aten, literal, op_name
from fxplain.labels.flows import Site, Window
from fxplain.labels.labels import compact

POOLINGS = """avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d max_pool2d_with_indices
max_pool3d_with_indices max_pool1d_with_indices mkldnn_max_pool2d"""
ADAPTIVE = """adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d
_adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d"""
CONVOLUTIONS = (
    "conv1d conv2d conv3d convolution _convolution conv_transpose1d conv_transpose2d conv_transpose3d"
)


def concrete(site: Site) -> Site:
    """A site of windows with its map spelled out: rows and columns as [..., grid, place of the kernel].
    Others stay as they are."""
    window = site.map
    if not isinstance(window, Window):
        return site
    places = site.cols.expanded(site.shape).narrow(window.channel, 0, 1)
    neighbours = torch.stack(tap_views(places, site.node, window.shape, window.kernel, window.channel), -1)
    rows = replace(site.rows, labels=site.rows.labels.unsqueeze(-1))
    cols = replace(site.cols, labels=compact(neighbours))
    return replace(site, rows=rows, cols=cols, shape=(*window.shape, neighbours.shape[-1]))


def tap_views(
    tensor: Tensor, node: fx.Node, out_shape: Sequence[int], kernel: Sequence[int], channel: int
) -> list[Tensor]:
    """For each place of the kernel, the element that every output place reads there (0 outside)."""
    if op_name(node) in aten(ADAPTIVE):
        return _adaptive_views(tensor, out_shape, kernel, channel)
    dims = len(kernel)
    # what is not in the graph is as the operation has it: a convolution goes place by place
    usual = [1] * dims if op_name(node) in aten(CONVOLUTIONS) else list(kernel)
    stride = per_axis(literal(node, "stride"), dims) or usual
    dilation = per_axis(literal(node, "dilation"), dims) or [1] * dims
    padding = _padding(node, kernel, dilation)
    out = list(out_shape[channel + 1 :])
    spare = [max(stride) + k * d for k, d in zip(kernel, dilation, strict=True)]
    pads = [
        p for pad, extra in zip(reversed(padding), reversed(spare), strict=True) for p in (pad, pad + extra)
    ]
    padded = torch.nn.functional.pad(tensor, pads)
    views = []
    for place in torch.cartesian_prod(*[torch.arange(k) for k in kernel]).reshape(-1, dims).tolist():
        view = padded
        for axis, offset in enumerate(place):
            index = torch.arange(out[axis], device=tensor.device) * stride[axis] + offset * dilation[axis]
            view = view.index_select(channel + 1 + axis, index.clamp_max(view.shape[channel + 1 + axis] - 1))
        views.append(view)
    return views


def _adaptive_views(
    tensor: Tensor, out_shape: Sequence[int], kernel: Sequence[int], channel: int
) -> list[Tensor]:
    """:func:`tap_views` where windows differ in size: a place beyond the end of one reads nothing."""
    views = []
    for place in torch.cartesian_prod(*[torch.arange(k) for k in kernel]).reshape(-1, len(kernel)).tolist():
        view = tensor
        for axis, offset in enumerate(place, channel + 1):
            start, stop = (t.to(tensor.device) for t in adaptive_windows(tensor.shape[axis], out_shape[axis]))
            inside = (start + offset < stop).view([-1 if a == axis else 1 for a in range(tensor.ndim)])
            view = view.index_select(axis, (start + offset).clamp_max(tensor.shape[axis] - 1))
            view = torch.where(inside, view, torch.zeros((), dtype=view.dtype, device=view.device))
        views.append(view)
    return views


Contribute = Callable[[Tensor, int], Tensor]


def tap_terms(node: fx.Node, kept: Mapping[str, Any], window: Window) -> Contribute:
    """What the element read at one place of the window adds to the output. Each place is asked for once, in
    order."""
    if op_name(node) in aten(CONVOLUTIONS):
        return _convolved(kept[literal(node, "weight").name].detach(), int(literal(node, "groups", 1)))
    if "avg" in op_name(node):
        count = _counted(node, kept, window)
        return lambda view, place: view / count
    result = kept[node.name]
    return _first_largest(result[0].detach() if isinstance(result, tuple | list) else result.detach())


def _first_largest(largest: Tensor) -> Contribute:
    """The largest of a window adds itself, once: the first of several that are equal, as its gradient goes.

    Places are asked for in order.
    """
    missing = torch.ones_like(largest, dtype=torch.bool)

    def contribute(view: Tensor, place: int) -> Tensor:
        chosen = missing & (view == largest)
        missing.logical_and_(~chosen)
        return torch.where(chosen, view, 0.0)

    return contribute


def _counted(node: fx.Node, kept: Mapping[str, Any], window: Window) -> Tensor | int:
    """How many places each window of a mean has."""
    if op_name(node) not in aten(ADAPTIVE):
        return torch.Size(window.kernel).numel()
    data = kept[window.operand.name]
    count: Tensor | int = 1
    for axis in range(window.channel + 1, data.ndim):
        start, stop = adaptive_windows(data.shape[axis], window.shape[axis])
        along = [-1 if other == axis else 1 for other in range(data.ndim)]
        count = count * (stop - start).view(along).to(data.device)
    return count


def _convolved(weight: Tensor, groups: int) -> Contribute:
    flat = weight.reshape(*weight.shape[:2], -1).to(torch.promote_types(weight.dtype, torch.float32))

    def convolve(view: Tensor, place: int) -> Tensor:
        tap = flat[..., place].reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))
        return _CONV[weight.ndim - 2](view, tap, groups=groups)

    return convolve


_CONV: dict[int, Callable[..., Tensor]] = {
    1: torch.nn.functional.conv1d,
    2: torch.nn.functional.conv2d,
    3: torch.nn.functional.conv3d,
}


def per_axis(number: int | Sequence[int] | None, dims: int) -> list[int]:
    if number is None or (not isinstance(number, int) and len(number) == 0):
        return []
    numbers = [number] if isinstance(number, int) else list(number)
    return numbers * dims if len(numbers) == 1 else numbers


def _padding(node: fx.Node, kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    padding, dims = literal(node, "padding", 0), len(kernel)
    if padding == "same":
        return [d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)]
    return [0] * dims if padding == "valid" else per_axis(padding, dims) or [0] * dims


def adaptive_windows(size: int, made: int) -> tuple[Tensor, Tensor]:
    """Where the windows of an adaptive pooling start and stop along an axis; they overlap where sizes do not
    divide."""
    places = torch.arange(made)
    return places * size // made, ((places + 1) * size + made - 1) // made
