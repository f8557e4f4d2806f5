"""Products of vectors with the map of a linear mixing, which is mostly zeros where the mixing is local: a
convolution over a large grid reads a few tokens of very many."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxplain.attention.plan import Plan
from fxplain.maps.weights import mixing_values, mixing_weights
from fxplain.rules.adjoint import Dense, Weights
from fxplain.run.replay import Replay

FULL = 4
"""A map that has more places than so many times its entries is held as its entries."""


@dataclass(frozen=True, eq=False)
class Sparse:
    """A map [batch, query, key] as its entries: where they lie, and how much they weigh."""

    rows: Tensor
    """``[entry]``, int64: sample and query in one number."""
    cols: Tensor
    """``[entry]``, int64: sample and key in one number."""
    weights: Tensor
    queries: int
    keys: int

    def left(self, rows: Tensor) -> Tensor:
        """``rows · map``: [batch, vector, query] -> [batch, vector, key]."""
        return self._product(rows, self.rows, self.cols, self.keys)

    def right(self, columns: Tensor) -> Tensor:
        """``map · columns``: [batch, vector, key] -> [batch, vector, query]."""
        return self._product(columns, self.cols, self.rows, self.queries)

    def _product(self, vectors: Tensor, taken: Tensor, given: Tensor, size: int) -> Tensor:
        batch, count = vectors.shape[:2]
        flat = vectors.transpose(0, 1).reshape(count, -1)
        out = vectors.new_zeros(count, batch * size)
        out.index_add_(1, given, flat[:, taken] * self.weights.to(vectors.dtype))
        return out.view(count, batch, size).transpose(0, 1)


def mixing_products(plan: Plan, replay: Replay, gradient: Tensor | None) -> Weights:
    """:func:`fxplain.maps.weights.mixing_weights` as far as products go."""
    if not plan.sampled or plan.places <= FULL * torch.Size(plan.shape).numel():
        return Dense(mixing_weights(plan, replay, gradient))
    place = plan.place.reshape(-1)
    inside = place >= 0
    found, entry = torch.unique(place[inside], return_inverse=True)
    device = replay.outputs[0].device if gradient is None else gradient.device
    found, entry = found.to(device), entry.to(device)
    queries, keys = len(plan.queries), len(plan.keys)
    rows = found // max(keys, 1)
    weights = torch.ones(len(found), device=device)
    if gradient is not None:
        values = mixing_values(plan, replay, gradient)
        weights = values.new_zeros(len(found)).index_add_(0, entry, values.reshape(-1)[inside.to(device)])
        weights = weights.clamp_min(0)
        if plan.site.new_rows:
            sums = weights.new_zeros(plan.batch * queries).index_add_(0, rows, weights)
            weights = torch.where(sums[rows] == 0, 1.0, weights)
    cols = rows // max(queries, 1) * keys + found % max(keys, 1)
    return Sparse(rows, cols, weights, queries, keys)
