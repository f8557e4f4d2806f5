"""Claims that labels made once, and that were wrong: `fxplain.check` fails wherever one is made again.

Each case is a small model that is read rightly today, and what was said of one of its operations before. Some
of these claims were refused then, and others were passed in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxplain
from fxplain.labels import merge
from fxplain.labels.call import Call
from fxplain.labels.labels import STRONG
from fxplain.labels.value import Value
from fxplain.ops import elementwise
from fxplain.ops.table import TABLE

WIDTH = 8
Patch = pytest.MonkeyPatch
IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
X = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Parts that all cases are built of."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(130, WIDTH)
        self.query, self.key, self.value, self.mlp, self.head = (nn.Linear(WIDTH, WIDTH) for _ in range(5))
        self.learned = nn.Parameter(torch.randn(WIDTH))
        self.pair, self.outer = nn.Linear(5, WIDTH), nn.Linear(WIDTH**2, WIDTH)

    def attend(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.query(x) @ self.key(y).mT).softmax(-1) @ self.value(y)


class LastByList(Net):
    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        return self.head((x + self.attend(x, x))[:, [-1]])  # type: ignore[no-any-return]


class Dispatched(Net):
    """An expert for the last token, and one for the others."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        flat = x.flatten(0, 1)
        out = torch.zeros_like(flat)
        last = torch.tensor([len(flat) - 1])
        out.index_add_(0, last, self.mlp(flat.index_select(0, last)))
        rest = torch.arange(len(flat) - 1)
        out.index_add_(0, rest, self.mlp(flat.index_select(0, rest)))
        x = x + out.view(x.shape)
        return self.head((x + self.attend(x, x))[:, 0])  # type: ignore[no-any-return]


class ConstantFirst(Net):
    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(torch.cat([torch.full((len(ids), 1), 101), ids], 1))
        return self.head((x + self.attend(x, x)).mean(1))  # type: ignore[no-any-return]


class Pooled(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.mlp(x)
        y = self.learned.expand(len(x), 1, -1)
        y = y + self.attend(y, x)
        return self.head(x[:, 0] + y[:, 0])  # type: ignore[no-any-return]


class Blocks(Net):
    """Keys in a block of four and one of a single key."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.mlp(x)
        total: Any = 0
        sums: Any = 0
        for block in (slice(0, 4), slice(4, 5)):
            weights = (self.query(x) @ self.key(x[:, block]).mT).exp()
            total, sums = total + weights @ self.value(x[:, block]), sums + weights.sum(-1, keepdim=True)
        return self.head((x + total / sums)[:, 0])  # type: ignore[no-any-return]


class Pairs(Net):
    def forward(self, x: Tensor, pairs: Tensor) -> Tensor:
        x = self.mlp(x)
        z = self.pair(pairs) + self.outer(torch.einsum("bic,bjd->bijcd", x, x).flatten(-2))
        return self.head(z + self.attend(z, z))[:, 2, 1]  # type: ignore[no-any-return]


def says(op: str, claim: Callable[[Call, Value], Value]) -> Callable[[Patch], None]:
    """From here on, the transfer function of an operation claims something else."""

    def patch(patch: Patch) -> None:
        honest = TABLE[op]

        def claimed(call: Call) -> Any:
            value = honest(call)
            return value if isinstance(value, tuple) else claim(call, value)

        patch.setitem(TABLE, op, claimed)

    return patch


def lost(call: Call, value: Value) -> Value:
    return replace(value, slots=())


def of_the_first_row(call: Call, value: Value) -> Value:
    """All places are of the one token that was added first."""
    base, *_, source = call.operands()
    return replace(value, slots=base.value.active or source.value.slots)


def of_no_constant(call: Call, value: Value) -> Value:
    """Places of constants are of no token."""
    (slot,) = value.active
    labels = slot.labels.clone()
    labels[:, 0] = 0
    return replace(value, slots=(replace(slot, labels=labels),))


def one_key_is_no_key(patch: Patch) -> None:
    """Weights of one key, times it, are a product of two tokens place by place."""
    honest = TABLE["aten::matmul"]

    def claimed(call: Call) -> Any:
        weights, value = call.operands()
        one = value.shape[-2] == 1 and len(weights.value.active) == 2
        return call.carry(weights, value) if one else honest(call)

    patch.setitem(TABLE, "aten::matmul", claimed)


def learned_queries_are_faint(patch: Patch) -> None:
    others = elementwise._others
    firm = lambda *given: [slot for slot in others(*given) if slot.strength == STRONG]  # noqa: E731
    patch.setattr(elementwise, "_others", firm)
    patch.setattr(merge, "_other_single_token", lambda *_: False)


def pairs_give_way(patch: Patch) -> None:
    patch.setattr(elementwise, "_pair_tokens", lambda *_: None)


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    inputs: Any
    claim: Callable[[Patch], None]
    line: str
    """One that fails."""
    target: Any = 1


CASES = {
    "a row picked by a list has no token": Case(
        LastByList, IDS, says("aten::index", lost), "relevancy", (0, 1)
    ),
    "all rows are of the one that was added": Case(
        Dispatched, IDS, says("aten::index_add", of_the_first_row), "influence"
    ),
    "constant ids make no tokens": Case(
        ConstantFirst, IDS, says("aten::embedding", of_no_constant), "support"
    ),
    "a learned query has read nothing": Case(Pooled, X, learned_queries_are_faint, "support"),
    "a block of one key is none": Case(Blocks, X, one_key_is_no_key, "support"),
    "pairs give way to an outer product": Case(
        Pairs,
        (torch.randn(2, 4, WIDTH), torch.randn(2, 4, 4, 5)),
        pairs_give_way,
        "support",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_claim_fails(name: str, monkeypatch: Patch) -> None:
    case = CASES[name]
    model = case.build().eval()
    honest = fxplain.check(model, case.inputs, case.target)
    assert honest.understood, str(honest)
    case.claim(monkeypatch)
    verdict = fxplain.check(model, case.inputs, case.target)
    assert verdict.finding(case.line).outcome == "failed", str(verdict)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
