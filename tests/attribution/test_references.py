"""Relevancy against eight references worked out by hand from the models' own maps and gradients."""

from __future__ import annotations

import pytest
import torch
from references import REFERENCES, exact, exactly_traced
from zoo import built, traced
from zoo.compare import aligned, assert_close

TOLERANCE = 1e-5


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("name", REFERENCES)
def test_relevancy_equals_the_reference(name: str, precision: str) -> None:
    model, inputs, expected = exact(name) if precision == "float64" else built(name)
    wanted = REFERENCES[name](model, inputs)
    known = exactly_traced(name) if precision == "float64" else traced(name)
    result = known.explain(inputs, method="relevancy", target=expected.target, output=expected.output)
    torch.testing.assert_close(result.score.to(wanted.score.dtype), wanted.score, rtol=1e-5, atol=1e-6)
    sites = aligned(known, expected)
    for index, block in wanted.blocks:
        attention = sites[index]
        if attention is None:
            continue  # dead code: the score does not depend on it
        found = result.matrix(attention.queries.name, attention.keys.name)
        assert_close(found.to(block.dtype), block, TOLERANCE, f"R at {attention.module}")


@pytest.mark.parametrize("name", REFERENCES)
def test_relevance_is_the_row_that_is_read(name: str) -> None:
    model, inputs, expected = exact(name)
    wanted = REFERENCES[name](model, inputs)
    result = exactly_traced(name).explain(
        inputs, method="relevancy", target=expected.target, output=expected.output
    )
    sites = aligned(exactly_traced(name), expected)
    everything = torch.cat([result.relevance[space.name] for space in result.spaces], 1)
    for index, row in wanted.rows:
        attention = sites[index]
        assert attention is not None
        columns = torch.tensor(attention.keys.tokens)
        found = everything[:, columns].to(row.dtype)
        own = torch.tensor([[t in dict(read) for t in columns.tolist()] for read in result.readout])
        # a token's relevance to itself is set aside, as in the authors' code
        assert_close(
            found.masked_fill(own, 0), row.masked_fill(own, 0), TOLERANCE, f"row at {attention.module}"
        )
