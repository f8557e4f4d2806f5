"""Toy models of text and image of transformers."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from zoo.spec import (
    EVERY,
    Builder,
    Case,
    Expected,
    Inputs,
    Site,
    floats,
    ids,
    make,
    mask,
    rows,
    run_with_maps,
    selves,
)  # fmt: skip
from zoo.text import BOTH, EAGER, ENCODER, LENGTH, PADDED, reported
from zoo.vision import PATCHES, VIT

TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
IMAGE: dict[str, Any] = TOWER | {"image_size": 32, "patch_size": 8}
WORDS: dict[str, Any] = TOWER | {"vocab_size": 99, "max_position_embeddings": 32}
EOT = 98
"""The id of the end-of-text token: the row that CLIP reads."""


def two_towers(model: nn.Module, inputs: Inputs) -> list[tuple[int, Tensor]]:
    """The image tower runs first."""
    with torch.no_grad():
        return list(enumerate(run_with_maps(model, inputs)[1]))


def clip(attn: str) -> Case:
    config = hf.CLIPConfig(
        vision_config=IMAGE, text_config=WORDS | {"eos_token_id": EOT, "bos_token_id": 1, "pad_token_id": 0},
        projection_dim=16, attn_implementation=attn,
    )  # fmt: skip
    tokens = ids(vocabulary=EOT)
    tokens[0, 6] = tokens[1, 4] = EOT
    tokens[1, 5:] = 0
    inputs = {"input_ids": tokens, "pixel_values": floats(2, 3, 32, 32), "attention_mask": mask()}
    image = ("class_embedding", "pixel_values")
    sites = selves(image, 4, PATCHES + 1, "vision_model.encoder.layers.{}.self_attn", 2)
    sites += selves("input_ids", 4, LENGTH, "text_model.encoder.layers.{}.self_attn", 2)
    expected = Expected(
        sites=sites,
        output="logits_per_image",
        target=torch.tensor([0, 1]),  # each image with its own text
        readout=(
            {"class_embedding": (0,), "input_ids": (6,)},
            {"class_embedding": (0,), "input_ids": (4,)},
        ),
        padded=PADDED,
        maps=two_towers,
        separable=False,
    )
    return make(lambda: hf.CLIPModel(config)), inputs, expected


def siglip(attn: str) -> Case:
    config = hf.SiglipConfig(vision_config=IMAGE, text_config=WORDS, attn_implementation=attn)
    inputs = {"input_ids": ids(), "pixel_values": floats(2, 3, 32, 32), "attention_mask": mask()}
    sites = selves("pixel_values", 4, PATCHES, "vision_model.encoder.layers.{}.self_attn", 2)
    sites += (Site("encoder_decoder", ("probe",), ("pixel_values",), 4, 1, PATCHES, "vision_model.head"),)
    sites += selves("input_ids", 4, LENGTH, "text_model.encoder.layers.{}.self_attn", 2)

    def maps(model: nn.Module, inputs: Inputs) -> list[tuple[int, Tensor]]:
        with torch.no_grad():
            return list(zip([0, 1, 3, 4], run_with_maps(model, inputs)[1], strict=True))

    expected = Expected(
        sites=sites,
        output="logits_per_image",
        target=torch.tensor([0, 1]),
        # the text tower reads its last token, whatever it is
        readout=rows(("probe", (0,)), ("input_ids", (6,))),
        maps=maps,
        separable=False,
    )
    return make(lambda: hf.SiglipModel(config)), inputs, expected


def blip(attn: str) -> Case:
    text = WORDS | {"encoder_hidden_size": 32, "bos_token_id": 1, "sep_token_id": 2}
    config = hf.BlipConfig(
        vision_config=IMAGE, text_config=text, projection_dim=16, image_text_hidden_size=16,
        attn_implementation=attn,
    )  # fmt: skip
    inputs = {"input_ids": ids(), "pixel_values": floats(2, 3, 32, 32), "attention_mask": mask()}
    image = ("class_embedding", "pixel_values")
    sites = list(selves(image, 4, PATCHES + 1, "vision_model.encoder.layers.{}.self_attn", 2))
    for layer in range(2):
        sites += selves("input_ids", 4, LENGTH, f"text_encoder.encoder.layer.{layer}.attention", 1)
        where = f"text_encoder.encoder.layer.{layer}.crossattention"
        sites.append(Site("encoder_decoder", ("input_ids",), image, 4, LENGTH, PATCHES + 1, where))
    expected = Expected(
        sites=tuple(sites),
        output="itm_score",
        readout=rows(("input_ids", (0,))),
        padded=PADDED,
        maps=reported,
    )
    return make(lambda: hf.BlipForImageTextRetrieval(config)), inputs, expected


class ImageTextMatching(nn.Module):
    """BLIP-2's matching head takes a flag; users bind it, as here."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return self.model(
            pixel_values=pixel_values,
            input_ids=input_ids,
            attention_mask=attention_mask,
            use_image_text_matching_head=True,
        )


