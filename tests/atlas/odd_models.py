"""A registry to test the atlas itself: one model for each outcome."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from atlas.cases import Case, NotBuiltError

IMPLEMENTATIONS: tuple[str | None, ...] = (None,)


class Attend(nn.Module):
    """One attention; ``step`` comes before it."""

    def __init__(self, step: nn.Module | None = None) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.step is None else self.step(x)
        return (self.query(x) @ self.key(x).mT).softmax(-1) @ self.value(x)


@torch.library.custom_op("atlas::turned", mutates_args=())
def turned(x: Tensor) -> Tensor:
    """An operation that nobody knows, and that moves data between tokens."""
    return x.flip(1) + x


@turned.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Turned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return turned(self.embed(x))


def names() -> list[str]:
    return ["computes", "dies", "lies", "mlp", "not_built", "raises", "refused", "right", "waits"]


def build(name: str, attention: str | None) -> Case:
    torch.manual_seed(0)
    if name == "dies":
        os._exit(3)
    while name == "computes":  # for ever
        pass
    if name == "waits":
        time.sleep(600)
    if name == "raises":
        raise RuntimeError("a mistake of the registry")
    if name == "not_built":
        raise NotBuiltError("needs a package", "this one is not installed")
    model = {"mlp": nn.Linear(8, 8), "refused": Attend(Turned())}.get(name, Attend()).eval()
    return Case(model, torch.randn(2, 5, 8), reported=_wrong_map if name == "lies" else None)


def _wrong_map() -> Mapping[str, Tensor]:
    return {"attentions.0": torch.rand(2, 1, 5, 5)}
