"""What is asked of a model of each task: what is chosen, what is refused, and the words for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import fxplain
from fxplain.targets import LARGEST
from fxplain.tasks import Task

TEXT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 99,
}
IDS = torch.tensor([[7, 3, 12, 5, 9, 4], [8, 4, 6, 2, 0, 0]])
MASK = (IDS > 0).long()
PICTURE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _bert(kind: Any, **more: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    return kind(hf.BertConfig(**TEXT, **more)), {"input_ids": IDS, "attention_mask": MASK}


def _gpt2() -> tuple[nn.Module, dict[str, Tensor]]:
    config = hf.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=99, bos_token_id=1, eos_token_id=2)
    return hf.GPT2LMHeadModel(config), {"input_ids": IDS, "attention_mask": MASK}


def _t5() -> tuple[nn.Module, dict[str, Tensor]]:
    config = hf.T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=99)
    model = hf.T5ForConditionalGeneration(config)
    return model, {"input_ids": IDS, "attention_mask": MASK, "decoder_input_ids": IDS[:, :3]}


def _whisper() -> tuple[nn.Module, dict[str, Tensor]]:
    sizes: dict[str, Any] = {
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
    }
    config = hf.WhisperConfig(
        **sizes, d_model=16, vocab_size=99, num_mel_bins=8, max_source_positions=10, max_target_positions=8,
        encoder_ffn_dim=16, decoder_ffn_dim=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = hf.WhisperForConditionalGeneration(config)
    return model, {"input_features": torch.randn(1, 8, 20), "decoder_input_ids": IDS[:1, :3]}


def _detr() -> tuple[nn.Module, dict[str, Tensor]]:
    stem = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], out_features=["stage2"])
    both: dict[str, Any] = {f"{part}_{what}": size for part in ("encoder", "decoder") for what, size in
            (("layers", 1), ("attention_heads", 2), ("ffn_dim", 16))}  # fmt: skip
    config = hf.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone_config=stem, d_model=16,
        num_queries=4, id2label={0: "cat", 1: "dog", 2: "car"}, **both,
    )  # fmt: skip
    return hf.DetrForObjectDetection(config), {"pixel_values": torch.cat([PICTURE, PICTURE], -1)}


def _segformer() -> tuple[nn.Module, dict[str, Tensor]]:
    config = hf.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[7, 3],
        strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16,
        id2label={0: "road", 1: "tree", 2: "car", 3: "sky"},
    )  # fmt: skip
    model = hf.SegformerForSemanticSegmentation(config)
    with torch.no_grad():
        model.decode_head.classifier.bias.copy_(torch.tensor([0.0, 0.0, 0.0, -9.0]))  # no sky
    return model, {"pixel_values": PICTURE}


MODELS: dict[str, Callable[[], tuple[nn.Module, dict[str, Tensor]]]] = {
    "gpt2": _gpt2,
    "t5": _t5,
    "whisper": _whisper,
    "detr": _detr,
    "segformer": _segformer,
    "classifier": lambda: _bert(hf.BertForSequenceClassification, id2label={0: "bad", 1: "good"}),
    "regressor": lambda: _bert(hf.BertForSequenceClassification, num_labels=1),
    "tagger": lambda: _bert(hf.BertForTokenClassification, id2label={0: "O", 1: "LOC"}),
    "masked": lambda: _bert(hf.BertForMaskedLM),
    "encoder": lambda: _bert(hf.BertModel),
}


@cache
def traced(name: str) -> tuple[fxplain.Traced, dict[str, Tensor], Any]:
    """The traced model, its inputs, and its own output."""
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    with torch.no_grad():
        output = model.eval()(**inputs)
    return fxplain.trace(model, inputs), inputs, output


def explained(name: str, target: Any = None, **options: Any) -> fxplain.Result:
    found, inputs, _ = traced(name)
    return found.explain(inputs, target, **options)


@pytest.mark.parametrize(
    ("name", "space"), [("gpt2", "input_ids"), ("t5", "decoder_input_ids"), ("whisper", "decoder_input_ids")]
)
def test_a_language_model_is_asked_for_the_next_token(name: str, space: str) -> None:
    logits = traced(name)[2].logits
    last = [3 if name == "gpt2" and sample else logits.shape[1] - 1 for sample in range(len(logits))]
    wanted = torch.stack([row[place] for row, place in zip(logits, last, strict=True)])
    none, five = explained(name), explained(name, 5)
    torch.testing.assert_close(none.score, wanted.max(-1).values)
    torch.testing.assert_close(five.score, wanted[:, 5])
    for sample, place in enumerate(last):
        said = f"the score of token 5 as the next token after place {place} of {space}, probability"
        assert str(five.questions[sample]).startswith(said)
    assert none.question.endswith("the largest of 99")


def test_a_detector_is_asked_for_its_surest_query() -> None:
    output = traced("detr")[2]
    result = explained("detr", 2)
    query = int(output.logits[0].log_softmax(-1)[:, 2].argmax())
    torch.testing.assert_close(result.score, output.logits[:, query, 2])
    assert result.question.startswith(f"the score of class 2 'car' at query {query}, box (")
    ((_, label),) = explained("detr").target
    assert label != 3, "no object is none of its classes"


@pytest.mark.parametrize("target", [None, 2])
def test_a_box_is_no_class(target: Any) -> None:
    with pytest.raises(fxplain.TargetError, match="in several ways") as caught:
        explained("detr", target, output="pred_boxes")
    assert "target=(3, 0)" in str(caught.value)
    assert (
        explained("detr", (1, 0), output="pred_boxes").question
        == "the value of pred_boxes at query 1, index 0"
    )


def test_segmentation_is_asked_for_a_class_where_it_is_predicted() -> None:
    logits = traced("segformer")[2].logits
    predicted = logits[0].argmax(0) == 2
    result = explained("segformer", 2)
    torch.testing.assert_close(result.score, logits[:, 2][:, predicted].mean(-1))
    places = int(predicted.sum())
    assert (
        result.question == f"the mean score of class 2 'car' over the {places} places where it is predicted"
    )
    assert result.mode == "rows"
    result.matrix("pixel_values", "pixel_values")  # the same question once more
    assert explained("segformer", (1, 2, 3)).question == "the score of class 1 'tree' at row 2, column 3"
    with pytest.raises(fxplain.TargetError, match="predicted nowhere"):
        explained("segformer", 3)
    with pytest.raises(fxplain.TargetError, match="in several ways") as caught:
        explained("segformer")
    assert f"2 (car) at {places} places" in str(caught.value)


def test_classes_by_name_with_their_probability() -> None:
    result = explained("classifier", 1)
    likely = traced("classifier")[2].logits[0].softmax(-1)[1]
    assert str(result.questions[0]) == f"the score of class 1 'good', probability {float(likely):.2f}"
    assert explained("regressor").question.splitlines()[0] == "the value of logits at index 0"


def test_a_tagger_is_asked_where_it_is_surest_and_never_at_padding() -> None:
    logits = traced("tagger")[2].logits
    result = explained("tagger", 1)
    places = logits.softmax(-1)[..., 1].masked_fill(MASK == 0, -1).argmax(-1)
    torch.testing.assert_close(result.score, logits[torch.arange(2), places, 1])
    assert str(result.questions[1]).startswith("the score of class 1 'LOC' at place ")


@pytest.mark.parametrize(
    ("name", "target", "choice"),
    [
        ("masked", None, "target=(4, 17)"),
        ("masked", 3, "target=(4, 17)"),
        ("encoder", None, "output.pooler_output"),
        ("encoder", 3, "target=(place, 3)"),
    ],
)
def test_what_is_ambiguous_lists_its_choices(name: str, target: Any, choice: str) -> None:
    with pytest.raises(fxplain.TargetError, match="in several ways") as caught:
        explained(name, target)
    assert choice.removeprefix("output.") in str(caught.value)
    assert explained(name, LARGEST).question


def test_one_coordinate_of_one_vector_is_a_question() -> None:
    assert "the value of pooler_output at index 3" in explained("encoder", 3, output="pooler_output").question


def norm(output: Any) -> Tensor:
    length: Tensor = output.pooler_output.norm(dim=-1)
    return length


def test_functions_are_called_by_their_names() -> None:
    assert explained("encoder", norm).question.splitlines()[0] == "your function norm of pooler_output"
    unnamed = explained("encoder", lambda output: output.pooler_output[:, 0])
    assert unnamed.question.splitlines()[0] == "your function of pooler_output"


class Writer(nn.Module):
    """A user's own language model, which says what it is for."""

    fxplain_task = Task("next token", names={4: " four"}, outputs=("output",))

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(99, 8), nn.Linear(8, 99)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        out: Tensor = self.head(self.layer(self.words(ids), mask))
        return out


def test_a_model_of_ones_own_may_say_its_task() -> None:
    result = fxplain.explain(Writer().eval(), IDS, target=4)
    assert result.target == ((5, 4), (5, 4))
    assert "the score of ' four' as the next token after place 5 of ids" in result.question


def test_files_say_what_was_asked(tmp_path: Path) -> None:
    result = explained("gpt2", 5)
    words = [f"w{i}" for i in range(99)]
    texts = [[f" {words[i]}" for i in row] for row in IDS.tolist()]
    display = fxplain.Display(tokens={"input_ids": texts}, labels={5: " five"})
    result.save(tmp_path / "out.json", display)
    result.save(tmp_path / "out.html", display)
    (first, _) = json.loads((tmp_path / "out.json").read_text())["questions"]
    assert first.startswith("the score of ' five' as the next token after ' w5 w9 w4', probability")
    assert "the score of &#39; five&#39; as the next token" in (tmp_path / "out.html").read_text()
