"""Attention with one head, written out: what most small models of the tests are made of."""

from __future__ import annotations

from torch import Tensor, nn


class Attend(nn.Module):
    """Attention: ``reader`` [batch, queries, d] attends to ``read`` [batch, keys, d]."""

    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(d, d) for _ in range(3))

    def forward(self, reader: Tensor, read: Tensor) -> Tensor:
        scores = self.q(reader) @ self.k(read).mT / reader.shape[-1] ** 0.5
        out: Tensor = scores.softmax(-1) @ self.v(read)
        return out
