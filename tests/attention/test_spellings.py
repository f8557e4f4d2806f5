"""Attention in every spelling is found, typed and rebuilt; a softmax that is none is called by its name."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from spellings import NEGATIVES, SPELLINGS
from zoo.compare import aligned, check_census, check_maps, check_readout, check_records
from zoo.spec import Case

import fxplain

EVERYTHING = {**SPELLINGS, **{f"not-{name}": build for name, build in NEGATIVES.items()}}
TOLERANCE = 1e-5
BF16 = {"float32": 2e-2}
"""Cases that compute in bf16 inside."""


@cache
def built(name: str) -> Case:
    return EVERYTHING[name]()


@cache
def traced(name: str) -> Any:
    model, inputs, _ = built(name)
    return fxplain.trace(model, inputs)


@pytest.mark.parametrize("name", EVERYTHING)
def test_found_and_typed(name: str) -> None:
    assert traced(name).captured.verified <= TOLERANCE
    check_records(traced(name))
    aligned(traced(name), built(name)[2])


@pytest.mark.parametrize("name", EVERYTHING)
def test_maps_are_the_modules_own(name: str) -> None:
    check_maps(traced(name), built(name)[1], built(name), BF16.get(name, TOLERANCE))


@pytest.mark.parametrize("name", EVERYTHING)
def test_explained(name: str) -> None:
    _, inputs, expected = built(name)
    result = traced(name).explain(inputs, method="relevancy", target=expected.target)
    assert all(torch.isfinite(values).all() for values in result.relevance.values())
    check_readout(result, traced(name), expected)


@pytest.mark.parametrize("name", NEGATIVES)
def test_census_says_why_not(name: str) -> None:
    check_census(traced(f"not-{name}"), built(f"not-{name}")[2])
