"""Toy vision models of transformers, and the same at small size from torchvision."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from zoo.spec import EVERY, Builder, Case, Expected, Inputs, Site, floats, ids, make, rows, selves
from zoo.text import BOTH, EAGER, reported

PATCHES = 16
"""4 x 4 patches of an image of 32 x 32 pixels."""
VIT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}
WITH_CLS = ("cls_token", "pixel_values")


def image_case(model: nn.Module, sites: tuple[Site, ...], readout: Any, **expected: Any) -> Case:
    fields: dict[str, Any] = {"maps": reported} | expected
    return model, {"pixel_values": floats(2, 3, 32, 32)}, Expected(sites=sites, readout=readout, **fields)


def vit(attn: str) -> Case:
    config = hf.ViTConfig(**VIT, attn_implementation=attn)
    model = make(lambda: hf.ViTForImageClassification(config))
    return image_case(
        model, selves(WITH_CLS, 4, PATCHES + 1, "layers?.{}.attention", 2), rows(("cls_token", (0,)))
    )


def deit(attn: str) -> Case:
    config = hf.DeiTConfig(**VIT, attn_implementation=attn)
    spaces = ("cls_token", "distillation_token", "pixel_values")
    model = make(lambda: hf.DeiTForImageClassificationWithTeacher(config))
    readout = rows(("cls_token", (0,)), ("distillation_token", (0,)))
    return image_case(model, selves(spaces, 4, PATCHES + 2, "layers?.{}.attention", 2), readout)


def beit(attn: str) -> Case:
    config = hf.BeitConfig(**VIT, use_relative_position_bias=True, attn_implementation=attn)
    model = make(lambda: hf.BeitForImageClassification(config))
    sites = selves(WITH_CLS, 4, PATCHES + 1, "layers?.{}.attention", 2)
    return image_case(model, sites, rows(("pixel_values", EVERY)), marks=("pooled",))


def dinov2(attn: str) -> Case:
    config = hf.Dinov2Config(**VIT, mlp_ratio=2, attn_implementation=attn)
    model = make(lambda: hf.Dinov2ForImageClassification(config))
    readout = rows(("cls_token", (0,)), ("pixel_values", EVERY))
    return image_case(
        model, selves(WITH_CLS, 4, PATCHES + 1, "layer.{}.attention", 2), readout, marks=("pooled",)
    )


def swin(attn: str) -> Case:
    config = hf.SwinConfig(
        image_size=32, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4,
        num_labels=5, attn_implementation=attn,
    )  # fmt: skip
    model = make(lambda: hf.SwinForImageClassification(config))
    return image_case(
        model, swin_sites(), rows(("pixel_values", EVERY)), maps=swin_reported, marks=("pooled",)
    )


def over_grid(weights: Tensor, side: int, window: int, shift: int) -> Tensor:
    """Maps of windows [batch * windows, head, w, w] -> maps of the whole grid, zero between windows."""
    count = side // window
    place = torch.arange(side * side).view(side, side).roll((-shift, -shift), (0, 1))
    place = place.view(count, window, count, window).transpose(1, 2).reshape(count**2, window**2)
    parts = weights.unflatten(0, (-1, count**2))
    full = torch.zeros(parts.shape[0], parts.shape[2], side**2, side**2)
    for index, tokens in enumerate(place):
        full[:, :, tokens[:, None], tokens[None]] = parts[:, index]
    return full


def swin_reported(model: nn.Module, inputs: Inputs) -> list[tuple[int, Tensor]]:
    """The model reports the last block of each stage: the shifted one, and one whose window is the grid."""
    with torch.no_grad():
        first, second = model(**inputs, output_attentions=True).attentions
    return [(1, over_grid(first, 8, 4, 2)), (3, over_grid(second, 4, 4, 0))]


def sam_reported(model: nn.Module, inputs: Inputs) -> list[tuple[int, Tensor]]:
    """The encoder reports its two maps, heads folded into the batch; the decoder none."""
    with torch.no_grad():
        windows, whole = model(**inputs, output_attentions=True).vision_attentions
    return [(0, over_grid(windows.unflatten(0, (-1, 4)), 4, 2, 0)), (1, whole.unflatten(0, (-1, 4)))]


def swin_sites() -> tuple[Site, ...]:
    """Stage one: 8 x 8 tokens in windows of 4 x 4, plain then shifted; stage two: 4 x 4 tokens."""
    space = ("pixel_values",)
    return tuple(
        Site("self", space, space, heads, size, size, f"layers.{stage}.blocks.{block}.attention")
        for stage, (heads, size) in enumerate([(2, 64), (4, 16)])
        for block in range(2)
    )


def sam(attn: str) -> Case:
    vision = {
        "hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": 32, "patch_size": 8, "window_size": 2, "global_attn_indexes": [1], "mlp_dim": 48,
        "num_pos_feats": 8,
    }  # fmt: skip
    prompt = {"hidden_size": 16, "image_size": 32, "patch_size": 8, "image_embedding_size": 4}
    decoder = {
        "hidden_size": 16, "mlp_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "iou_head_hidden_dim": 16, "iou_head_depth": 2,
    }  # fmt: skip
    config = hf.SamConfig(
        vision_config=vision,
        prompt_encoder_config=prompt,
        mask_decoder_config=decoder,
        attn_implementation=attn,
    )
    inputs = {
        "pixel_values": floats(2, 3, 32, 32),
        "input_points": torch.tensor([[[[5.0, 9.0]]], [[[20.0, 14.0]]]]),
        "input_labels": torch.ones(2, 1, 1, dtype=torch.long),
    }
    # the tokens: iou, 4 masks, the point; the padding point that the encoder adds is a constant, which may or
    # may not count as a token of its own
    tokens = ("iou_token", "mask_tokens", "input_points")
    image = ("pixel_values",)
    transformer = "mask_decoder.transformer"
    sites = list(selves("pixel_values", 4, PATCHES, "vision_encoder.layers.{}.attn", 2))
    for layer in (f"{transformer}.layers.0", f"{transformer}.layers.1"):
        sites.append(Site("self", tokens, tokens, 2, 6, 6, f"{layer}.self_attn"))
        sites.append(Site("co", tokens, image, 2, 6, PATCHES, f"{layer}.cross_attn_token_to_image"))
        sites.append(Site("co", image, tokens, 2, PATCHES, 6, f"{layer}.cross_attn_image_to_token"))
    sites.append(Site("co", tokens, image, 2, 6, PATCHES, f"{transformer}.final_attn_token_to_image"))
    expected = Expected(
        sites=tuple(sites),
        output="iou_scores",
        target=(0, 1),
        readout=rows(("iou_token", (0,))),
        maps=sam_reported,
        marks=("constant token",),
    )
    return make(lambda: hf.SamModel(config)), inputs, expected


DETR: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_queries": 5,
    "num_labels": 6,
    "use_timm_backbone": False,
    "backbone": None,
    "use_pretrained_backbone": False,
}


def resnet() -> hf.ResNetConfig:
    return hf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )


def detection_reported(model: nn.Module, inputs: Inputs) -> list[tuple[int, Tensor]]:
    with torch.no_grad():
        out = model(**inputs, output_attentions=True)
    found = list(out.encoder_attentions)
    for own, cross in zip(out.decoder_attentions, out.cross_attentions, strict=True):
        found += [own, cross]
    return list(enumerate(found))


def detection(model: nn.Module) -> Case:
    seen = torch.ones(2, 32, 32, dtype=torch.long)
    seen[1, :, 24:] = 0  # the last column of features is padding
    queries, image = ("query_position_embeddings",), ("pixel_values",)
    sites = list(selves("pixel_values", 4, PATCHES, "encoder.layers.{}.self_attn", 2))
    for layer in ("decoder.layers.0", "decoder.layers.1"):
        sites.append(Site("self", queries, queries, 4, 5, 5, f"{layer}.self_attn"))
        sites.append(Site("encoder_decoder", queries, image, 4, 5, PATCHES, f"{layer}.encoder_attn"))
    expected = Expected(
        sites=tuple(sites),
        target=(3, 2),
        readout=rows((queries[0], (3,))),
        maps=detection_reported,
    )
    return model, {"pixel_values": floats(2, 3, 32, 32), "pixel_mask": seen}, expected


def detr(attn: str) -> Case:
    config = hf.DetrConfig(
        **DETR, backbone_config=resnet(), attn_implementation={"": attn, "backbone_config": "eager"}
    )
    return detection(make(lambda: hf.DetrForObjectDetection(config)))


def conditional_detr(attn: str) -> Case:
    config = hf.ConditionalDetrConfig(
        **DETR, backbone_config=resnet(), attn_implementation={"": attn, "backbone_config": "eager"}
    )
    return detection(make(lambda: hf.ConditionalDetrForObjectDetection(config)))


def perceiver(attn: str) -> Case:
    config = hf.PerceiverConfig(
        num_latents=6, d_latents=32, d_model=24, num_blocks=2, num_self_attends_per_block=2,
        num_self_attention_heads=4, num_cross_attention_heads=4, qk_channels=32, v_channels=32, vocab_size=99,
        max_position_embeddings=7, num_labels=3, attn_implementation=attn,
    )  # fmt: skip
    model = make(lambda: hf.PerceiverForSequenceClassification(config))
    attended = torch.ones(2, 7, dtype=torch.long)
    attended[1, 5:] = 0
    latents, text = ("latents",), ("inputs",)
    sites = [Site("encoder_decoder", latents, text, 4, 6, 7, "encoder.cross_attention")]
    for _ in range(2):  # one block of layers, run twice
        sites += selves("latents", 4, 6, "encoder.self_attends.{}.attention", 2)
    query = ("position_embeddings",)
    # the decoder's classification query, one head by default
    sites.append(Site("encoder_decoder", query, latents, 1, 1, 6, "decoding_cross_attention"))

    def maps(model: nn.Module, inputs: Inputs) -> list[tuple[int, Tensor]]:
        with torch.no_grad():
            out = model(**inputs, output_attentions=True)
        first, *last = out.cross_attentions
        return list(enumerate([first, *out.attentions, *last]))

    expected = Expected(
        sites=tuple(sites),
        readout=rows((query[0], (0,))),
        padded={"inputs": ((), (5, 6))},
        maps=maps,
        marks=("shared",),
    )
    return model, {"inputs": ids(), "attention_mask": attended}, expected


def tv_vit() -> Case:
    from torchvision.models import VisionTransformer

    def build() -> nn.Module:
        return VisionTransformer(
            image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=48, num_classes=5
        )

    model = make(build)
    with torch.no_grad():  # torchvision starts the head at zero
        model.get_submodule("heads.head").weight.copy_(floats(5, 32, seed=4))
    sites = selves(("class_token", "x"), 4, PATCHES + 1, "encoder_layer_{}.self_attention", 2)
    return model, {"x": floats(2, 3, 32, 32)}, Expected(sites=sites, readout=rows(("class_token", (0,))))


def tv_swin(version: int) -> Case:
    from torchvision.models import swin_transformer as tv

    extra: dict[str, Any] = {}
    if version == 2:
        extra = {"block": tv.SwinTransformerBlockV2, "downsample_layer": tv.PatchMergingV2}

    def build() -> nn.Module:
        return tv.SwinTransformer(
            patch_size=[4, 4], embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=[4, 4],
            stochastic_depth_prob=0.0, num_classes=5, **extra,
        )  # fmt: skip

    # the features are: patches, blocks, merging, blocks
    sites = tuple(
        Site("self", ("x",), ("x",), heads, size, size, f"features.{stage}.{block}.attn")
        for stage, heads, size in [(1, 2, 64), (3, 4, 16)]
        for block in range(2)
    )
    expected = Expected(sites=sites, readout=rows(("x", EVERY)), marks=("pooled",))
    return make(build), {"x": floats(2, 3, 32, 32)}, expected


def tv_maxvit() -> Case:
    from torchvision.models import MaxVit

    def build() -> nn.Module:
        return MaxVit(
            input_size=(32, 32), stem_channels=8, partition_size=2, block_channels=[16, 32],
            block_layers=[1, 1], head_dim=8, stochastic_depth_prob=0.0, num_classes=5,
        )  # fmt: skip

    # per block one attention in windows and one over the grid, on 8 x 8 and then 4 x 4 tokens
    sites = tuple(
        Site("self", ("x",), ("x",), heads, size, size, f"blocks.{block}.layers.0.layers.{which}")
        for block, heads, size in [(0, 2, 64), (1, 4, 16)]
        for which in ("window_attention", "grid_attention")
    )
    expected = Expected(sites=sites, readout=rows(("x", EVERY)), marks=("pooled",))
    return make(build), {"x": floats(2, 3, 32, 32)}, expected


TABLE = {
    vit: BOTH,
    deit: BOTH,
    beit: BOTH,
    dinov2: BOTH,
    swin: BOTH,
    sam: BOTH,
    detr: BOTH,
    conditional_detr: BOTH,
    perceiver: EAGER,
}
VISION: dict[str, Builder] = {
    f"{build.__name__}-{attn}": partial(build, attn) for build, kinds in TABLE.items() for attn in kinds
}
VISION |= {
    "torchvision_vit": tv_vit,
    "torchvision_swin": partial(tv_swin, 1),
    "torchvision_swin_v2": partial(tv_swin, 2),
    "torchvision_maxvit": tv_maxvit,
}
