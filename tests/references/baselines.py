"""Rollout, raw attention, Grad-CAM, attention flow and LeGrad, once more and slowly, from a model's own maps.

Every function takes what ``output_attentions`` gives for one sample, [head, query, key] for each layer in
order, and answers with the row that is read, its own entry still in it. Nothing is shared with the library.
"""

from __future__ import annotations

import torch
from torch import Tensor


def means(maps: list[Tensor]) -> list[Tensor]:
    """Head means [query, key]."""
    return [sum(head for head in layer.detach()) / len(layer) for layer in maps]


def rollout(maps: list[Tensor], normalise: bool = True) -> Tensor:
    """Eq. 16 of the CVPR paper: the product of (I + A), the last layer first; rows divided by their sums."""
    product = torch.eye(maps[0].shape[-1], dtype=maps[0].dtype)
    for mean in means(maps):
        factor = mean + torch.eye(len(mean), dtype=mean.dtype)
        if normalise:
            factor = torch.stack([row / row.sum() for row in factor])
        product = factor @ product
    return product


def cross_rollout(queries: list[Tensor], keys: list[Tensor], last: Tensor) -> Tensor:
    """Eq. 12 of the ICCV paper: R_qqᵀ · A · R_kk, with both rollouts normalised."""
    return rollout(queries).T @ means([last])[0] @ rollout(keys)


def gradcam(attention: Tensor, gradient: Tensor, row: int | None = None) -> Tensor:
    """(mean over heads of w A)⁺; w is a head's mean gradient, or that of one row without its own entry.

    Pairs that the mask forbids do not count.
    """
    total = torch.zeros_like(attention[0])
    for a, g in zip(attention, gradient, strict=True):
        entries = [g[i, j] for i, j in (a > 0).nonzero().tolist() if row is None or (i == row and j != row)]
        total = total + a * (sum(entries) / len(entries))
    return (total / len(attention)).clamp(min=0)


def attention_flow(maps: list[Tensor], row: int) -> Tensor:
    """Largest flow from one row of the last layer to each token at the bottom, by augmenting paths."""
    count, layers = maps[0].shape[-1], len(maps)
    capacity: dict[tuple[tuple[int, int], tuple[int, int]], float] = {}
    for layer, mean in enumerate(means(maps)):
        for i in range(count):
            for j in range(count):
                share = (float(mean[i, j]) + (i == j)) / (1 + float(mean[i].sum()))
                if share > 0:
                    capacity[(layer + 1, i), (layer, j)] = share
    return torch.tensor(
        [_largest(dict(capacity), (layers, row), (0, j)) for j in range(count)], dtype=maps[0].dtype
    )


def _largest(
    residual: dict[tuple[tuple[int, int], tuple[int, int]], float],
    start: tuple[int, int],
    end: tuple[int, int],
) -> float:
    """Ford and Fulkerson, along shortest paths."""
    around: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for one, other in residual:
        around.setdefault(one, set()).add(other)
        around.setdefault(other, set()).add(one)
    total = 0.0
    while True:
        before: dict[tuple[int, int], tuple[int, int]] = {}
        front = [start]
        while front and end not in before:
            one = front.pop(0)
            for other in around[one]:
                if other != start and other not in before and residual.get((one, other), 0.0) > 1e-14:
                    before[other] = one
                    front.append(other)
        if end not in before:
            return total
        path, node = [], end
        while node != start:
            path.append((before[node], node))
            node = before[node]
        least = min(residual[edge] for edge in path)
        for one, other in path:
            residual[one, other] -= least
            residual[other, one] = residual.get((other, one), 0.0) + least
        total += least


def legrad(scores: list[Tensor], maps: list[Tensor], sample: int) -> Tensor:
    """Mean over layers, heads and queries of the positive gradient of each layer's score to its map.

    Pairs that the mask forbids do not count.
    """
    layers = []
    for score, attention in zip(scores, maps, strict=True):
        (gradient,) = torch.autograd.grad(score, attention, retain_graph=True)
        own = torch.where(attention[sample] > 0, gradient[sample], 0.0).clamp(min=0)
        layers.append(own.mean(0).mean(0))
    return sum(layers[1:], layers[0]) / len(layers)
