"""The small DETR for scenes of shapes: a class of transformers, weights in ``weights/``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from shape_models import HELD_OUT_SEED
from shapes import SHAPES, SIZE, Scenes, draw, paint
from torch import Tensor
from weights import FOLDER, restore

OBJECTS = (2, 4)
"""Least and most in a scene."""
QUERIES = 8


def make() -> Any:
    """The model with weights drawn at random."""
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32],
        depths=[1, 1],
        layer_type="basic",
        out_features=["stage2"],  # an eighth of the picture's height and width
    )
    return DetrForObjectDetection(
        DetrConfig(
            use_timm_backbone=False,
            use_pretrained_backbone=False,
            backbone=None,
            backbone_config=backbone,
            num_labels=len(SHAPES),
            num_queries=QUERIES,
            d_model=64,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=128,
            decoder_ffn_dim=128,
            dropout=0.0,
            auxiliary_loss=True,
            eos_coefficient=0.5,
            init_std=0.1,
        )
    )


def load(folder: Path = FOLDER) -> Any:
    """The trained model, in evaluation mode, in float32."""
    return restore("detr", make(), folder / "detr.safetensors")


def held_out(count: int) -> tuple[Scenes, Any, Any]:
    """Scenes that training never sees, their pixels and masks."""
    chance = np.random.default_rng(HELD_OUT_SEED)
    scenes = draw(count, chance, *OBJECTS)
    return scenes, *paint(scenes, chance)


def pixel_values(pixels: Any) -> Tensor:
    """Pixels [n, height, width, 3] uint8 as the model is called with them."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def wanted(scenes: Scenes) -> list[dict[str, Tensor]]:
    """Classes and boxes (centre and size, as parts of the picture), as the model's own loss wants them."""
    found = []
    for shapes, boxes in zip(scenes.shapes, scenes.boxes, strict=True):
        real = shapes >= 0
        corners = torch.from_numpy(boxes[real]).float() / SIZE
        low, high = corners[:, :2], corners[:, 2:]
        box = torch.cat([(low + high) / 2, high - low], 1)
        found.append({"class_labels": torch.from_numpy(shapes[real]), "boxes": box})
    return found


@torch.no_grad()
def accuracy(model: Any, scenes: Scenes, pixels: Any) -> float:
    """The part of the objects that a query names right, with more than half of the probability and a box
    that overlaps the object's by more than half."""
    from torchvision.ops import box_convert, box_iou

    model.eval()
    right = total = 0
    for start in range(0, len(scenes), 100):
        part = slice(start, start + 100)
        found = model(pixel_values=pixel_values(pixels[part]))
        best = found.logits.softmax(-1)[..., :-1].max(-1)
        for i, want in enumerate(wanted(scenes[part])):
            boxes = (box_convert(b, "cxcywh", "xyxy") for b in (want["boxes"], found.pred_boxes[i]))
            overlap = box_iou(*boxes) > 0.5
            same = want["class_labels"][:, None] == best.indices[i]
            right += int((overlap & same & (best.values[i] > 0.5)).any(1).sum())
            total += len(want["boxes"])
    return right / total
