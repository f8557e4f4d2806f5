"""An attention whose output goes nowhere is none, however it is spelled."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

import fxplain

Way = Callable[["Both", Tensor, Tensor], Tensor]
WAYS: dict[str, Way] = {
    "written out": lambda m, q, k: (q @ k.mT / 8**0.5).softmax(-1) @ k,
    "fused": lambda m, q, k: scaled_dot_product_attention(q, k, k),
    "fused, masked": lambda m, q, k: scaled_dot_product_attention(
        q, k, k, torch.zeros(q.shape[1], k.shape[1])
    ),
    "flex": lambda m, q, k: flex_attention(q[:, None], k[:, None], k[:, None])[:, 0],
    "a module": lambda m, q, k: m.module(q, k, k)[0],
    "a module without maps": lambda m, q, k: m.module(q, k, k, need_weights=False)[0],
    "dropped out": lambda m, q, k: m.drop(scaled_dot_product_attention(q, k, k)),
}


class Both(nn.Module):
    """``x`` reads ``y``; ``y`` reads ``x`` for nothing. ``branch`` makes the capture record."""

    def __init__(self, way: Way, branch: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(8, 2)
        self.module, self.drop = nn.MultiheadAttention(8, 2, batch_first=True), nn.Dropout(0.5)
        self.way, self.branch = way, branch

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = self.a(x), self.b(y)
        read = x + self.way(self, x, y)
        _ = (y + self.way(self, y, x)).relu()
        if self.branch and bool(read.sum() > 1e9):
            read = read * 2
        out: Tensor = self.head(read[:, 0])
        return out


def _runs(model: nn.Module, inputs: tuple[Tensor, Tensor]) -> bool:
    try:
        model(*inputs)
    except Exception:
        return False
    return True


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("branch", [False, True])
def test_one_attention(name: str, branch: bool) -> None:
    if name == "flex" and branch:
        pytest.skip("flex attention is not recorded")
    inputs = torch.randn(1, 4, 5), torch.randn(1, 3, 5)
    model = Both(WAYS[name], branch).eval()
    if name == "flex" and not _runs(model, inputs):
        pytest.skip("this torch does not run flex attention on a CPU, with fxplain or without")
    traced = fxplain.trace(model, inputs)
    assert [(a.kind, a.queries.name) for a in traced.attentions] == [("encoder_decoder", "x")]
    assert not [entry for entry in traced.census if "attention" not in entry.role]
