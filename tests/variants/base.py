"""One attention, spelled in many ways: what is found, its maps and its relevance must not depend on it.

Every module is the same attention over x, or one with another dense map, written as some author would. It
says what its map is as slowly as it can (``map``), and the test holds against it what fxplain found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from spellings.base import HEADS, TOKENS, WIDTH, merge, split
from torch import Tensor, nn

BATCH = 2
SCALE, READ = 0.5, 5
Kind = tuple[str, int, int, int]
"""(kind, number of queries, number of keys, heads) of an attention."""


class Variant(nn.Module):
    """x + attention of x; the score reads token 5.

    ``spell`` is the attention as the author wrote it, from q, k, v [batch, head, token, dim] to the same
    shape; ``map`` is the dense map [batch, head, query, key] that multiplies the values.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(5))
        self.head = nn.Linear(WIDTH, 3)
        self.extend()
        with torch.no_grad():  # maps far from uniform, so that mistakes are seen
            self.q.weight.mul_(2.5)
            self.k.weight.mul_(2.5)

    def extend(self) -> None:
        """More parameters, for the spellings that need them."""

    def qkv(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return split(self.q(hidden)), split(self.k(hidden)), split(self.v(hidden))

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.transpose(-1, -2) * SCALE

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.scores(q, k).softmax(-1) @ v

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        return self.scores(q, k).softmax(-1)

    def attend(self, hidden: Tensor) -> Tensor:
        return merge(self.spell(*self.qkv(hidden)))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embed(x)
        logits: Tensor = self.head((hidden + self.out(self.attend(hidden)))[:, READ])
        return logits

    def gated(self, hidden: Tensor, update: Tensor) -> Tensor:
        """What becomes of map times values [batch, head, token, dim] before heads are merged."""
        return update

    def dense(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The state before the attention, its map and its values."""
        hidden = self.embed(x)
        q, k, v = self.qkv(hidden)
        return hidden, self.map(q, k), v

    def reference(self, x: Tensor, target: int) -> Tensor:
        """The row of token 5 of the relevancy by eqs. 5 and 6, its own entry set aside: [batch, token]."""
        with torch.no_grad():
            hidden, weights, v = self.dense(x)
        weights = weights.clone().requires_grad_()
        with torch.no_grad():
            gate = self.gated(hidden, torch.ones_like(weights @ v))
        logits = self.head((hidden + self.out(merge(weights @ v * gate)))[:, READ])
        (gradient,) = torch.autograd.grad(logits[:, target].sum(), weights)
        row = (weights * gradient).detach().clamp(min=0).mean(1)[:, READ].clone()
        row[:, READ] = 0
        return row


@dataclass(frozen=True)
class Expected:
    build: Callable[[], Variant]
    kinds: Sequence[Kind]
    size: int = TOKENS
    normaliser: str = "softmax"
    tolerance: float = 1e-5
    note: str = ""
    """Part of a note that the result must carry."""


def whole(count: int = 1, size: int = TOKENS, heads: int = HEADS) -> list[Kind]:
    return [("self", size, size, heads)] * count


def tokens(size: int = TOKENS, seed: int = 3) -> Tensor:
    return torch.randn(BATCH, size, WIDTH, generator=torch.Generator().manual_seed(seed))


def causal(size: int = TOKENS) -> Tensor:
    return torch.ones(size, size, dtype=torch.bool).tril()
