"""LRP of a batch: one pass for all samples where they are independent, else one for each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lrp_bodies import BODIES, WIDE, Attends, crossed
from zoo.spec import floats, make

import fxplain
from fxplain.attribution.lrp.interpret import Propagated, propagate
from fxplain.attribution.lrp.samples import is_apart, tags
from fxplain.attribution.lrp.table import TABLE, Call, Shares, relevance_rule


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxplain.attribution.lrp.methods._Run.together", lambda run: None)


def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """For how many samples each pass that is made from now on is."""
    made: list[int] = []

    def counted(*args: Any) -> Propagated:
        made.append(args[-2].count)
        return propagate(*args)

    monkeypatch.setattr("fxplain.attribution.lrp.methods.propagate", counted)
    return made


@pytest.mark.parametrize("method", ["lrp", "attnlrp", "transformer_attribution"])
@pytest.mark.parametrize("kind", ["residual", "dispatched", "conv", "windows", "unit", "solved", "complex"])
def test_all_samples_go_back_in_one_pass(kind: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = make(lambda: Attends(BODIES[kind])).double(), floats(2, 5, WIDE, seed=5).double()
    traced, made = fxplain.trace(model, x), passes(monkeypatch)
    together = traced.explain(x, target=[1, 2], method=method)
    assert made == [2, 2], "the second pass shows that the samples stay apart"
    traced.explain(x, target=[1, 2], method=method)
    again = 2 if kind == "dispatched" else 1  # whose an expert's tokens are is looked at for each input
    assert made == [2] * (2 + again)
    one_by_one(monkeypatch)
    apart = traced.explain(x, target=[1, 2], method=method)
    assert made[-2:] == [1, 1]
    torch.testing.assert_close(together.relevance["x"], apart.relevance["x"])
    assert together.notes == apart.notes


def test_a_rule_that_sums_over_all_samples_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    @relevance_rule("lrplab::crossed")
    def evenly(call: Call) -> Shares:
        ((node, x),) = call.carriers
        return [(node, call.relevance.sum() * x.abs() * (call.relevance != 0) / x.abs().sum())]

    try:
        model, x = (
            make(lambda: Attends(lambda m, x: crossed(x))).double(),
            floats(2, 5, WIDE, seed=5).double(),
        )
        traced, made = fxplain.trace(model, x), passes(monkeypatch)
        traced.explain(x, target=1, method="lrp")
        assert made == [2, 2, 1, 1]
    finally:
        del TABLE["lrplab::crossed", ""]


def test_what_comes_out_as_another_multiple_is_foreign() -> None:
    rows, owners = torch.tensor([[3.0, -1.0], [2.0, 5.0]]).double(), torch.tensor([[0], [1]])
    marks = tags(2)
    own = {"rows": (rows * marks[:, None], owners)}
    foreign = {"rows": (rows * marks[:, None] + torch.tensor([[1e-9], [0.0]]), owners)}
    assert is_apart({"rows": (rows, owners)}, own, marks)
    assert not is_apart({"rows": (rows, owners)}, foreign, marks)
    assert len(set(tags(48).tolist())) == 48
    assert bool((tags(1000) > 0).all())
