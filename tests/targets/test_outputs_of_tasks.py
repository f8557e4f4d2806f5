"""What each output of a model holds: no class is taken for padding, nothing is chosen by its size alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import fxplain
from fxplain.tasks import task_of

TEXT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 99,
}
IDS = torch.tensor([[7, 3, 12, 5, 9, 4], [8, 4, 6, 2, 0, 0]])
WORDS: dict[str, Any] = {"input_ids": IDS, "attention_mask": (IDS > 0).long()}
PICTURE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
PATCHES: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}


def explain(model: nn.Module, inputs: dict[str, Tensor], target: Any = None, **more: Any) -> fxplain.Result:
    return fxplain.explain(model.eval(), inputs, target, **more)


def refusal(model: nn.Module, inputs: dict[str, Tensor], target: Any = None, **more: Any) -> str:
    with pytest.raises(fxplain.TargetError, match="in several ways") as caught:
        explain(model, inputs, target, **more)
    return str(caught.value)


def _detr(**more: Any) -> nn.Module:
    stem = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], out_features=["stage2"])
    sizes: dict[str, Any] = {f"{part}_{what}": size for part in ("encoder", "decoder") for what, size in
             (("layers", 1), ("attention_heads", 2), ("ffn_dim", 16))}  # fmt: skip
    config = hf.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone_config=stem, d_model=16,
        num_queries=4, **sizes, **more,
    )  # fmt: skip
    torch.manual_seed(0)
    model = hf.DetrForObjectDetection(config)
    with torch.no_grad():
        model.class_labels_classifier.bias[-1] = 9.0  # no object, nearly everywhere
    return model


@pytest.mark.parametrize("target", [None, (2,)])
def test_no_object_is_no_class_of_a_detector_whose_classes_have_no_names(target: Any) -> None:
    """The head of 16 features is there, too, where as many labels as features would hide it."""
    for count in (3, 15):
        result = explain(_detr(num_labels=count), {"pixel_values": PICTURE}, target)
        ((query, label),) = result.target
        assert label < count
        assert target is None or query == 2
        probability = result.questions[0].probability
        assert probability is not None
        assert probability < 0.01, "a share beside that of no object"
    named = explain(_detr(num_labels=3), {"pixel_values": PICTURE}, (2, 3))
    assert "class 3 'no object' at query 2" in named.question


def test_classes_are_no_places_even_if_they_are_as_many_as_the_tokens() -> None:
    torch.manual_seed(0)
    model = hf.BertForSequenceClassification(hf.BertConfig(**TEXT, num_labels=IDS.shape[1]))
    with torch.no_grad():
        model.classifier.bias[5] = 9.0
    assert explain(model, WORDS).target == ((5,), (5,))
    assert explain(model, WORDS, -2).target == ((4,), (4,))
    assert "padding" not in explain(model, WORDS, 5).question


def test_places_of_an_answer_are_no_padding() -> None:
    torch.manual_seed(0)
    model = hf.BertForQuestionAnswering(hf.BertConfig(**TEXT))
    assert explain(model, WORDS, -1).target == ((5,), (3,))
    assert all(place <= last for (place,), last in zip(explain(model, WORDS).target, (5, 3), strict=True))


def test_an_embedding_is_asked_by_the_names_of_its_own_outputs() -> None:
    distilled = hf.DistilBertModel(
        hf.DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=16, vocab_size=99)
    )
    said = refusal(distilled, WORDS)
    assert "pooler_output" not in said, "it has none"
    example = said.split("the length of the vector: target=")[1].split("\n")[0].split(";")[0]
    lengths = eval(example)
    assert explain(distilled, WORDS, lengths).question.startswith("your function of last_hidden_state")


def test_embeddings_beside_a_task_have_no_largest_coordinate() -> None:
    vision = hf.CLIPVisionConfig(**PATCHES, num_hidden_layers=1, intermediate_size=16, projection_dim=8)
    model = hf.CLIPVisionModelWithProjection(vision)
    assert "out.image_embeds @ other" in refusal(model, {"pixel_values": PICTURE})
    assert explain(model, {"pixel_values": PICTURE}, 3).question == "the value of image_embeds at index 3"
    t5 = hf.T5ForConditionalGeneration(
        hf.T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=99)
    )
    inputs = {**WORDS, "decoder_input_ids": IDS[:, :3]}
    assert "output='logits'" in refusal(t5, inputs, output="encoder_last_hidden_state")


def test_a_mask_and_a_map_of_depths_have_no_largest_place() -> None:
    prompt = {"hidden_size": 8, "image_size": 32, "patch_size": 8, "mask_input_channels": 4}
    config = hf.SamConfig(
        vision_config={**PATCHES, "output_channels": 8, "num_hidden_layers": 1, "mlp_dim": 16,
                       "num_pos_feats": 4, "global_attn_indexes": [0], "window_size": 0},
        prompt_encoder_config={**prompt, "num_point_embeddings": 4},
        mask_decoder_config={"hidden_size": 8, "mlp_dim": 16, "num_hidden_layers": 1,
                             "num_attention_heads": 2, "iou_head_hidden_dim": 8},
    )  # fmt: skip
    inputs = {"pixel_values": PICTURE, "input_points": torch.tensor([[[[5.0, 5.0]]]])}
    sam = hf.SamModel(config)
    said = refusal(sam, inputs, output="pred_masks")
    assert "target=(0, 0, row, column)" in said
    mean = eval(said.split("the whole picture: target=")[1].split(";")[0])
    assert explain(sam, inputs, mean).question == "your function of pred_masks"
    depth = hf.DPTForDepthEstimation(
        hf.DPTConfig(
            **PATCHES, num_hidden_layers=4, intermediate_size=16, backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, reassemble_factors=[4, 2, 1, 0.5],
        )
    )  # fmt: skip
    assert "target=(row, column)" in refusal(depth, {"pixel_values": PICTURE})


def test_scores_of_a_word_at_each_place_are_not_compared_between_places() -> None:
    speech = hf.Wav2Vec2ForCTC(
        hf.Wav2Vec2Config(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=12,
            conv_dim=[8, 8], conv_stride=[5, 2], conv_kernel=[10, 3], num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
        )
    )  # fmt: skip
    assert "the likeliest word at one place" in refusal(speech, {"input_values": torch.randn(1, 400)})
    assert "target=(4, 17)" in refusal(hf.BertForPreTraining(hf.BertConfig(**TEXT)), WORDS)


def test_texts_beside_a_picture_are_no_places_of_a_text() -> None:
    text = {**TEXT, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 9}
    vision: dict[str, Any] = {**PATCHES, "num_hidden_layers": 1, "intermediate_size": 16}
    clip = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    result = explain(clip, {**WORDS, "pixel_values": PICTURE}, 1)
    assert result.question == "the value of logits_per_image at index 1"


def test_scores_of_the_last_places_alone_are_named_by_the_places_of_the_text() -> None:
    config = hf.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=99, bos_token_id=1, eos_token_id=2)
    writer = hf.GPT2LMHeadModel(config)
    for kept, where in ((1, ", probability"), (2, " after place 5 of input_ids")):
        given: dict[str, Any] = {"input_ids": IDS[:1], "logits_to_keep": kept}
        result = explain(writer, given, 7)
        assert result.target == ((kept - 1, 7),)
        assert result.question.startswith(f"the score of token 7 as the next token{where}")


def test_a_result_shows_its_question() -> None:
    torch.manual_seed(0)
    model = hf.BertForSequenceClassification(hf.BertConfig(**TEXT, id2label={0: "bad", 1: "good"}))
    result = explain(model, WORDS, [1, 0])
    assert f"question: {result.questions[0]} and 1 more" in repr(result)


class _Around(nn.Module):
    """A user's own module around a model of a library."""

    def __init__(self, model: nn.Module, head: bool = False) -> None:
        super().__init__()
        self.wrapped, self.head = model, nn.Linear(99, 3) if head else nn.Identity()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.wrapped(input_ids=input_ids, attention_mask=attention_mask).logits
        return self.head(logits) if isinstance(self.head, nn.Linear) else logits


