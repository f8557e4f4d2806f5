"""An operation that no transfer function knows: what lies behind it is not explained."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxplain
from fxplain.errors import UnknownOpError


class FastPath(nn.Module):
    """Whole layers in one kernel, as ``torch.nn`` calls them for inference: they have no derivative."""

    def __init__(self, whole: bool, followed: bool) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)
        self.whole, self.followed = whole, followed

    def forward(self, x: Tensor) -> Tensor:
        layer, attention = self.layer, self.layer.self_attn
        own = (attention.in_proj_weight, attention.in_proj_bias, *attention.out_proj.parameters())
        x = layer.norm1(layer.linear2(layer.linear1(x)))
        if self.whole:
            rest = (*layer.norm1.parameters(), *layer.norm2.parameters())
            rest = (*rest, *layer.linear1.parameters(), *layer.linear2.parameters())
            x = torch._transformer_encoder_layer_fwd(x, 8, 2, *own, False, False, 1e-5, *rest)  # type: ignore[arg-type]
        else:
            x = x + torch._native_multi_head_attention(x, x, x, 8, 2, *own, need_weights=False)[0]  # type: ignore[arg-type, misc]
        if self.followed:
            x = x + nn.functional.scaled_dot_product_attention(x, x, x)
        logits: Tensor = self.head(x[:, 0])
        return logits


@pytest.mark.parametrize("followed", [False, True], ids=["alone", "before an attention"])
@pytest.mark.parametrize("whole", [False, True], ids=["attention", "layer"])
def test_kernels_without_a_derivative_are_refused(whole: bool, followed: bool) -> None:
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    traced = fxplain.trace(FastPath(whole, followed).eval(), x)
    assert "unknown" in [entry.role for entry in traced.census]
    with pytest.raises(UnknownOpError, match=r"_native_multi_head_attention|_transformer_encoder_layer_fwd"):
        traced.explain(x)


@torch.library.custom_op("fxplain_tests::mixed", mutates_args=())
def mixed(x: Tensor) -> Tensor:
    return x + x.flip(1)


@mixed.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Prepared(nn.Module):
    """Raw data go through an operation that nobody knows, before anything makes tokens of them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(mixed(x))
        return self.head(nn.functional.scaled_dot_product_attention(x, x, x)[:, 0])


def test_an_unknown_operation_on_raw_data_is_told() -> None:
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    traced = fxplain.trace(Prepared().eval(), x)
    assert [entry.role for entry in traced.census] == ["stem", "attention"]
    assert any("stem in mixed" in note for note in traced.explain(x).notes)
