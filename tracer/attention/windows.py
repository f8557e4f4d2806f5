"""Windows: which sets of keys the queries of one attention are joined with, and how many such sets there
are."""

from __future__ import annotations

import torch

from fxplain.labels.flows import Site
from fxplain.labels.labels import broadcast, codes_of


def windows_of(site: Site) -> tuple[int, tuple[int, int]]:
    """The number of different sets of keys, and (queries, keys) of the largest.

    ``(1, (queries, keys))`` where every query is joined with every key. What a mask shuts out of a full map
    is not seen here: these are the products that were computed, not the weights they were given.

    Args:
        site: an attention; labels of its rows and columns broadcast against its map.
    """
    rows, cols = codes_of(site.rows.labels), codes_of(site.cols.labels)
    whole = (len(torch.unique(rows[rows >= 0])), len(torch.unique(cols[cols >= 0])))
    if not site.rows.token_axes & site.cols.token_axes:
        return 1, whole
    rows, cols = (labels.reshape(-1) for labels in broadcast(rows, cols))
    valid = (rows >= 0) & (cols >= 0)
    width = int(cols.max()) + 1
    pairs = torch.unique(rows[valid] * width + cols[valid])  # heads and samples lie on top of each other
    queries, place = torch.unique(pairs // width, return_inverse=True)
    # a set of keys is told from others by the sum of its keys' random numbers
    numbers = torch.rand(width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sums = torch.zeros(len(queries), dtype=torch.float64).index_add_(0, place, numbers[pairs % width])
    sets, members = torch.unique((sums * 2**30).round(), return_counts=True)
    largest = int(torch.bincount(place).max())
    return len(sets), (int(members.max()), largest)
