"""`fxplain.check`: what it says of a model that is understood, of one without attention, and of one that is
not."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxplain
from fxplain.verdict import NAMES, untraceable


class Net(nn.Module):
    """One attention, and what `between` does to its tokens before."""

    def __init__(self, between: Any = None, after: Any = None) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.between, self.after = between, after

    def forward(self, x: Tensor) -> Tensor:
        if self.between is not None:
            x = self.between(x)
        x = (self.query(x) @ self.key(x).mT).softmax(-1) @ self.value(x)
        return x if self.after is None else self.after(x)


@torch.library.custom_op("check::rows_mixed", mutates_args=())
def rows_mixed(x: Tensor) -> Tensor:
    """An operation nobody knows, that moves data between tokens."""
    return x.flip(1) + x


@rows_mixed.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def outcomes(verdict: fxplain.Verdict) -> dict[str, str]:
    return {finding.name: finding.outcome for finding in verdict.findings}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_all_lines_of_a_model_that_is_understood() -> None:
    torch.manual_seed(0)
    verdict = fxplain.check(
        nn.Transformer(8, 2, 1, 1, 16).eval(), (torch.randn(5, 2, 8), torch.randn(4, 2, 8))
    )
    assert verdict.answer == "explained"
    assert verdict.understood
    assert verdict.error is None
    assert outcomes(verdict) == dict.fromkeys(NAMES, "ok")
    assert verdict.finding("attentions").sentence == "2 self; 1 encoder-decoder"
    assert "3 of 3 maps are rebuilt" in verdict.finding("maps").sentence
    assert verdict.traced is not None
    assert len(verdict.traced.attentions) == 3
    assert verdict.result is not None
    assert str(verdict).startswith("explained, understood\ngraph       ok ")


def test_a_model_without_attention_is_understood_and_the_census_says_why() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.experts = nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return (self.gate(x).softmax(-1).unsqueeze(1) @ self.experts(x).unsqueeze(2)).flatten(1)

    verdict = fxplain.check(Gated(), torch.randn(2, 8))
    assert (verdict.answer, verdict.understood) == ("no attention", True)
    assert verdict.finding("census").sentence.startswith("1 expert router (mixes ")
    assert outcomes(verdict)["relevancy"] == "not applicable"


def test_labels_that_were_lost_are_a_refusal_that_names_the_node() -> None:
    verdict = fxplain.check(
        Net(lambda x: rows_mixed(nn.functional.linear(x, torch.eye(8)))), torch.randn(1, 5, 8)
    )
    assert (verdict.answer, verdict.understood) == ("refused", False)
    assert isinstance(verdict.error, fxplain.FxplainError)
    assert outcomes(verdict)["labels"] == "failed"
    assert "rows_mixed" in verdict.finding("labels").sentence
    assert outcomes(verdict)["relevancy"] == "not applicable"
    assert "refused" in verdict.finding("relevancy").sentence


def test_labels_lost_beside_every_attention_fail_too() -> None:
    class Beside(Net):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x), rows_mixed(self.query(x))

    verdict = fxplain.check(Beside(), torch.randn(1, 5, 8))
    assert not verdict.understood
    assert outcomes(verdict)["labels"] == "failed"


def test_a_model_that_raises_is_refused_at_once() -> None:
    verdict = fxplain.check(nn.Linear(3, 3), torch.randn(1, 4))
    assert verdict.answer == "refused"
    assert outcomes(verdict)["graph"] == "failed"
    assert set(list(outcomes(verdict).values())[1:]) == {"not applicable"}


def test_relevance_that_is_all_zero_fails() -> None:
    verdict = fxplain.check(Net(after=lambda x: 0 * x), torch.randn(2, 5, 8))
    assert outcomes(verdict)["relevancy"] == "failed"
    assert "all zero (of sample 0, 1)" in verdict.finding("relevancy").sentence


def test_a_token_that_sees_itself_alone_is_not_the_one_explained() -> None:
    class Causal(Net):
        def forward(self, x: Tensor) -> Tensor:
            later = torch.ones(5, 5).triu(1).bool()
            scores = (self.query(x) @ self.key(x).mT).masked_fill(later, -torch.inf)
            return scores.softmax(-1) @ self.value(x) + torch.tensor([9.0, 0, 0, 0, 0])[:, None]

    verdict = fxplain.check(Causal(), torch.randn(2, 5, 8))
    assert verdict.understood
    assert verdict.result is not None
    assert [target[0] for target in verdict.result.target] == [4, 4]
    assert not fxplain.check(Causal(), torch.randn(2, 5, 8), target=(0,)).understood


def test_a_single_key_weighs_nothing() -> None:
    verdict = fxplain.check(Net(), torch.randn(1, 1, 8))
    assert verdict.understood
    assert outcomes(verdict)["relevancy"] == "not applicable"


def test_a_target_that_cannot_be_explained_is_told() -> None:
    verdict = fxplain.check(Net(), torch.randn(1, 5, 8), target=(0, 99))
    assert outcomes(verdict)["relevancy"] == "failed"
    assert "99" in verdict.finding("relevancy").sentence


def test_tokens_of_nowhere_are_seen() -> None:
    traced = fxplain.trace(Net(), torch.randn(1, 5, 8))
    assert not list(untraceable(traced))
    spaces = tuple(dataclasses.replace(space, source="nowhere") for space in traced.spaces)
    classified = dataclasses.replace(traced._first.classified, spaces=spaces)
    first = dataclasses.replace(traced._first, classified=classified)
    problems = list(untraceable(dataclasses.replace(traced, _first=first)))
    assert len(problems) == 2
    assert "no input, parameter or mixing of them" in problems[0]


def test_errors_that_are_not_ours_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxplain.verdict.trace", lambda model, inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fxplain.check(Net(), torch.randn(1, 5, 8))
