"""``Traced.why`` and ``inspect --why``: what a node is taken for, and what each rule made of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import fxplain
from fxplain.cli import app


class Reader(nn.Module):
    """Attention whose rows are divided late, or not at all, and a mean."""

    def __init__(self, divides: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.divides = divides

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        weights = (x @ x.mT).exp()
        y = weights @ x
        y = y / weights.sum(-1, keepdim=True) if self.divides else y / 7
        out: Tensor = self.head(y.mean(1))
        return out


def traced(divides: bool = True) -> fxplain.Traced:
    torch.manual_seed(0)
    return fxplain.trace(Reader(divides).eval(), torch.randn(2, 5, 6))


def test_labels_in_words() -> None:
    found = traced()
    scores = found.why("matmul")
    assert scores.operands[0] == "linear [2, 5, 8]: tokens of x along axis 1"
    assert scores.result == "matmul [2, 5, 5]: tokens of x along axis 1 by tokens of x along axis 2"
    assert found.why("linear").operands[0].endswith("elements of x, which are no tokens yet")
    assert found.why("mean").result == "mean [2, 8]: one token of mean"
    assert "test_why.py:" in scores.place


def test_roles() -> None:
    found = traced()
    assert found.why("matmul_1").role == "self attention 0: x [5] from x [5]"
    assert found.why("mean").role == "mixing 0: mean [1] from x [5]"
    assert not found.why("linear").role


def test_what_two_operands_are_to_each_other_is_told() -> None:
    found = traced()
    (scores,) = (rule.rule for rule in found.why("matmul").rules if not rule.reason)
    assert scores.startswith("scores: a row for the tokens of the one operand")
    assert any("sum values up: an attention" in rule.rule for rule in found.why("matmul_1").rules)


def test_a_rule_that_matches_has_no_reason() -> None:
    (rule,) = traced().why("div").rules
    assert (rule.rule, rule.reason) == ("a softmax divided late", "")
    assert "rule  'a softmax divided late' matches" in str(traced().why("div"))


def test_a_rule_that_does_not_match_says_why() -> None:
    (rule,) = traced(divides=False).why("div").rules
    assert rule.rule == "a softmax divided late"
    assert "not 1" in rule.reason
    (rule,) = traced().why("sum_1").rules
    assert "as a softmax does" in rule.reason


def test_no_such_node() -> None:
    with pytest.raises(fxplain.InputError, match=r"(?s)no such node.*matmul_1, mean.*found: nope"):
        traced().why("nope")
    with pytest.raises(fxplain.InputError, match=r"expected: matmul, matmul_1"):
        traced().why("matmu")


def test_at_the_command_line(tmp_path: Path) -> None:
    program = torch.export.export(Reader(True).eval(), (torch.randn(2, 5, 6),))
    torch.export.save(program, tmp_path / "reader.pt2")
    done = CliRunner().invoke(app, ["inspect", str(tmp_path / "reader.pt2"), "--why", "div"])
    assert done.exit_code == 0, done.output
    assert "rule  'a softmax divided late' matches" in done.output
