"""The models whose explanations are timed: real sizes with random weights, and small ones of their kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import BartConfig, BertConfig, DetrConfig, GPT2Config, ResNetConfig, ViTConfig


@dataclass(frozen=True)
class Case:
    """A model, its input, and what is explained."""

    build: Callable[[str], nn.Module]
    """From the name of the attention, ``sdpa`` or ``eager``."""
    inputs: dict[str, Tensor]
    target: Any
    score: Callable[[Any], Tensor]
    starts: tuple[str, ...]
    """The modules whose outputs the floor's backward pass ends at: what the first attentions read."""
    maps: int
    """Elements of all attention maps together, heads counted."""
    largest: int
    """Elements of the largest map, heads counted."""
    bar: tuple[float, float] | None = None
    """What time and peak memory may be at most, as multiples of the floor's."""
    targets: tuple[Any, ...] = ()
    """To be explained together, against as many explanations of one."""
    ids: str = ""
    """The input that other packages take as embeddings, with the module that makes them."""
    embed: str = ""
    sides: tuple[str, ...] = ("attentions",)
    """Names under which the model gives its maps."""
    learned: tuple[str, ...] = ()
    """Parameters that are tokens themselves, where gradients end too."""


Maker = Callable[[], Case]


def moved(case: Case, device: str, dtype: torch.dtype) -> Case:
    """The case with its inputs on a device, floating ones in a type."""
    inputs = {
        name: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in case.inputs.items()
    }
    return replace(case, inputs=inputs)


