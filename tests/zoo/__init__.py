"""A zoo of toy models with seeded random weights, and what is to be found in each; see :mod:`zoo.spec`."""

from __future__ import annotations

from functools import cache

import torch
import transformers as hf

import fxplain
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
"""Models that the oldest supported transformers only has with eager attention; there they stand for these."""

ZOO: dict[str, Builder] = {
    name: build
    for name, build in {**TEXT, **VISION, **MULTIMODAL, **TORCH}.items()
    if name not in FUSED_LATER or getattr(FUSED_LATER[name], "_supports_sdpa", False)
}


def fresh(name: str) -> Case:
    """One model, its inputs and what is to be found; made anew, for a test that changes it."""
    if name in FUSED_LATER and name not in ZOO:
        return fresh(name.replace("-sdpa", "-eager"))
    return ZOO[name]()


@cache
def built(name: str) -> Case:
    """The same, shared by all tests of a process, so left as it is."""
    return fresh(name)


@cache
def traced(name: str) -> fxplain.Traced:
    """The same, traced once for all tests of a process."""
    model, inputs, _ = built(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return fxplain.trace(model, inputs)


__all__ = ["EVERY", "ZOO", "Builder", "Case", "Expected", "Site", "built", "slice_batch", "traced"]