def blip2_qformer(attn: str) -> Case:
    qformer = {
        **WORDS,
        "cross_attention_frequency": 2,
        "encoder_hidden_size": 32,
        "use_qformer_text_input": True,
    }
    config = hf.Blip2Config(
        vision_config=IMAGE, qformer_config=qformer, text_config={"model_type": "opt"}, num_query_tokens=3,
        image_text_hidden_size=16, attn_implementation=attn,
    )  # fmt: skip
    config.image_token_index = None
    inputs = {"pixel_values": floats(2, 3, 32, 32), "input_ids": ids(), "attention_mask": mask()}
    image, both = ("class_embedding", "pixel_values"), ("query_tokens", "input_ids")
    sites = list(selves(image, 4, PATCHES + 1, "vision_model.encoder.layers.{}.self_attn", 2))
    layer = "qformer.encoder.layer"
    sites += selves(both, 4, 3 + LENGTH, f"{layer}.0.attention", 1)
    # only the learned queries look at the image, and only in every other layer
    cross = f"{layer}.0.crossattention"
    sites.append(Site("encoder_decoder", ("query_tokens",), image, 4, 3, PATCHES + 1, cross))
    sites += selves(both, 4, 3 + LENGTH, f"{layer}.1.attention", 1)

    def maps(model: nn.Module, inputs: Inputs) -> list[tuple[int, Tensor]]:
        with torch.no_grad():
            out = model.model(**inputs, use_image_text_matching_head=True, output_attentions=True)
        return list(enumerate(out.vision_model_output.attentions))

    expected = Expected(
        sites=tuple(sites),
        output="logits_per_image",
        readout=rows(("query_tokens", EVERY)),
        maps=maps,
        padded=PADDED,
        marks=("pooled",),
    )
    model = make(lambda: ImageTextMatching(hf.Blip2ForImageTextRetrieval(config)))
    return model, inputs, expected


BOXES = 5


def lxmert(attn: str) -> Case:
    config = hf.LxmertConfig(
        vocab_size=99, hidden_size=32, num_attention_heads=4, intermediate_size=48, num_qa_labels=4,
        max_position_embeddings=32, l_layers=2, r_layers=2, x_layers=2, visual_feat_dim=10, visual_pos_dim=4,
        attn_implementation=attn,
    )  # fmt: skip
    seen = torch.ones(2, BOXES)
    seen[1, 4:] = 0
    inputs = {
        "input_ids": ids(),
        "visual_feats": floats(2, BOXES, 10),
        "visual_pos": floats(2, BOXES, 4, seed=5).sigmoid(),
        "attention_mask": mask(),
        "visual_attention_mask": seen,
    }
    text, image = ("input_ids",), ("visual_feats",)
    sites = list(selves("input_ids", 4, LENGTH, "encoder.layer.{}.attention", 2))
    sites += selves("visual_feats", 4, BOXES, "encoder.r_layers.{}.attention", 2)
    for where in ("encoder.x_layers.0", "encoder.x_layers.1"):
        last = where.endswith("1")  # where nothing reads the image any more
        # one module for both directions, both from the state before the layer
        sites.append(Site("co", text, image, 4, LENGTH, BOXES, f"{where}.visual_attention"))
        sites.append(Site("co", image, text, 4, BOXES, LENGTH, f"{where}.visual_attention", optional=last))
        sites += selves("input_ids", 4, LENGTH, f"{where}.lang_self_att", 1)
        sites.append(Site("self", image, image, 4, BOXES, BOXES, f"{where}.visn_self_att", optional=last))

    def maps(model: nn.Module, inputs: Inputs) -> list[tuple[int, Tensor]]:
        with torch.no_grad():
            out = model(**inputs, output_attentions=True)
        found = [*out.language_attentions, *out.vision_attentions, *out.cross_encoder_attentions]
        return list(zip([0, 1, 2, 3, 4, 8], found, strict=True))

    expected = Expected(
        sites=tuple(sites),
        output="question_answering_score",
        readout=rows(("input_ids", (0,))),
        padded=PADDED | {"visual_feats": ((), (4,))},
        maps=maps,
        marks=("shared",),
    )
    return make(lambda: hf.LxmertForQuestionAnswering(config)), inputs, expected


