"""Sampling a grid of tokens at points: a sample is of the nearest token, and of the token that asked for it.

Where samples that one token asked for are summed up (deformable attention), information moves from the grid
to that token by a linear map. Its weights are those of the sum times those of the interpolation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from fxplain.labels.call import Call, aten, literal, op_name
from fxplain.labels.flows import Sampled
from fxplain.labels.labels import Slot, compact, encode, reads_of, samples_of
from fxplain.labels.value import NOTHING, Operand, Value
from fxplain.ops.meeting.mixing import check_samples
from fxplain.ops.reading import Reading
from fxplain.ops.table import transfer
from fxplain.ops.windows import note_blending
from fxplain.recognise.around import between, named

BILINEAR, NEAREST = 0, 1
"""Codes of grid sampling's modes."""
SAMPLERS = frozenset(aten("grid_sampler grid_sampler_2d grid_sampler_3d"))


@transfer(*SAMPLERS)
def sampling(call: Call) -> Value:
    """Each sample is of the nearest token, and of the token that asked for it, if data made the grid."""
    operand, grid = call.operands()[:2]
    call.ledger.data_dependent |= grid.value.from_input and operand.value.labelled
    asking = asking_slots(grid)
    nearest = [_nearest(call, operand, grid, slot) for slot in operand.value.active]
    if nearest and asking and int(call.argument("interpolation_mode")) not in (BILINEAR, NEAREST):
        raise ValueError("bicubic sampling at points that tokens ask for has no map")
    held = frozenset({call.node.name}) if nearest and asking else frozenset()
    if nearest and not asking and int(call.argument("interpolation_mode")) != NEAREST:
        note_blending(call, operand, range(2, operand.ndim))
    return call.carry(operand, grid, slots=[*nearest, *asking], samples=held)


def asking_slots(grid: Operand) -> list[Slot]:
    """Of the tokens that made the points, laid out as the samples: [batch, 1, *points]."""
    return Reading((0, None, *range(1, grid.ndim - 1))).survivors(grid.value.active)


def _nearest(call: Call, operand: Operand, grid: Operand, slot: Slot) -> Slot:
    sizes = [1 if axis == 1 and not slot.varies(1) else n for axis, n in enumerate(operand.shape)]
    labels = slot.expanded(sizes).flatten(2)
    # which place is the nearest is worked out in the operation's own type, whose roundings decide between two
    points = grid.tensor.detach().cpu()
    points = points.to(torch.promote_types(points.dtype, torch.float32))
    numbers = torch.arange(1, labels.shape[-1] + 1, dtype=points.dtype).view(1, 1, *sizes[2:])
    numbers = numbers.expand(len(points), *numbers.shape[1:])
    padding, corners = int(call.argument("padding_mode")), bool(call.argument("align_corners"))
    nearest = torch.grid_sampler(numbers, points, NEAREST, padding, corners)
    beside = torch.nn.functional.pad(labels, (1, 0))  # 0: outside of the grid
    places = nearest.round().long().flatten(2).expand(-1, sizes[1], -1)
    found = beside.gather(2, places).view(*places.shape[:2], *nearest.shape[2:])
    return replace(slot, labels=compact(found))


def sum_up(call: Call, operand: Operand, summed: Sequence[int]) -> list[Slot] | None:
    """The living slots where samples are summed over points; None where that is not what happens.

    It is, where along the summed axes the sampled tokens change and those that asked do not. The latter get
    what was sampled: a step that adds to rows which exist already.
    """
    slots = operand.value.active
    kept = [slot for slot in slots if not any(slot.varies(axis) for axis in summed)]
    if not operand.value.hidden.samples or not kept or len(kept) == len(slots):
        return None
    held = named(call.node, operand.value.hidden.samples)
    index = frozenset(_record(call, group) for group in _alike([_source(call, n) for n in held]))
    return [replace(slot, reads=slot.reads | index) for slot in kept]


@dataclass(frozen=True)
class _Source:
    """One sampler: its node, and rows and columns of its map [batch, *points, place of the grid]."""

    node: fx.Node
    rows: Slot
    cols: Slot
    shape: tuple[int, ...]


