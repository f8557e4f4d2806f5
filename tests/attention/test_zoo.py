"""Every model of the zoo: captured, verified, its attentions found and typed, its readout and maps right."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from zoo import ZOO, built, slice_batch, traced
from zoo.compare import (
    aligned,
    assert_close,
    assert_same,
    check_census,
    check_maps,
    check_padding,
    check_readout,
    check_records,
)

import fxplain

TOLERANCE = 1e-5
# torch's own encoder says this when it takes its fast path
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")


BOTH = sorted(name.removesuffix("-sdpa") for name in ZOO if name.endswith("-sdpa"))
REPORTING = [name for name in ZOO if not name.endswith("-sdpa") and built(name)[2].maps is not None]


@cache
def explained(name: str) -> Any:
    _, inputs, expected = built(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return traced(name).explain(
            inputs, method="relevancy", target=expected.target, output=expected.output
        )


@pytest.mark.parametrize("name", ZOO)
def test_captured_and_verified(name: str) -> None:
    assert traced(name).captured.verified <= TOLERANCE


@pytest.mark.parametrize("name", ZOO)
def test_attentions_are_all_there_are_and_typed(name: str) -> None:
    check_records(traced(name))
    aligned(traced(name), built(name)[2])


@pytest.mark.parametrize("name", ZOO)
def test_census_says_what_is_not_attention(name: str) -> None:
    check_census(traced(name), built(name)[2])


@pytest.mark.parametrize("name", ZOO)
def test_explained_reads_the_right_rows(name: str) -> None:
    result = explained(name)
    assert result.verified <= TOLERANCE
    assert all(torch.isfinite(values).all() for values in result.relevance.values())
    assert any(values.abs().sum() > 0 for values in result.relevance.values())
    check_readout(result, traced(name), built(name)[2])


BOTH_WAYS = ("sam-",)
"""Models whose streams read each other in turns (co-attention, more than one layer of it)."""


@pytest.mark.parametrize("name", ZOO)
def test_row_mode_equals_matrix_mode(name: str) -> None:
    _, inputs, expected = built(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        matrix = traced(name).explain(
            inputs, method="relevancy", target=expected.target, output=expected.output, mode="matrix"
        )
    assert matrix.mode == "matrix"
    assert explained(name).mode == ("matrix" if name.startswith(BOTH_WAYS) else "rows")
    assert_same(explained(name), matrix, 1e-5, "row mode against matrix mode")


@pytest.mark.parametrize("name", [name for name in ZOO if built(name)[2].padded])
def test_padded_tokens_have_no_relevance(name: str) -> None:
    check_padding(explained(name), traced(name), built(name)[2])


@pytest.mark.parametrize("name", REPORTING)
def test_maps_equal_the_reported_ones(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        check_maps(traced(name), built(name)[1], built(name), TOLERANCE)


@pytest.mark.parametrize("name", BOTH)
def test_eager_and_fused_give_the_same_relevance(name: str) -> None:
    if not built(f"{name}-eager")[2].same_fused:
        pytest.skip("the model itself computes something else under SDPA")
    assert_same(explained(f"{name}-eager"), explained(f"{name}-sdpa"), 1e-4, "eager against SDPA")


ALONE = [
    n for n in ZOO if len(built(n)[2].readout) == 2 and built(n)[2].separable and not n.endswith("-eager")
]


@pytest.mark.parametrize("name", ALONE)
def test_batch_equals_one_by_one(name: str) -> None:
    model, _, expected = case = built(name)
    together, index = explained(name), 1  # the sample that is padded
    inputs = slice_batch(case, index)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        alone = fxplain.explain(
            model, inputs, method="relevancy", target=expected.target, output=expected.output
        )
    torch.testing.assert_close(alone.score[0], together.score[index], rtol=1e-4, atol=1e-5)
    for space in alone.relevance:
        wanted = together.relevance[space][index : index + 1]
        assert_close(alone.relevance[space], wanted, 1e-4, f"sample {index}, {space}")
