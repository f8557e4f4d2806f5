"""What can be explained: every form of target, and the score that comes of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import built, traced
from zoo.compare import Found, assert_close, assert_same
from zoo.spec import floats, make

import fxplain


def output(name: str) -> Any:
    model, inputs, _ = built(name)
    with torch.no_grad():
        return model(**inputs)


def explain(name: str, target: Any, **options: Any) -> Any:
    return traced(name).explain(built(name)[1], target=target, **options)


def assert_score(result: Any, wanted: Tensor) -> None:
    torch.testing.assert_close(result.score, wanted, rtol=1e-5, atol=1e-6)


def test_none_is_the_largest_logit_of_each_sample() -> None:
    logits = output("bert-sdpa").logits
    result = explain("bert-sdpa", None)
    assert_score(result, logits.max(1).values)
    assert result.output == "logits"


def test_int_is_one_class_for_all_samples() -> None:
    assert_score(explain("bert-sdpa", 2), output("bert-sdpa").logits[:, 2])


def test_negative_int_counts_from_the_end() -> None:
    assert_score(explain("bert-sdpa", -1), output("bert-sdpa").logits[:, -1])


def test_tensor_is_one_target_per_sample() -> None:
    logits = output("bert-sdpa").logits
    result = explain("bert-sdpa", torch.tensor([2, 0]))
    assert_score(result, torch.stack([logits[0, 2], logits[1, 0]]))
    for sample, target in enumerate([2, 0]):
        alone = explain("bert-sdpa", target)
        wanted = alone.relevance["input_ids"][sample]
        assert_close(result.relevance["input_ids"][sample], wanted, 1e-5, f"sample {sample}")


def test_callable_is_any_score_per_sample() -> None:
    logits = output("bert-sdpa").logits
    result = explain("bert-sdpa", lambda out: out.logits[:, 1] - out.logits[:, 0])
    assert_score(result, logits[:, 1] - logits[:, 0])


def test_callable_for_one_logit_equals_its_index() -> None:
    assert_same(explain("bert-sdpa", lambda out: out.logits[:, 2]), explain("bert-sdpa", 2), 1e-6, "callable")


def test_targets_differ() -> None:
    one, other = explain("bert-sdpa", 0), explain("bert-sdpa", 1)
    assert not torch.allclose(one.relevance["input_ids"], other.relevance["input_ids"])


def test_position_and_token_of_a_language_model() -> None:
    result = explain("llama-sdpa", (2, 7))
    assert_score(result, output("llama-sdpa").logits[:, 2, 7])
    later = result.relevance["input_ids"][:, 3:]
    assert later.abs().max() == 0, "what comes after the position cannot matter to it"
    assert result.relevance["input_ids"][:, :2].abs().sum() > 0


def last_places(name: str) -> list[int]:
    """Per sample the last place that is no padding."""
    return [int(mask.nonzero().max()) for mask in built(name)[1]["attention_mask"]]


@pytest.mark.parametrize("target", [7, (-1, 7)])
def test_a_language_model_is_asked_for_the_next_token_after_each_text(target: Any) -> None:
    result, logits = explain("gpt2-sdpa", target), output("gpt2-sdpa").logits
    last = last_places("gpt2-sdpa")
    assert len(set(last)) == 2, "texts of two lengths"
    assert_score(result, torch.stack([logits[i, place, 7] for i, place in enumerate(last)]))
    assert result.target == tuple((place, 7) for place in last)
    assert str(result.questions[0]).startswith(
        f"the score of token 7 as the next token after place {last[0]} of input_ids"
    )


def test_no_target_is_the_most_likely_next_token() -> None:
    result, logits = explain("gpt2-sdpa", None), output("gpt2-sdpa").logits
    wanted = [logits[i, place].max() for i, place in enumerate(last_places("gpt2-sdpa"))]
    assert_score(result, torch.stack(wanted))


def test_a_place_of_padding_is_said_to_be_one() -> None:
    short = min(range(2), key=lambda sample: last_places("gpt2-sdpa")[sample])
    result = explain("gpt2-sdpa", (last_places("gpt2-sdpa")[short] + 1, 7))
    assert "which is padding" in result.question


def test_position_and_token_of_a_masked_language_model() -> None:
    assert_score(explain("bert_masked_lm-sdpa", (3, 5)), output("bert_masked_lm-sdpa").logits[:, 3, 5])


@pytest.mark.parametrize("name", ["detr-sdpa", "conditional_detr-sdpa"])
def test_query_and_class_of_a_detector(name: str) -> None:
    result = explain(name, (3, 2))
    assert_score(result, output(name).logits[:, 3, 2])
    other = explain(name, (1, 2))
    image = next(space for space in result.relevance if Found(traced(name)).is_named(space, "pixel_values"))
    assert not torch.allclose(result.relevance[image], other.relevance[image])


def test_corner_of_a_detectors_box() -> None:
    result = explain("detr-sdpa", (3, 0), output="pred_boxes")
    assert_score(result, output("detr-sdpa").pred_boxes[:, 3, 0])
    assert result.output == "pred_boxes"


def test_pair_of_image_and_text() -> None:
    result = explain("clip-sdpa", torch.tensor([0, 1]), output="logits_per_image")
    assert_score(result, output("clip-sdpa").logits_per_image.diagonal())
    assert result.relevance["pixel_values"].abs().sum() > 0
    assert result.relevance["input_ids"].abs().sum() > 0


def test_score_is_the_raw_logit_never_a_probability() -> None:
    result = explain("vit-sdpa", 3)
    assert_score(result, output("vit-sdpa").logits[:, 3])


def test_target_on_an_output_by_name() -> None:
    result = explain("lxmert-eager", 1, output="question_answering_score")
    assert_score(result, output("lxmert-eager").question_answering_score[:, 1])


class Regressor(nn.Module):
    """One number per sample, as ``shape`` says: [batch] or [batch, 1]."""

    def __init__(self, shape: str) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(16, 1)
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.head(self.encoder(x).mean(1))
        return value if self.shape == "column" else value[:, 0]


def test_a_callable_reads_the_rows_of_what_it_looks_at_alone() -> None:
    """The encoder's states are an output, too, and the logits are made of them, but that is no reason."""
    result = explain("t5-sdpa", lambda out: out.logits[:, 1, 2])
    by_index = explain("t5-sdpa", (1, 2))
    assert result.readout == by_index.readout
    assert result.output == "logits"
    assert_same(result, by_index, 1e-5, "callable")


