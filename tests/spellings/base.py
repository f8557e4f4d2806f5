"""What the small modules share: sizes, projections, heads, a head for one score, and how a case is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from zoo.spec import Builder, Case, Expected, Inputs, Site, floats, make, rows

BATCH, TOKENS, OTHERS, HEADS, HEAD = 2, 6, 5, 3, 4
WIDTH = HEADS * HEAD


def split(x: Tensor, heads: int = HEADS) -> Tensor:
    """[batch, token, heads * dim] -> [batch, head, token, dim]."""
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def merge(x: Tensor) -> Tensor:
    """[batch, head, token, dim] -> [batch, token, heads * dim]."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


class Spelling(nn.Module):
    """One attention over x, spelled by ``attend``; the score reads token 0 of x + attention.

    ``attend`` gives the update [batch, token, width] and the map as a reader of the code would draw it,
    [batch, head, query, key].
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.q = nn.Linear(WIDTH, WIDTH)
        self.k = nn.Linear(WIDTH, WIDTH)
        self.v = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 3)
        self.extend()
        with torch.no_grad():  # maps far from uniform, so that mistakes are seen
            self.q.weight.mul_(3)
            self.k.weight.mul_(3)

    def extend(self) -> None:
        """More parameters, for the spellings that need them."""

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return split(self.q(x)), split(self.k(x)), split(self.v(x))

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embed(x)
        update, _ = self.attend(hidden)
        logits: Tensor = self.head((hidden + self.out(update))[:, 0])
        return logits

    def maps(self, x: Tensor) -> list[Tensor]:
        """The maps of all attentions in order of execution."""
        with torch.no_grad():
            return [self.attend(self.embed(x))[1]]


def own_maps(model: nn.Module, inputs: Inputs) -> list[tuple[int, Tensor]]:
    return list(enumerate(model.maps(**inputs)))  # type: ignore[operator]


def site(
    kind: str = "self",
    queries: tuple[str, ...] = ("x",),
    keys: tuple[str, ...] = ("x",),
    heads: int = HEADS,
    nq: int = TOKENS,
    nk: int = TOKENS,
    module: str = "",
) -> Site:
    return Site(kind, queries, keys, heads, nq, nk, module)


def case(
    build: Callable[[], nn.Module], sites: tuple[Site, ...] = (site(),), two: bool = False, **expected: Any
) -> Builder:
    """A builder of the module with an input x [batch, 6, 12], and y [batch, 5, 12] where it takes ``two``."""

    def built() -> Case:
        inputs: Inputs = {"x": floats(BATCH, TOKENS, WIDTH, seed=7)}
        if two:
            inputs["y"] = floats(BATCH, OTHERS, WIDTH, seed=8)
        fields: dict[str, Any] = {"readout": rows(("x", (0,))), "maps": own_maps} | expected
        return make(build), fields.pop("inputs", inputs), Expected(sites=sites, **fields)

    return built