def _source(call: Call, node: fx.Node) -> _Source:
    values, data, grid = call.values, literal(node, "input"), literal(node, "grid")
    size, points = call.ledger.shapes[data.name], call.ledger.shapes[grid.name][1:-1]
    asking = next(slot for slot in values[grid].active if not slot.varies(len(points) + 1))
    rows = replace(asking, labels=asking.labels.select(-1, 0).unsqueeze(-1))
    slot = values[data].active[0]
    if slot.varies(1):
        raise ValueError("the features of one place that is sampled belong to several tokens")
    places = slot.expanded((slot.labels.shape[0], 1, *size[2:])).flatten(1)
    cols = replace(slot, labels=places.reshape(len(places), *[1] * len(points), -1))
    kept = [p if rows.labels.shape[axis + 1] > 1 else 1 for axis, p in enumerate(points)]
    return _Source(node, rows, cols, (size[0], *kept, places.shape[-1]))


def _alike(sources: Sequence[_Source]) -> list[list[_Source]]:
    """Samplers for the same tokens, whose grids (the levels of a pyramid) make one map side by side."""
    groups: list[list[_Source]] = []
    for source in sources:
        group = next((g for g in groups if _same_rows(g[0], source)), None)
        if group is None:
            groups.append([source])
        else:
            group.append(source)
    return groups


def _same_rows(one: _Source, other: _Source) -> bool:
    return one.shape[:-1] == other.shape[:-1] and torch.equal(one.rows.labels, other.rows.labels)


def _record(call: Call, group: Sequence[_Source]) -> int:
    shape = (*group[0].shape[:-1], sum(source.shape[-1] for source in group))
    rows = replace(group[0].rows, reads=reads_of([source.rows for source in group]))
    cols = Slot(_side_by_side(group), group[0].cols.strength, reads_of([source.cols for source in group]))
    check_samples(call, rows, cols)
    nodes = tuple(source.node for source in group)
    site = call.ledger.add_site(
        node=call.node,
        map=Sampled(nodes, between(call.node, set(nodes))),
        shape=shape,
        rows=rows,
        cols=cols,
    )
    return site.index


def _side_by_side(group: Sequence[_Source]) -> Tensor:
    batch = max(source.cols.labels.shape[0] for source in group)
    parts = [s.cols.labels.expand(batch, *s.cols.labels.shape[1:-1], s.shape[-1]) for s in group]
    return torch.cat(parts, -1)


def is_sampler(node: fx.Node) -> bool:
    return op_name(node) in SAMPLERS


OPERATORS = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")
REGIONS = "regions", "cuts regions out by boxes: which places a region was made of is not followed"


@transfer(*(f"torchvision::{name}" for name in OPERATORS))
def regions(call: Call) -> Value | tuple[Value, Value]:
    """[sample, channel, row, column] and boxes [box, 5] -> [box, channel, row, column], all tokens new.

    Before any attention they are what a stem makes, as the last grid of a network of convolutions is. Which
    old tokens a region was made of is not followed; where that would lose relevancy, the labels are lost.
    """
    grid, boxes = call.operands()[:2]
    call.ledger.data_dependent |= boxes.value.from_input
    if not grid.value.active:
        return call.carry(grid, boxes)
    sites = call.ledger.sites
    before = [sites[index] for index in reads_of(grid.value.active)]
    if any(site.attends for site in before):
        raise ValueError("regions of tokens that have attended")
    old = grid.value.active[0]
    images = boxes.tensor[:, 0].detach().cpu().long()
    samples = samples_of(old.labels).amax(tuple(range(1, old.labels.ndim)))
    owners = samples[images.clamp_max(len(samples) - 1)] if len(samples) else images
    several = isinstance(call.result, tuple)  # the second tells where the largest values were
    count, _, *size = (call.result[0] if several else call.result).shape
    places = torch.arange(torch.Size(size).numel()).view(1, 1, *size)
    codes = _ranks(images).view(count, 1, 1, 1) * places.numel() + places
    slot = Slot(encode(owners.view(count, 1, 1, 1), codes), old.strength)
    new = call.ledger.tokens.at_places(
        slot, call.node, grid.value.root or call.node.name, "mixing", (call.node.name,)
    )
    call.ledger.remarks.unfollowed[call.node] = REGIONS
    value = call.carry(grid, boxes, slots=[new])
    return (value, NOTHING) if several else value


@transfer("torchvision::nms")
def kept_boxes(call: Call) -> Value:
    """Which boxes are kept is told by number; numbers of places are no tokens."""
    call.ledger.data_dependent |= any(operand.value.from_input for operand in call.operands())
    return call.carry(*call.operands(), slots=[])


def _ranks(images: Tensor) -> Tensor:
    """The number of each box among those of its image."""
    ranks = torch.zeros_like(images)
    for image in torch.unique(images):
        own = images == image
        ranks[own] = torch.arange(int(own.sum()))
    return ranks