@pytest.mark.parametrize("shape", ["column", "vector"])
@pytest.mark.parametrize("form", ["none", "first", "callable"])
def test_regression_output(shape: str, form: str) -> None:
    model = make(lambda: Regressor(shape))
    inputs = {"x": floats(2, 5, 16)}
    if form == "first" and shape == "vector":
        pytest.skip("a vector has no class to choose")
    target = {"none": None, "first": 0, "callable": lambda out: out.reshape(2)}[form]
    result = fxplain.explain(model, inputs, target=target)
    with torch.no_grad():
        assert_score(result, model(**inputs).reshape(2))
    assert result.relevance["x"].abs().sum() > 0


def test_trace_and_explain_equal_the_one_liner() -> None:
    model, inputs, _ = built("bert-sdpa")
    assert_same(fxplain.explain(model, inputs, target=2), explain("bert-sdpa", 2), 1e-6, "one-liner")


def test_methods_are_named_with_one_line_each() -> None:
    methods = fxplain.methods()
    assert "relevancy" in methods
    assert all(line and "\n" not in line for line in methods.values())


@pytest.mark.parametrize("method", ["relevancy", "rollout", "raw_attention"])
def test_every_method_explains(method: str) -> None:
    assert method in fxplain.methods()
    result = explain("bert-sdpa", 1, method=method)
    assert result.method == method
    values = result.relevance["input_ids"]
    assert torch.isfinite(values).all()
    assert values.abs().sum() > 0


def test_raw_attention_is_the_head_mean_of_the_last_map() -> None:
    model, inputs, _ = built("bert-eager")
    result = fxplain.explain(model, inputs, target=1, method="raw_attention")
    with torch.no_grad():
        last = model(**inputs, output_attentions=True).attentions[-1].mean(1)[:, 0]
    found = result.relevance["input_ids"]
    assert_close(found[:, 1:], last[:, 1:], 1e-5, "raw attention")


def test_rollout_is_the_product_of_the_maps() -> None:
    model, inputs, _ = built("bert-eager")
    result = fxplain.explain(model, inputs, target=1, method="rollout")
    product = torch.eye(7).expand(2, 7, 7)
    with torch.no_grad():
        for weights in model(**inputs, output_attentions=True).attentions:
            step = weights.mean(1) + torch.eye(7)
            product = (step / step.sum(-1, keepdim=True)) @ product
    found, wanted = result.relevance["input_ids"][:, 1:], product[:, 0, 1:]
    # whether rows are normalised is a choice; the proportions of the row are not, for two equal layers
    assert_close(found / found.sum(1, keepdim=True), wanted / wanted.sum(1, keepdim=True), 1e-5, "rollout")


class Anchored(nn.Module):
    """Gives its learned anchors back before anything that attention has touched."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors, self.where = nn.Parameter(torch.randn(4, 8)), nn.Linear(8, 2)
        self.layer = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
        self.embed = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        anchors = self.anchors[None].expand(len(x), -1, -1)
        return {"places": self.where(anchors), "states": self.layer(anchors, self.embed(x))}


def test_an_output_behind_no_attention_is_passed_over() -> None:
    model, x = make(Anchored), floats(2, 5, 6, seed=3)
    for method in ("relevancy", "rollout"):
        result = fxplain.explain(model, x, method=method)
        assert result.output == "states"
        assert [note for note in result.notes if "places" in note]
    with pytest.raises(fxplain.errors.TargetError):
        fxplain.trace(model, x).explain(x, output="places")
