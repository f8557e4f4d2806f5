"""Regions cut out of a grid by boxes: one new token for each place of each region."""

from __future__ import annotations

import torch
from torch import Tensor

from fxplain.labels import NOTHING, Slot, Value, encode, reads_of, samples_of
from fxplain.ops.table import Call, transfer

OPERATORS = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")


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
    if any(site.role == "attention" or site.form == "sampled" for site in before):
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
    new = call.ledger.rebirth(slot, call.node, grid.value.root or call.node.name, "mixing", (call.node.name,))
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
