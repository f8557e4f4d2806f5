"""The influence law: it holds where labels are right, and names the node at which they are not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import fxplain
from fxplain.labels.labels import STRONG, Slot, codes_of
from fxplain.laws.influence import Violation, violations


class Two(nn.Module):
    """Two attentions over one sequence, read at the first token."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.head = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = x + (self.query(x) @ self.key(x).mT).softmax(-1) @ self.value(x)
        return self.head(x[:, 0])


def broken(traced: Any, x: Tensor, findings: Any = None) -> tuple[Violation, ...]:
    captured = traced.captured
    return violations(captured, captured.bind((x,), {}), findings or traced._first.findings)


def test_it_holds_for_plain_attention_sample_by_sample() -> None:
    x = torch.randn(2, 5, 8)
    assert broken(fxplain.trace(Two().eval(), x), x) == ()


def test_an_attention_that_labels_forget_is_named() -> None:
    x = torch.randn(1, 5, 8)
    traced = fxplain.trace(Two().eval(), x)
    findings = traced._first.findings
    node = findings.ledger.sites[0].node
    value = findings.value(node)
    old = replace(value, slots=tuple(replace(slot, reads=frozenset()) for slot in value.slots))
    found = broken(traced, x, replace(findings, values={**findings.values, node: old}))
    assert found[0].node is node
    assert found[0].source == "x"
    assert node.name in str(found[0])


def test_rows_that_are_taken_for_others_are_named() -> None:
    x = torch.randn(1, 5, 8)
    traced = fxplain.trace(Two().eval(), x)
    findings = traced._first.findings
    node = next(n for n, v in findings.values.items() if not isinstance(v, tuple) and v.active)
    (slot,) = findings.value(node).active
    wrong = Slot(slot.labels.roll(1, 1), STRONG)
    assert not torch.equal(codes_of(wrong.labels), codes_of(slot.labels))
    later = next(user for user in node.users if findings.value(user).active)
    value = replace(findings.value(later), slots=(wrong,))
    found = broken(traced, x, replace(findings, values={**findings.values, later: value}))
    assert later in {violation.node for violation in found}
