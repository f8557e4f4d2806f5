"""Loops that PyTorch keeps as one operation: followed as if Python had run them, or refused by their name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops import scan, while_loop
from torch._higher_order_ops.map import map as mapped
from versions import higher_order

import fxplain
from fxplain.errors import UnknownOpError


class Attend(nn.Module):
    """One head, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.query(x) @ self.key(x).mT).softmax(-1) @ self.value(x)


class Looping(nn.Module):
    """Frames one after the other: each attends within itself, and some sum is carried on; or layers."""

    def __init__(self, how: str, plain: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.attend, self.head = nn.Linear(4, 8), Attend(), nn.Linear(8, 3)
        self.how, self.plain = how, plain

    def forward(self, frames: Tensor) -> Tensor:
        if self.how == "while":
            return self.head(self.layers(self.embed(frames[:, 0]))[:, 0])
        if self.how == "raw":
            return self.head(self.layers(torch.cat([frames[:, 0]] * 2, -1))[:, 0])
        x = self.embed(frames).transpose(0, 1)
        if self.how == "map":
            one_by_one: Callable[..., Any] = mapped if not self.plain else _map
            x = one_by_one(self.attend, x)
        else:
            carry: Callable[..., Any] = scan if not self.plain else _scan
            x = carry(self.step, torch.zeros_like(x[0]), x)[1]
        return self.head(x[-1, :, 0])

    def step(self, before: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.attend(x * 0.5) + before.sigmoid()
        return x, x * 2

    def layers(self, x: Tensor) -> Tensor:
        count = torch.zeros((), dtype=torch.int64)
        given: tuple[Tensor, Tensor] = while_loop(
            lambda turn, _: turn < 2, lambda turn, x: (turn + 1, self.attend(x)), (count, x)
        )
        return given[1]


def _map(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.stack([function(each) for each in x])


def _scan(
    function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], state: Tensor, x: Tensor
) -> tuple[Tensor, Tensor]:
    made = []
    for each in x:
        state, given = function(state, each)
        made.append(given)
    return state, torch.stack(made)


@higher_order
@pytest.mark.parametrize("how", ["map", "scan"])
def test_a_loop_is_what_python_would_have_run(how: str) -> None:
    frames = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(1))
    found = []
    for plain in (False, True):
        traced = fxplain.trace(Looping(how, plain).eval(), frames)
        assert [(a.kind, a.queries.size) for a in traced.attentions] == [("self", 5)] * 3
        found.append(traced.explain(frames, target=1).relevance)
    assert bool((found[0]["frames"] > 0).any())
    for name, values in found[0].items():
        torch.testing.assert_close(values, found[1][name])


@higher_order
@pytest.mark.parametrize("how", ["while", "raw"])
def test_a_loop_whose_turns_depend_on_data_is_refused_by_its_name(how: str) -> None:
    frames = torch.randn(2, 3, 5, 4)
    with pytest.raises(UnknownOpError, match="while_loop") as error:
        fxplain.explain(Looping(how).eval(), frames, target=1)
    assert "plain Python" in str(error.value)
