"""The effective map of sampling at points: weights of the sum times weights of the interpolation.

Deformable attention (Zhu et al., "Deformable DETR", ICLR 2021, eqs. 2 and 3) sums weighted samples of a grid
at points that each query asks for. A sample is a weighted sum of the grid's places around the point, so the
whole is a linear map from places to queries, as an attention is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from fxplain.attention.lines import samples_on_map
from fxplain.labels.call import literal
from fxplain.labels.flows import Sampled, Site
from fxplain.maps.paths import through_path
from fxplain.ops.sampling import NEAREST
from fxplain.run.replay import Replay

BORDER, REFLECTION = 1, 2
"""Codes of grid sampling's padding; 0 fills with zeros."""


def sampled_map(
    map: Sampled, site: Site, replay: Replay, gradient: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The map A [head, *points, place] of a sampled site, places of several grids side by side.

    With a gradient, what is returned for A is ∇A ⊙ A (gradient times contribution of each place, see
    ``DESIGN.md``), and ones for ∇A: a weight need not be one number for all features, but their product is.
    """
    _, wanted = through_path(map.operands, map.path, replay, gradient)
    parts = []
    for node, local in zip(map.operands, wanted, strict=True):
        data, grid = (replay.kept[used.name].detach() for used in node.all_input_nodes[:2])
        dtype = torch.promote_types(data.dtype, torch.float32)
        data, grid, local = data.to(dtype), grid.to(dtype), local.to(dtype)
        parts.append(_spread(site, node, data, grid, local, gradient is not None))
    maps = torch.cat(parts, -1)
    return maps, None if gradient is None else torch.ones_like(maps)


def point_weights(site: Site, replay: Replay, batch: int) -> Tensor:
    """What each sample is weighed by: [batch, head, query, point], points of several grids side by side.

    Queries are in the order of the rows, points in that of the axes they lie on. Where features are weighed
    differently, it is their mean.
    """
    _, local = through_path(site.map.operands, site.map.path, replay, None)
    rows = [axis for axis, size in enumerate(site.shape[:-1]) if axis and size > 1]
    parts = []
    for weights in (wide.mean(1) for wide in local):
        axes = [0, *rows, *(axis for axis in range(1, weights.ndim) if axis not in rows)]
        count = torch.Size([weights.shape[axis] for axis in rows]).numel()
        parts.append(weights.permute(axes).reshape(len(weights), count, -1))
    found = torch.cat(parts, -1)
    samples = samples_on_map(site, batch).flatten(1).amax(1)
    order = torch.argsort(samples.expand(len(found)), stable=True).to(found.device)
    heads = max(len(found) // batch, 1)
    return found[order].view(-1, heads, *found.shape[1:])


def _spread(site: Site, node: fx.Node, data: Tensor, grid: Tensor, local: Tensor, weighed: bool) -> Tensor:
    """Each sample's weight given to the places around its point: [head, *points, place].

    ``local`` is [head, feature, *points]; ``weighed`` says that it is a gradient, to be multiplied with
    what the place contributes.
    """
    sizes = data.shape[2:]
    count, values = torch.Size(sizes).numel(), data.flatten(2)
    total = local.new_zeros(*grid.shape[:-1], count)
    for place, weight in corners(grid, sizes, *_options(node)):
        if weighed:
            index = place.flatten(1).unsqueeze(1).expand(-1, values.shape[1], -1)
            taken = values.gather(2, index).view(local.shape)
            strength = (local * taken).sum(1) * weight
        else:
            strength = local.mean(1) * weight
        total.scatter_add_(-1, place.unsqueeze(-1), strength.unsqueeze(-1))
    axes = [axis for axis in range(1, total.ndim - 1) if site.shape[axis] != total.shape[axis]]
    return total.sum(axes, keepdim=True) if axes else total


def _options(node: fx.Node) -> tuple[int, int, bool]:
    names = ("interpolation_mode", "padding_mode", "align_corners")
    mode, padding, aligned = (literal(node, name) for name in names)
    return int(mode), int(padding), bool(aligned)


def corners(
    grid: Tensor, sizes: Sequence[int], mode: int, padding: int, aligned: bool
) -> list[tuple[Tensor, Tensor]]:
    """The places that each point is interpolated from, and their weights; both of the points' shape.

    ``grid`` is [..., axis], from -1 to 1, the last axis of ``sizes`` first, as ``grid_sample`` takes it. A
    place outside has weight 0.

    Example:
        >>> pairs = corners(torch.tensor([[0.25, -1.0]]), (1, 4), 0, 1, True)
        >>> [(int(place), round(float(weight), 3)) for place, weight in pairs if weight > 0]
        [(1, 0.125), (2, 0.875)]
    """
    found = [
        (torch.zeros(grid.shape[:-1], dtype=torch.int64, device=grid.device), torch.ones_like(grid[..., 0]))
    ]
    for axis, size in enumerate(sizes):
        line = _along(grid[..., len(sizes) - 1 - axis], size, mode, padding, aligned)
        found = [(place * size + own, weight * w) for place, weight in found for own, w in line]
    return found


def _along(points: Tensor, size: int, mode: int, padding: int, aligned: bool) -> list[tuple[Tensor, Tensor]]:
    """The one or two places along one axis, and their weights."""
    at = (points + 1) / 2 * (size - 1) if aligned else ((points + 1) * size - 1) / 2
    if padding == REFLECTION:
        at = _reflected(at, size, aligned)
    if padding in (BORDER, REFLECTION):
        at = at.clamp(0, size - 1)
    low = at.round() if mode == NEAREST else at.floor()
    pairs = [(low, torch.ones_like(at))] if mode == NEAREST else [(low, low + 1 - at), (low + 1, at - low)]
    inside = [(place, torch.where((place >= 0) & (place < size), weight, 0.0)) for place, weight in pairs]
    return [(place.clamp(0, size - 1).long(), weight) for place, weight in inside]


def _reflected(at: Tensor, size: int, aligned: bool) -> Tensor:
    """Mirrored at the first and last place, or at the borders of these where corners are not aligned."""
    low, span = (0.0, float(size - 1)) if aligned else (-0.5, float(size))
    if span == 0:
        return torch.zeros_like(at)
    away = (at - low).abs()
    rest, turns = away.remainder(span), (away / span).floor()
    return torch.where(turns % 2 == 0, rest, span - rest) + low
