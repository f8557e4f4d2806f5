"""Which query, sample and head each line of a site's map belongs to."""

from __future__ import annotations

import torch
from torch import Tensor

from fxplain.labels.flows import Site
from fxplain.labels.labels import STRONG, broadcast, codes_of, compact, completed, samples_of

APART = -2
"""Between two samples of one packed sequence: nothing passes there."""


def heads_of(site: Site, batch: int, assume: bool = True) -> int:
    """How many rows of the map each query has, whether heads have an axis or are folded into another.

    Some queries may have more (a class token that stands in every frame): the fewest count. Where heads
    choose their queries themselves, some have fewer, and the heads count. A list of pairs has no rows. Where
    windows overlap, so that each query stands in several, rows of other windows are no heads.
    """
    if not site.axes.columns:
        shown = site.rows.axes | site.cols.axes
        return torch.Size([size for axis, size in enumerate(site.shape) if axis not in shown]).numel()
    ranks, queries = line_ranks(site, batch, assume)
    per_line = int(torch.Size(_lines_of(site)).numel()) // max(ranks.numel(), 1)
    if _choosing_heads(site, queries) is not None:
        return per_line * (int(ranks.max()) + 1)
    known = queries[queries >= 0]
    fewest = int(torch.unique(known, return_counts=True)[1].min()) if len(known) else 1
    return per_line * (_in_one_window(site, queries, fewest) if fewest > 1 else 1)


def _in_one_window(site: Site, queries: Tensor, fewest: int) -> int:
    """How many of a query's rows are of one window: heads ask for all its queries again, while windows
    that overlap have some in common. Heads may also sort all queries into windows of their own."""
    across, columns = site.axes.rows, site.axes.columns
    apart = [
        axis for axis in range(queries.ndim) if axis not in (*across, *columns) and queries.shape[axis] > 1
    ]
    if not across or not apart:
        return fewest
    alike = _times_alike(queries, apart)
    sorted_anew = alike == 1 and any(_times_alike(queries, [axis]) > 1 for axis in apart)
    return fewest if alike > fewest or sorted_anew else alike


def _times_alike(queries: Tensor, axes: list[int]) -> int:
    """How often each set of queries comes along some axes, the one that comes least."""
    lines = queries.movedim(axes, list(range(len(axes)))).flatten(0, len(axes) - 1).flatten(1)
    lines = lines[(lines >= 0).any(1)]
    numbers = torch.rand(
        int(queries.max()) + 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    numbers[-1] = 0.0  # no query
    held = numbers[lines].sort(-1).values
    again = held[:, 1:] == held[:, :-1]
    sums = torch.cat([held[:, :1], held[:, 1:].masked_fill(again, 0.0)], 1).sum(1)
    return int(torch.unique((sums * 2**30).round(), return_counts=True)[1].min())


def line_ranks(site: Site, batch: int, assume: bool = True) -> tuple[Tensor, Tensor]:
    """Which of its query's rows each line of the map is, and whose: a number for each query and sample.

    A line is the map along its column axes; both have the axes of the map, 1 along columns and along axes of
    heads. Heads may see different keys each (the best of a sorted list): they are told apart by lines, not by
    elements. -1 where a line is nobody's.
    """
    samples = samples_on_map(site, batch, assume)
    rows, samples = broadcast(*(_over_columns(t, site) for t in (codes_of(site.rows.labels), samples)))
    queries = torch.where(rows < 0, -1, rows * (batch + 1) + samples.clamp_min(-1) + 1)
    heads = _choosing_heads(site, queries)
    if heads is not None:
        return heads, queries
    flat = queries.reshape(-1)
    order = torch.argsort(flat, stable=True)
    ordered = flat[order].contiguous()
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order)) - torch.searchsorted(ordered, ordered)
    return ranks.view(rows.shape), queries


def _choosing_heads(site: Site, queries: Tensor) -> Tensor | None:
    """The head that each line is of, where heads ask over the same keys, each for queries of its own choice;
    None where all of them ask for the same, as nearly everywhere."""
    counts = torch.unique(queries[queries >= 0], return_counts=True)[1]
    if len(torch.unique(counts)) < 2:
        return None
    across, columns, keys = site.axes.rows, list(site.axes.columns), site.cols.labels
    maps = [axis for axis in range(queries.ndim) if axis not in (*across, *columns)]
    if not across or any(keys.shape[axis] > 1 for axis in across):
        return None
    shape = [1 if axis in across else size for axis, size in enumerate(queries.shape)]
    seen = keys.expand([keys.shape[axis] if axis in columns else size for axis, size in enumerate(shape)])
    count = torch.Size([shape[axis] for axis in maps]).numel()
    lines, seen = (each.permute(*maps, *across, *columns).reshape(count, -1) for each in (queries, seen))
    heads = _chosen(lines, torch.unique(seen, dim=0, return_inverse=True)[1])
    return None if heads is None else heads.view(shape).expand_as(queries)


def _chosen(maps: Tensor, keys: Tensor) -> Tensor | None:
    """For each map which one over its keys it is, if maps over the same keys have some queries in common."""
    heads = torch.zeros(len(maps), dtype=torch.int64)
    differ = False
    for own in (keys == each for each in range(int(keys.max()) + 1)):
        heads[own] = torch.arange(int(own.sum()))
        _, counts = torch.unique(maps[own][maps[own] >= 0], return_counts=True)
        if int(counts.max()) > int(own.sum()):
            return None  # a token stands at several places of one map
        differ |= len(torch.unique(counts)) > 1
    return heads if differ else None


def _lines_of(site: Site) -> list[int]:
    columns = site.axes.columns
    return [1 if axis in columns else size for axis, size in enumerate(site.shape)]


def _over_columns(labels: Tensor, site: Site) -> Tensor:
    """Labels of lines: the largest along the columns, where padding has none."""
    columns = [axis for axis in site.axes.columns if labels.shape[axis] > 1]
    return labels.amax(columns, keepdim=True) if columns else labels


def samples_on_map(site: Site, batch: int, assume: bool = True) -> Tensor:
    """The sample that each element of a site's map belongs to, by its rows' or columns' labels.

    -1 stands for unknown, ``APART`` for a place between two samples of one packed sequence.

    Where rows and columns are shared by all samples (learned queries that have met no input yet), the first
    axis that heads or samples can lie on and that divides by the batch is taken for the batch axis.
    """
    rows, cols = broadcast(*(compact(samples_of(slot.labels)) for slot in (site.rows, site.cols)))
    samples = torch.maximum(rows, cols)
    if batch == 1:
        return samples.clamp_min(0)
    if bool((samples >= 0).any()):
        return torch.where((rows != cols) & (rows >= 0) & (cols >= 0), APART, completed(samples))
    learned = max(site.rows.strength, site.cols.strength) < STRONG
    for axis, size in enumerate(site.shape if assume and learned else ()):
        if size % batch == 0 and axis not in site.rows.axes | site.cols.axes:
            line = torch.arange(size) // (size // batch)
            return line.view([-1 if a == axis else 1 for a in range(len(site.shape))])
    return samples
