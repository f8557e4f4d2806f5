"""Targets that are sums of others (contrasts, log-probabilities, several words) equal functions of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

import fxplain
from fxplain.display import Display
from fxplain.targets import LARGEST, Combined, contrast, log_probability, total

IDS = torch.tensor([[7, 3, 12, 5, 9, 4]])


@pytest.fixture(scope="module")
def writer() -> tuple[Any, dict[str, Tensor]]:
    torch.manual_seed(0)
    config = hf.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=99, bos_token_id=1, eos_token_id=2)
    inputs = {"input_ids": IDS}
    return fxplain.trace(hf.GPT2LMHeadModel(config).double().eval(), inputs), inputs


def log(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1)


SUMS: dict[str, tuple[Any, Any]] = {
    "contrast": (contrast(11, 13), lambda out: out.logits[:, -1, 11] - out.logits[:, -1, 13]),
    "log": (log_probability(11), lambda out: log(out.logits)[:, -1, 11]),
    "span": (
        total([log_probability((2, 5)), log_probability((3, 9))]),
        lambda out: log(out.logits)[:, 2, 5] + log(out.logits)[:, 3, 9],
    ),
    "log contrast of places": (
        contrast(log_probability((1, 4)), (4, 4)),
        lambda out: log(out.logits)[:, 1, 4] - out.logits[:, 4, 4],
    ),
}


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("mode", ["rows", "matrix"])
def test_a_sum_is_the_function_it_stands_for(writer: Any, name: str, mode: Any) -> None:
    traced, inputs = writer
    target, function = SUMS[name]
    found, wanted = (traced.explain(inputs, t, mode=mode) for t in (target, function))
    torch.testing.assert_close(found.score, wanted.score, rtol=1e-12, atol=1e-12)
    assert set(found.readout[0]) == set(wanted.readout[0])
    for space in wanted.relevance:
        torch.testing.assert_close(found.relevance[space], wanted.relevance[space], rtol=1e-9, atol=1e-12)
    assert float(found.relevance["input_ids"].sum()) > 0


def test_log_probability_is_another_explanation_than_the_score(writer: Any) -> None:
    traced, inputs = writer
    one, other = (traced.explain(inputs, t).relevance["input_ids"] for t in (11, log_probability(11)))
    assert not torch.allclose(one, other)


def test_several_targets_may_be_sums_and_the_matrix_comes_later(writer: Any) -> None:
    traced, inputs = writer
    targets = [contrast(11, 13), 11, total([(2, 5), (3, 9)])]
    for target, found in zip(targets, traced.explain_targets(inputs, targets), strict=True):
        alone = traced.explain(inputs, target)
        torch.testing.assert_close(found.relevance["input_ids"], alone.relevance["input_ids"])
        assert str(found.question) == str(alone.question)
        assert found.matrix("input_ids", "input_ids").shape == (1, 6, 6)


def test_what_was_asked_is_said(writer: Any) -> None:
    traced, inputs = writer
    display = Display(tokens={"input_ids": [list("abcdef")]}, labels={11: " France", 13: " Italy"})

    def said(target: Any) -> str:
        result = traced.explain(inputs, target)
        return display.question(result.questions, 0)

    words = said(contrast(11, 13))
    assert words.startswith(
        "the score of ' France' against ' Italy' as the next token after 'def', probabilities"
    )
    assert said(contrast(11, 7)).startswith("the score of ' France' against token 7 as the next token")
    assert said(log_probability(11)).startswith(
        "the log-probability of ' France' as the next token after 'def', p"
    )
    assert said(total([(2, 11), (3, 13)])) == (
        "the score of ' France' as the next token after 'abc', plus the score of ' Italy' as the next token "
        "after 'bcd'"
    )
    assert str(contrast(log_probability(3), (1, 2))) == "log 3 - (1, 2)"


def test_the_largest_may_be_contrasted(writer: Any) -> None:
    traced, inputs = writer
    found = traced.explain(inputs, contrast(None, 13))
    assert found.target[0].terms[0].target == traced.explain(inputs).target[0]
    assert traced.explain(inputs, contrast(LARGEST, 13)).score >= found.score


def test_each_sample_has_a_sum_of_its_own(writer: Any) -> None:
    traced, _ = writer
    inputs = {"input_ids": torch.cat([IDS, IDS.flip(1)])}
    targets = [contrast(11, 13), 5]
    both = traced.explain(inputs, targets)
    for sample, target in enumerate(targets):
        alone = traced.explain({"input_ids": inputs["input_ids"][sample : sample + 1]}, target)
        torch.testing.assert_close(both.relevance["input_ids"][sample], alone.relevance["input_ids"][0])
    display = Display()
    assert display.target_name(both.target, 0) == "(5, 11) - (5, 13)"
    assert display.target_name(both.target, 1) == "5, 5"


def test_sums_of_what_is_no_index_are_refused(writer: Any) -> None:
    traced, inputs = writer
    with pytest.raises(fxplain.TargetError, match="a target is an index"):
        traced.explain(inputs, contrast("France", 3))
    with pytest.raises(fxplain.TargetError, match="out of range"):
        traced.explain(inputs, contrast(3, 99))
    with pytest.raises(fxplain.TargetError, match="no place in a sum"):
        contrast(lambda out: out, 3)
    with pytest.raises(fxplain.TargetError, match="needs some"):
        total([])


def test_a_plain_number_has_no_log_probability() -> None:
    torch.manual_seed(0)
    model = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    with pytest.raises(fxplain.TargetError, match="no probability"):
        fxplain.explain(model, torch.randn(1, 5, 8), target=log_probability((0, 3)))


def test_independent_classes_have_probabilities_of_their_own() -> None:
    torch.manual_seed(0)
    small: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    kind: dict[str, Any] = {
        "problem_type": "multi_label_classification",
        "vocab_size": 99,
        "intermediate_size": 16,
    }
    model = hf.BertForSequenceClassification(hf.BertConfig(**small, **kind, num_labels=3)).eval()
    found = fxplain.explain(model, {"input_ids": IDS}, target=log_probability(2))
    with torch.no_grad():
        torch.testing.assert_close(found.score, model(IDS).logits[:, 2].sigmoid().log())


def test_files_of_datasets_take_sums(writer: Any, tmp_path: Path) -> None:
    traced, inputs = writer
    found = fxplain.explain_dataset(traced, [inputs], tmp_path / "out", target=contrast(11, 13))
    assert found[0][0].target == "(5, 11) - (5, 13)"
    assert json.loads((tmp_path / "out" / "job.json").read_text())


def test_sums_are_values() -> None:
    assert contrast(3, 5) == contrast(3, 5)
    assert isinstance(hash(contrast((1, 3), 5)), int)
    assert isinstance(total([contrast(3, 5), 7]), Combined)
    assert contrast(3, contrast(5, 7)) == total([contrast(3, 5), 7])
