"""Result and Relevance: token spaces, grids, blocks of the relevancy matrix."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from render_fixtures import image_result, space, text_result, two_stream_result

import fxplain
from fxplain.attention.records import Stream
from fxplain.errors import FxplainError, MethodError, UnknownNameError
from fxplain.result import Relevance


def test_rows_are_cut_into_spaces() -> None:
    spaces = (space("a", 0, 2), space("b", 2, 3))
    relevance = Relevance.from_rows(torch.arange(10.0).reshape(2, 5), spaces)
    assert list(relevance) == ["a", "b"]
    assert relevance["b"].tolist() == [[2.0, 3.0, 4.0], [7.0, 8.0, 9.0]]


@pytest.mark.parametrize("grid", [(6,), (2, 3), (1, 2, 3)])
def test_grid_has_the_shape_of_birth_in_row_order(grid: tuple[int, ...]) -> None:
    relevance = Relevance.from_rows(torch.arange(12.0).reshape(2, 6), (space("a", 0, *grid),))
    assert relevance.grid("a").shape == (2, *grid)
    assert relevance.grid("a").flatten(1).tolist() == relevance["a"].tolist()


def test_sizes_must_fit() -> None:
    with pytest.raises(ValueError, match=r"expected \[batch, 3\], found \(1, 2\)"):
        Relevance({"a": torch.zeros(1, 2)}, (space("a", 0, 3),))


def test_unknown_names_are_key_errors_that_name_the_known_ones() -> None:
    result = two_stream_result()
    with pytest.raises(UnknownNameError, match="'visual_feats'") as caught:
        result.relevance["pixels"]
    assert isinstance(caught.value, KeyError)
    assert isinstance(caught.value, FxplainError)
    assert "\\n" not in str(caught.value)
    assert result.relevance.get("pixels") is None
    assert "pixels" not in result.relevance
    for names in (("pixels", "input_ids"), ("input_ids", "pixels")):
        with pytest.raises(UnknownNameError, match="'pixels'"):
            result.matrix(*names)


def test_matrix_between_spaces() -> None:
    result = two_stream_result()
    assert result.relevancy is not None
    block = result.matrix("input_ids", "visual_feats")
    assert block.shape == (1, 6, 36)
    assert torch.equal(block, result.relevancy[:, :6, 6:])
    assert torch.equal(result.matrix("visual_feats", "input_ids"), result.relevancy[:, 6:, :6])


def test_matrix_of_a_stream_follows_its_token_order() -> None:
    stream = Stream("picked", (40, 3, 7), ("visual_feats", "input_ids"))
    result = two_stream_result(streams=(stream,))
    assert result.relevancy is not None
    block = result.matrix("picked", "picked")
    assert torch.equal(block, result.relevancy[:, [40, 3, 7]][:, :, [40, 3, 7]])


def test_a_space_wins_over_a_stream_of_its_name() -> None:
    result = two_stream_result(streams=(Stream("input_ids", (0,), ("input_ids",)),))
    assert result.matrix("input_ids", "input_ids").shape == (1, 6, 6)


def test_without_a_matrix_the_error_says_which_method_has_one() -> None:
    with pytest.raises(MethodError, match="'rollout' keeps no relevancy matrix"):
        text_result(method="rollout", relevancy=None).matrix("input_ids", "input_ids")


def test_repr_is_short() -> None:
    text = repr(image_result(14, 2))
    assert len(text) < 200
    assert "pixel_values[196]" in text
    assert "batch=2" in text


LAYER = torch.nn.Sequential(
    torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.nn.Flatten(), torch.nn.Linear(40, 3)
).eval()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda data: pickle.loads(pickle.dumps(data))])
@pytest.mark.parametrize("target", [1, lambda output: output[:, 1]])
@pytest.mark.parametrize("mode", ["rows", "matrix"])
def test_a_result_is_data(copied: Any, target: Any, mode: Any) -> None:
    traced = fxplain.trace(LAYER, x := torch.randn(2, 5, 8))
    result = traced.explain(x, target=target, mode=mode)
    again = copied(result)
    torch.testing.assert_close(again.relevance["input"], result.relevance["input"])
    assert again.question == result.question
    if mode == "matrix":
        torch.testing.assert_close(again.matrix("input", "input"), result.matrix("input", "input"))
    else:
        with pytest.raises(MethodError, match="a copy of a result has no model"):
            again.matrix("input", "input")
        result.matrix("input", "input")
        torch.testing.assert_close(copied(result).matrix("input", "input"), result.matrix("input", "input"))


def test_a_comparison_is_data() -> None:
    x = torch.randn(1, 5, 8)
    found = fxplain.compare(LAYER, x, ["relevancy", "rollout", "random"], target=1)
    again = pickle.loads(pickle.dumps(found))
    for name in found:
        torch.testing.assert_close(again[name].relevance["input"], found[name].relevance["input"])
