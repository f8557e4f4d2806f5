"""Random transformers agree with a dense reference that shares no code with fxplain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from random_models.compare import disagreement
from random_models.equations import Map, relevancy
from random_models.plan import Layer, Plan, Spelling, Stream, draw

SEEDS = range(120)
SHRUNK = {
    "a query that has attended is added to keys, one of which is learned": Plan(
        streams=(Stream("picture"),),
        layers=(
            Layer(spelling=Spelling("module")),
            Layer("slice", spelling=Spelling("additive", heads=2, extra="bias_kv")),
        ),
        seed=114,
    ),
    "a query of several heads whose features are divided by their norm": Plan(
        layers=(Layer("slice", spelling=Spelling("sdpa_flags", heads=2, extra="normed")),), seed=2371
    ),
    "weights of one key, divided by their sum late": Plan(
        layers=(Layer("latents"), Layer("part", spelling=Spelling("divided_late", heads=4))),
        pool="mean",
        seed=2596,
    ),
}
"""Plans that once disagreed, shrunk: a kind of fault each."""

GOLDENS = json.loads((Path(__file__).parent.parent / "goldens" / "rules.json").read_text())


@pytest.mark.parametrize(
    ("case", "expected", "parallel"),
    [
        ("lxmert", GOLDENS["lxmert"]["expected"], (5, 9)),
        ("detr", GOLDENS["detr"]["expected"]["normalize=True,self_in_rule_10=True"], ()),
        ("self_only", GOLDENS["self_only"]["expected"], ()),
    ],
)
def test_the_reference_meets_the_authors_code(case: str, expected: dict, parallel: tuple[int, ...]) -> None:
    streams, count = {}, 0
    for name, size in GOLDENS[case]["tokens"].items():
        streams[name] = list(range(count, count + size))
        count += size
    maps, averaged, group = [], [], 0
    for index, site in enumerate(GOLDENS[case]["sites"]):
        weights, slope = (torch.tensor(site[key], dtype=torch.float64) for key in ("A", "grad"))
        group += index not in parallel
        maps.append(Map(weights, streams[site["query"]], streams[site["key"]], group))
        averaged.append((weights * slope).clamp(min=0).mean(1)[0])
    R = relevancy(maps, averaged, count)  # noqa: N806
    for blocks, numbers in expected.items():
        q, k = (torch.tensor(streams[name]) for name in blocks.split(","))
        torch.testing.assert_close(
            R[q][:, k], torch.tensor(numbers, dtype=torch.float64), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_model_agrees(seed: int) -> None:
    plan = draw(seed)
    found = disagreement(plan)
    assert found is None, f"{found}\n{plan}\nshrink it: python tests/random_models --seed {seed} --count 1"


@pytest.mark.parametrize("fault", SHRUNK)
def test_a_shrunk_model_agrees(fault: str) -> None:
    assert disagreement(SHRUNK[fault]) is None