def _writer() -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 99}
    return hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def test_the_task_of_a_model_inside_another_module_is_known() -> None:
    known = explain(_writer(), WORDS)
    around = explain(_Around(_writer()), WORDS)
    assert around.target == known.target
    assert "next token after place 3" in str(around.questions[1])
    torch.testing.assert_close(around.score, known.score)


def test_a_head_of_ones_own_is_not_asked_the_question_of_the_model_inside() -> None:
    result = explain(_Around(_writer(), head=True), WORDS, (-1, 2))
    assert result.target == ((5, 2), (3, 2)), "padding is known all the same"
    assert "next token" not in result.question


def test_the_choices_that_an_error_names_are_there() -> None:
    torch.manual_seed(0)
    text = refusal(
        hf.BertForMaskedLM(hf.BertConfig(**{**TEXT, "vocab_size": 13})), {"input_ids": IDS[:1, :3]}
    )
    assert "target=(2, 12), word 12 at place 2" in text
    text = refusal(_detr(num_labels=3), {"pixel_values": PICTURE}, output="pred_boxes")
    assert "target=(3, 0), the first number of query 3" in text


@pytest.mark.parametrize("name", ["XLM", "Flaubert"])
@pytest.mark.parametrize("causal", [False, True])
def test_a_class_for_two_tasks_has_the_one_that_it_is_configured_for(name: str, causal: bool) -> None:
    model = getattr(hf, f"{name}WithLMHeadModel")
    size: dict[str, Any] = {"emb_dim": 16, "n_layers": 1, "n_heads": 2, "vocab_size": 30, "n_words": 30}
    assert task_of(model(model.config_class(**size, causal=causal))).kind == (
        "next token" if causal else "words"
    )
