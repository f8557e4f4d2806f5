"""Models in half precision: explained, with A, its gradient and R in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from zoo import fresh

import fxplain

NAMES = [
    "bert-sdpa",
    "bert-eager",
    "llama-sdpa",
    "llama-eager",
    "t5-sdpa",
    "vit-sdpa",
    "lxmert-eager",
    "swin-sdpa",
]
LOOSE = {torch.bfloat16: 0.15, torch.float16: 0.03}


def halved(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {
        name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_explained_in_float32(name: str, dtype: torch.dtype) -> None:
    model, inputs, expected = fresh(name)
    whole = fxplain.explain(model, inputs, target=expected.target, output=expected.output)
    model = model.to(dtype)
    half = fxplain.explain(model, halved(inputs, dtype), target=expected.target, output=expected.output)
    for space in half.relevance:
        found, wanted = half.relevance[space], whole.relevance[space]
        assert found.dtype == torch.float32
        assert torch.isfinite(found).all()
        scale = wanted.abs().max()
        assert (found - wanted).abs().max() <= LOOSE[dtype] * scale, f"{space}: {found} against {wanted}"


def test_float64_stays_float64() -> None:
    model, inputs, expected = fresh("bert-sdpa")
    result = fxplain.explain(model.double(), inputs, target=expected.target)
    assert result.relevance["input_ids"].dtype == torch.float64


def test_tiny_gradients_of_fp16_do_not_vanish() -> None:
    """∇A ⊙ A in fp16 would underflow to zero here."""
    model, inputs, expected = fresh("bert-sdpa")
    with torch.no_grad():
        model.get_submodule("classifier").weight.mul_(1e-3)
    half = fxplain.explain(model.half(), inputs, target=expected.target)
    others = half.relevance["input_ids"][0, 1:]
    assert (others > 0).any()
