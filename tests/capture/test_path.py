"""A recording is used again for inputs that take its path, and made anew for those that take another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxplain
from fxplain.attention.labelled import capture_and_label


class Attend(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).transpose(-2, -1)
        return torch.as_tensor(scores.softmax(-1) @ self.v(x))


class Branch(Attend):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 2 if bool(x.sum() > 0) else x)


class Listed(Attend):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y * 2 if any((x[:, 0, 0] > 0).tolist()) else y


class Experts(Attend):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x) + x
        out = torch.zeros_like(x)
        chosen = (x[..., 0] > 0).long()
        for number in sorted(set(chosen.flatten().tolist())):
            found = torch.where(chosen == number)
            out[found] = out[found] + self.experts[number](x[found])
        return out


class Masked(Attend):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x).clone()
        if bool(x.sum() < 1e9):  # an export cannot go on here
            y[x > 0] = y[x > 0] * 2
        return y


class ThroughNumpy(Attend):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * torch.from_numpy((x.detach().numpy() > 0).astype("float32")))


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each capture that a traced model has made since."""
    made: list[int] = []

    def counted(*args: Any) -> Any:
        made.append(1)
        return capture_and_label(*args)

    monkeypatch.setattr("fxplain.layouts.capture_and_label", counted)
    return made


@pytest.mark.parametrize("kind", [Branch, Listed, Experts, Masked])
def test_the_same_path_is_used_again(kind: type[nn.Module], captures: list[int]) -> None:
    model = kind().eval()
    x = torch.randn(2, 3, 4)
    traced = fxplain.trace(model, x)
    assert traced.captured.strategy == "record"
    near = x * 1.001
    again = traced.explain(near, (1, 2))
    assert not captures
    assert again.verified <= 1e-5
    fresh = fxplain.trace(model, near).explain(near, (1, 2))
    for path, values in fresh.relevance.items():
        torch.testing.assert_close(again.relevance[path], values)


@pytest.mark.parametrize("kind", [Branch, Listed, Experts, Masked, ThroughNumpy])
def test_another_path_is_recorded_anew(kind: type[nn.Module], captures: list[int]) -> None:
    model = kind().eval()
    x = torch.randn(2, 3, 4).abs() + 0.1
    traced = fxplain.trace(model, x)
    other = traced.explain(-x, (1, 2))
    assert len(captures) == 1
    assert other.verified <= 1e-5
    fresh = fxplain.trace(model, -x).explain(-x, (1, 2))
    for path, values in fresh.relevance.items():
        torch.testing.assert_close(other.relevance[path], values)


def test_new_weights_may_take_another_path(captures: list[int]) -> None:
    model = Experts().eval()
    x = torch.randn(2, 3, 4)
    traced = fxplain.trace(model, x)
    with torch.no_grad():
        model.v.weight.neg_()
    assert traced.explain(x * 1.001, (1, 2)).verified <= 1e-5
    assert len(captures) == 1


def test_a_model_is_left_as_it_was(captures: list[int]) -> None:
    model = Experts().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(2, 3, 4)
    near = x * 1.001
    copy = near.clone()
    fxplain.trace(model, x).explain(near, (1, 2))
    assert torch.equal(near, copy)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
