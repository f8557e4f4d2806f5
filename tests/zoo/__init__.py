"""A zoo of toy models with seeded random weights, and what is to be found in each; see :mod:`zoo.spec`."""

from __future__ import annotations

import transformers as hf

from zoo.multimodal import MULTIMODAL
from zoo.spec import EVERY, Builder, Case, Expected, Site, slice_batch
from zoo.text import TEXT
from zoo.torch_nn import TORCH
from zoo.vision import VISION

FUSED_LATER = {
    "t5-sdpa": hf.T5ForConditionalGeneration,
    "swin-sdpa": hf.SwinForImageClassification,
    "detr-sdpa": hf.DetrForObjectDetection,
    "conditional_detr-sdpa": hf.ConditionalDetrForObjectDetection,
    "blip2_qformer-sdpa": hf.Blip2QFormerModel,
}
"""Models that the oldest supported transformers only has with eager attention."""

ZOO: dict[str, Builder] = {
    name: build
    for name, build in {**TEXT, **VISION, **MULTIMODAL, **TORCH}.items()
    if name not in FUSED_LATER or FUSED_LATER[name]._supports_sdpa
}

__all__ = ["EVERY", "ZOO", "Builder", "Case", "Expected", "Site", "slice_batch"]
