"""The scheduler meets the recorded results of the paper's authors' own code to 1e-12, in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fxplain.rules.relevancy import Flags, head_mean_relevance
from fxplain.schedule.rules_over_steps import (
    RELEVANCY,
    ROLLOUT,
    Rules,
    Step,
    StepKind,
    relevancy_rules,
    schedule,
)

GOLDENS: dict[str, Any] = json.loads((Path(__file__).parent.parent / "goldens" / "rules.json").read_text())
LXMERT_PARALLEL = (5, 9)
"""Image reads text from before the layer, though text has read image one step earlier."""


def tensor(numbers: Any) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def place(sizes: dict[str, int]) -> dict[str, Tensor]:
    """Token indices of every stream, one stream after the other."""
    streams, start = {}, 0
    for name, size in sizes.items():
        streams[name] = torch.arange(start, start + size)
        start += size
    return streams


def blocks(case: dict[str, Any], rules: Rules, parallel: tuple[int, ...] = ()) -> dict[str, Tensor]:
    """R after all sites of a recorded case, by streams. ``parallel``: sites blind to the one before."""
    streams = place(case["tokens"])
    total = sum(case["tokens"].values())
    steps, weights = [], []
    for index, site in enumerate(case["sites"]):
        kind: StepKind = "self" if site["query"] == site["key"] else "cross"
        reads = frozenset(range(index - 1 if index in parallel else index))
        steps.append(Step(index, streams[site["query"]], streams[site["key"]], kind, reads, reads))
        weights.append(head_mean_relevance(tensor(site["A"]), tensor(site["grad"]), dim=1))
    relevancy = schedule(steps, weights, total, rules)
    rows = relevancy.rows(torch.arange(total), frozenset(range(len(steps))))[0]
    return {f"{q},{k}": rows[streams[q]][:, streams[k]] for q in streams for k in streams}


def meets(found: dict[str, Tensor], expected: dict[str, Any]) -> None:
    for name, numbers in expected.items():
        torch.testing.assert_close(found[name], tensor(numbers), rtol=1e-12, atol=1e-12)


def test_co_attention_reads_the_state_before_the_layer() -> None:
    meets(blocks(GOLDENS["lxmert"], RELEVANCY, LXMERT_PARALLEL), GOLDENS["lxmert"]["expected"])


def test_sequential_reads_would_give_something_else() -> None:
    found = blocks(GOLDENS["lxmert"], RELEVANCY)
    expected = tensor(GOLDENS["lxmert"]["expected"]["image,text"])
    assert not torch.allclose(found["image,text"], expected, rtol=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("in_rule_10", [True, False])
def test_encoder_decoder_in_every_ablation(normalize: bool, in_rule_10: bool) -> None:
    rules = relevancy_rules(Flags(normalize_self_attention=normalize, self_in_rule_10=in_rule_10))
    expected = GOLDENS["detr"]["expected"][f"normalize={normalize},self_in_rule_10={in_rule_10}"]
    meets(blocks(GOLDENS["detr"], rules), expected)


def test_self_attentions_alone() -> None:
    meets(blocks(GOLDENS["self_only"], RELEVANCY), GOLDENS["self_only"]["expected"])


def test_rollout() -> None:
    maps = tensor(GOLDENS["rollout"]["A"])
    tokens = torch.arange(maps.shape[-1])
    steps = [
        Step(i, tokens, tokens, "self", frozenset(range(i)), frozenset(range(i))) for i in range(len(maps))
    ]
    rows = schedule(steps, [m[None] for m in maps], len(tokens), ROLLOUT).rows(
        tokens, frozenset(range(len(maps)))
    )
    torch.testing.assert_close(
        rows[0], tensor(GOLDENS["rollout"]["expected_normalised"]), rtol=1e-12, atol=1e-12
    )


def test_eq_5_inside_a_single_step() -> None:
    case = GOLDENS["eq5"]
    weights = head_mean_relevance(tensor(case["A"]), tensor(case["grad"]), dim=1)
    tokens = torch.arange(weights.shape[-1])
    step = Step(0, tokens, tokens, "self", frozenset(), frozenset())
    rows = schedule([step], [weights], len(tokens), RELEVANCY).excess(tokens, frozenset({0}))
    torch.testing.assert_close(rows[0], tensor(case["expected"]), rtol=1e-12, atol=1e-12)