def visual_bert(attn: str) -> Case:
    config = hf.VisualBertConfig(**ENCODER, visual_embedding_dim=10, attn_implementation=attn)
    inputs = {
        "input_ids": ids(),
        "attention_mask": mask(),
        "visual_embeds": floats(2, BOXES, 10),
        "visual_attention_mask": torch.ones(2, BOXES),
        "visual_token_type_ids": torch.ones(2, BOXES, dtype=torch.long),
    }
    expected = Expected(
        sites=selves(("input_ids", "visual_embeds"), 4, LENGTH + BOXES, "encoder.layer.{}.attention", 2),
        # the second-to-last token of the text that is not padding
        readout=({"input_ids": (5,)}, {"input_ids": (3,)}),
        padded=PADDED,
        maps=reported,
    )
    return make(lambda: hf.VisualBertForQuestionAnswering(config)), inputs, expected


def vilt(attn: str) -> Case:
    config = hf.ViltConfig(**VIT, vocab_size=99, max_position_embeddings=32, attn_implementation=attn)
    inputs = {"input_ids": ids(), "attention_mask": mask(), "pixel_values": floats(2, 3, 32, 32)}
    spaces = ("input_ids", "cls_token", "pixel_values")
    expected = Expected(
        sites=selves(spaces, 4, LENGTH + 1 + PATCHES, "encoder.layer.{}.attention", 2),
        readout=rows(("input_ids", (0,))),
        padded=PADDED,
        maps=reported,
        marks=("random",),  # the model shuffles the patches, in each sample otherwise
    )
    return make(lambda: hf.ViltForQuestionAnswering(config)), inputs, expected


def llava(attn: str) -> Case:
    vision = TOWER | {"image_size": 16, "patch_size": 8, "model_type": "clip_vision_model"}
    text = WORDS | {"model_type": "llama", "num_key_value_heads": 2, "pad_token_id": 0}
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**vision),
        text_config=hf.LlamaConfig(**text),
        image_token_index=97,
        attn_implementation=attn,
    )
    tokens = ids(vocabulary=97, length=9)
    tokens[:, 2:6] = 97  # two words, 4 patches, three words
    attended = torch.ones(2, 9, dtype=torch.long)
    attended[1, 8] = 0
    image = ("class_embedding", "pixel_values")
    sites = [
        Site("self", image, image, 4, 5, 5, "vision_tower.*encoder.layers.0.self_attn"),
        # features come from the layer before the last one
        Site("self", image, image, 4, 5, 5, "vision_tower.*encoder.layers.1.self_attn", optional=True),
    ]
    sites += selves(("input_ids", "pixel_values"), 4, 9, "language_model.layers.{}.self_attn", 2)

    def maps(model: nn.Module, inputs: Inputs) -> list[tuple[int, Tensor]]:
        with torch.no_grad():
            out = model(**inputs, output_attentions=True)
        return list(zip([2, 3], out.attentions[-2:], strict=True))

    expected = Expected(
        sites=tuple(sites),
        target=(7, 11),
        # token 7 of the sequence: of the input's own tokens, those not replaced by the image
        readout=rows(("input_ids", (7,))),
        padded={"input_ids": ((), (8,))},
        maps=maps,
    )
    inputs = {"input_ids": tokens, "attention_mask": attended, "pixel_values": floats(2, 3, 16, 16)}
    return make(lambda: hf.LlavaForConditionalGeneration(config)), inputs, expected


TABLE = {
    clip: BOTH,
    siglip: BOTH,
    blip: EAGER,
    blip2_qformer: BOTH,
    lxmert: EAGER,
    visual_bert: EAGER,
    vilt: EAGER,
    llava: BOTH,
}
MULTIMODAL: dict[str, Builder] = {
    f"{build.__name__}-{attn}": partial(build, attn) for build, kinds in TABLE.items() for attn in kinds
}