def vit(size: int, layers: int, width: int, batch: int = 1, bar: tuple[float, float] | None = None) -> Maker:
    def build(attention: str) -> nn.Module:
        config = ViTConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            intermediate_size=4 * width,
            image_size=size,
            num_labels=1000,
            attn_implementation=attention,
        )
        return transformers.ViTForImageClassification(config)

    def make() -> Case:
        pixels, tokens = torch.randn(batch, 3, size, size), (size // 16) ** 2 + 1
        largest = batch * (width // 64) * tokens**2
        return Case(
            build,
            {"pixel_values": pixels},
            5,
            lambda out: out.logits[:, 5].sum(),
            ("vit.embeddings",),
            layers * largest,
            largest,
            bar,
        )

    return make


def bert(tokens: int, layers: int, width: int) -> Maker:
    def build(attention: str) -> nn.Module:
        config = BertConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            intermediate_size=4 * width,
            vocab_size=2000,
            attn_implementation=attention,
        )
        return transformers.BertForSequenceClassification(config)

    def make() -> Case:
        heads = width // 64
        return Case(
            build,
            {
                "input_ids": torch.randint(0, 2000, (1, tokens)),
                "attention_mask": torch.ones(1, tokens).long(),
            },
            1,
            lambda out: out.logits[0, 1],
            ("bert.embeddings",),
            layers * heads * tokens**2,
            heads * tokens**2,
            ids="input_ids",
            embed="bert.embeddings.word_embeddings",
        )

    return make


def gpt(tokens: int, layers: int, width: int, bar: tuple[float, float] | None = None) -> Maker:
    def build(attention: str) -> nn.Module:
        config = GPT2Config(
            n_embd=width,
            n_layer=layers,
            n_head=width // 64,
            n_positions=tokens,
            vocab_size=2000,
            use_cache=False,
            attn_implementation=attention,
        )
        return transformers.GPT2LMHeadModel(config)

    def make() -> Case:
        return Case(
            build,
            {"input_ids": torch.randint(0, 2000, (1, tokens))},
            (tokens - 1, 5),
            lambda out: out.logits[0, -1, 5],
            ("transformer.drop",),
            layers * (width // 64) * tokens**2,
            (width // 64) * tokens**2,
            bar,
            ids="input_ids",
            embed="transformer.wte",
        )

    return make


def bart(source: int, said: int, layers: int, width: int, bar: tuple[float, float] | None = None) -> Maker:
    def build(attention: str) -> nn.Module:
        config = BartConfig(
            d_model=width,
            encoder_layers=layers,
            decoder_layers=layers,
            encoder_attention_heads=width // 64,
            decoder_attention_heads=width // 64,
            encoder_ffn_dim=4 * width,
            decoder_ffn_dim=4 * width,
            vocab_size=2000,
            max_position_embeddings=source,
            use_cache=False,
            attn_implementation=attention,
        )
        return transformers.BartForConditionalGeneration(config)

    def make() -> Case:
        inputs = {
            "input_ids": torch.randint(3, 2000, (1, source)),
            "decoder_input_ids": torch.randint(3, 2000, (1, said)),
        }
        return Case(
            build,
            inputs,
            (said - 1, 5),
            lambda out: out.logits[0, -1, 5],
            ("model.encoder.layernorm_embedding", "model.decoder.layernorm_embedding"),
            layers * (width // 64) * (source**2 + said**2 + source * said),
            (width // 64) * source**2,
            bar,
            sides=("encoder_attentions", "decoder_attentions", "cross_attentions"),
        )

    return make


def detr(
    height: int,
    width: int,
    layers: int,
    targets: int = 0,
    depths: tuple[int, ...] = (3, 4, 6, 3),
    bar: tuple[float, float] | None = None,
) -> Maker:
    def build(attention: str) -> nn.Module:
        config = DetrConfig(
            use_timm_backbone=False,
            use_pretrained_backbone=False,
            backbone=None,
            backbone_config=ResNetConfig(depths=list(depths), out_features=["stage4"]),
            encoder_layers=layers,
            decoder_layers=layers,
            num_labels=91,
            attn_implementation={"": attention, "backbone_config": "eager"},
        )
        return transformers.DetrForObjectDetection(config)

    def make() -> Case:
        tokens = -(-height // 32) * -(-width // 32)
        return Case(
            build,
            {"pixel_values": torch.randn(1, 3, height, width)},
            (7, 5),
            lambda out: out.logits[0, 7, 5],
            ("model.input_projection",),
            layers * 8 * (tokens**2 + 100**2 + 100 * tokens),
            8 * tokens**2,
            bar,
            targets=tuple((query, 5) for query in range(targets)),
            sides=("encoder_attentions", "decoder_attentions", "cross_attentions"),
            learned=("model.query_position_embeddings.weight",),
        )

    return make


SMALL: dict[str, Maker] = {
    "vit 224": vit(224, 6, 384),
    "vit 224, batch 4": vit(224, 6, 384, 4),
    "vit 512": vit(512, 4, 384),
    "gpt 1024": gpt(1024, 2, 384),
    "gpt 2048": gpt(2048, 2, 384),
    "bart 512 -> 64": bart(512, 64, 3, 384),
    "detr 320": detr(320, 320, 2, 5, (1, 1, 1, 1)),
}
MIDDLE: dict[str, Maker] = {
    "bert-base 128": bert(128, 12, 768),
    "gpt2 512": gpt(512, 12, 768),
    "bart-base 256 -> 64": bart(256, 64, 6, 768),
}
"""Sizes of real models on inputs so short that every way can be run; to be asked for by name."""
LARGE: dict[str, Maker] = {
    "vit-b 224": vit(224, 12, 768, bar=(1.1, 1.1)),
    "vit-b 224, batch 16": vit(224, 12, 768, 16, bar=(1.1, 1.1)),
    "vit-b 512": vit(512, 12, 768, bar=(1.2, 1.1)),
    "gpt2 4096": gpt(4096, 12, 768, bar=(1.3, 1.15)),
    "bart-base 1024 -> 128": bart(1024, 128, 6, 768, bar=(1.2, 1.15)),
    "detr-r50 800 x 1066": detr(800, 1066, 6, 20, bar=(1.2, 1.2)),
    "decoder 1024": gpt(1024, 2, 768),
    "decoder 8192": gpt(8192, 2, 768),
}
GROWTH = ("decoder 1024", "decoder 8192", (1.2, 1.1))
"""Two cases, and what the ratios of the second may be at most, as multiples of those of the first."""
