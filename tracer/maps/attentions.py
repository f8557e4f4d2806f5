"""The map of an attention: the value of a node, or rebuilt from operands where the graph does not hold it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import singledispatch

import torch
from torch import Tensor

from fxplain.labels.axes import Axes
from fxplain.labels.flows import Kernel, Map, Sampled, Site, Sum, WrittenOut
from fxplain.maps.blocks import Block, cuts
from fxplain.maps.kernels import kernel_blocks, kernel_map
from fxplain.maps.samplings import sampled_map
from fxplain.run.replay import Replay

MapAndGradient = tuple[Tensor, Tensor | None]


def map_of(site: Site, replay: Replay, gradient: Tensor | None) -> MapAndGradient:
    """The map A of an attention, and ∇A from the gradient of the tensor that is tapped for it."""
    if site.map.tapped is not None:
        return replay.kept[site.map.tapped.name].detach(), gradient
    return rebuilt(site.map, site, replay, gradient)


@singledispatch
def rebuilt(map: Map, site: Site, replay: Replay, gradient: Tensor | None) -> MapAndGradient:
    """The map A of an attention, and ∇A from the gradient of its output."""
    raise NotImplementedError(type(map).__name__)


rebuilt.register(Sampled)(sampled_map)
rebuilt.register(Kernel)(kernel_map)


@rebuilt.register
def _written_out(map: WrittenOut, site: Site, replay: Replay, gradient: Tensor | None) -> MapAndGradient:
    """A = E and ∇A = dO valueᵀ from the gradient dO of the output O = E value.

    Where sum(E) divides the output later on, A = E / sum(E) and ∇A = sum(E) dO valueᵀ: the gradient of
    (E / sum(E)) value to its map. The gradient to E itself would pass the sum as well.
    """
    axes = map.layout
    weights, values = (replay.kept[node.name].detach() for node in map.operands)
    weights = weights.expand(site.shape) if map.shared else weights
    dtype = torch.promote_types(weights.dtype, torch.float32)
    sums = weights.to(dtype).sum(axes.columns, keepdim=True) if map.divided else weights.new_ones(())
    sums = torch.where(sums == 0, 1.0, sums)
    if gradient is not None:
        values = _without_ones(values, axes) if map.ones else values
        gradient = _outer(gradient.to(dtype), values.to(dtype), axes, weights.shape) * sums
        gradient = gradient.sum_to_size(weights.shape)
    return weights / sums, gradient


def _without_ones(values: Tensor, axes: Axes) -> Tensor:
    """The values without the feature that is 1 for every key."""
    keys = [place for place, letter in enumerate(axes.values) if letter not in axes.output]
    return torch.where((values == 1).all(keys, keepdim=True), 0.0, values)


def _outer(gradient: Tensor, values: Tensor, axes: Axes, shape: Sequence[int]) -> Tensor:
    """dO valueᵀ, laid out as a map of this shape, or broadcast against it."""
    sides = [*zip(axes.map, shape, strict=True), *zip(axes.values, values.shape, strict=True)]
    sizes = {letter: max(n for c, n in sides if c == letter) for letter, _ in sides}
    gradient = gradient.reshape([sizes[letter] for letter in axes.output])
    known = "".join(c for c in axes.map if c in axes.output + axes.values)  # one key may have no axis there
    found = torch.einsum(f"{axes.output},{axes.values}->{known}", gradient, values)
    return found.reshape([found.shape[known.index(c)] if c in known else 1 for c in axes.map])


@rebuilt.register
def _summed(map: Sum, site: Site, replay: Replay, gradient: Tensor | None) -> MapAndGradient:
    """The map of an attention whose output is a sum of others': one on the other, or side by side.

    O = sum of f E value over the parts, so A = f E and ∇A = dO valueᵀ, both with the columns last.
    """
    maps, gradients = [], []
    for part, scale in zip(map.parts, map.scales, strict=True):
        weights, found = rebuilt(part.map, part, replay, gradient)
        order = [part.axes.map.index(letter) for letter in part.axes.rows_first]
        shape = (*site.shape[:-1], weights.shape[order[-1]])
        maps.append((weights.permute(order) * scale.to(weights)).expand(shape))
        gradients.append(None if found is None else found.permute(order).expand(shape))
    over = sum(part.shape[-1] for part in maps) > site.shape[-1]
    first = gradients[0]
    if over:
        return torch.stack(maps).sum(0), first
    known = [part for part in gradients if part is not None]
    return torch.cat(maps, -1), torch.cat(known, -1) if known else None


def blocks(
    site: Site,
    replay: Replay,
    gradients: Sequence[Tensor | None],
    live: Mapping[int, range],
    whole: Sequence[int] = (),
) -> Iterator[Block]:
    """The blocks of an attention's map; elements that are 0 for sure may be left out.

    Args:
        gradients: those of the site's tapped tensor, one for each score; None where there is none.
        live: by axis of the map, the only places that are asked for.
        whole: axes that no block may be cut along, beside those of the columns.
    """
    if isinstance(site.map, Kernel):
        yield from kernel_blocks(site, replay, gradients, live, whole)
        return
    maps, first = map_of(site, replay, gradients[0])
    others = [map_of(site, replay, gradient) for gradient in gradients[1:]]
    grown = [first, *(gradient for _, gradient in others)]
    apart = [maps, *(own for own, _ in others)] if _of_its_score(site.map) and others else []
    for where in cuts(maps.shape, (*site.axes.columns, *whole), None, live):
        own = [None if gradient is None else gradient[where] for gradient in grown]
        yield Block(where, maps[where], own, [each[where] for each in apart])


def _of_its_score(map: Map) -> bool:
    """Whether what stands for the map has been multiplied with the score's gradient already."""
    return isinstance(map, Sampled) or (isinstance(map, Sum) and any(_of_its_score(p.map) for p in map.parts))
