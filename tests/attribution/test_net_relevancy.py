"""Net relevancy on models: against a slow one, in rows and matrices, and where heads lie apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from references import exact, exactly_traced
from torch import Tensor, nn

import fxplain
from fxplain.attribution.row_mode import ByHeads
from fxplain.errors import MethodError
from fxplain.rules import libra

NETS = ("net_relevancy", "net_relevancy_centred", "net_relevancy_uncentred")


class Layer(nn.Module):
    """Self attention with two heads, and a norm: the balanced gradient holds map and deviation."""

    def __init__(self, apart: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.norm, self.apart = nn.LayerNorm(8), apart

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (layer(y).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.apart:  # a call for each head
            heads = [(q[:, h] @ k[:, h].mT / 2).softmax(-1) @ v[:, h] for h in range(2)]
            return x + self.out(torch.cat(heads, -1))
        return x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Model(nn.Module):
    def __init__(self, apart: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.layers = nn.ModuleList(Layer(apart) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.head(x[:, 0])
        return out


def model(apart: bool = False) -> Model:
    torch.manual_seed(0)
    return Model(apart).double().eval()


def data(batch: int = 2) -> Tensor:
    return torch.randn(batch, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def slow(net: Model, x: Tensor, target: int, centred: bool) -> Tensor:
    """Eq. 6 with ``(Σ_h A ∇A / H)⁺``, by autograd on a model whose maps and deviations are cut off."""
    x = net.embed(x)
    maps: list[Tensor] = []
    layers: list[Any] = list(net.layers)
    for layer in layers:
        y = libra.layer_norm(layer.norm(x), x, (-1,), layer.norm.weight, layer.norm.eps)
        q, k, v = (part(y).unflatten(-1, (2, 4)).transpose(1, 2) for part in (layer.q, layer.k, layer.v))
        maps.append((q @ k.mT / 2).softmax(-1).detach().requires_grad_())
        x = x + layer.out((maps[-1] @ v).transpose(1, 2).flatten(2))
    gradients = torch.autograd.grad(net.head(x[:, 0])[:, target].sum(), maps)
    relevancy = torch.eye(x.shape[1], dtype=x.dtype).repeat(len(x), 1, 1)
    for own, gradient in zip(maps, gradients, strict=True):
        moved = gradient - (own * gradient).sum(-1, keepdim=True) if centred else gradient
        relevancy = relevancy + (own * moved).sum(1).div(2).clamp(min=0) @ relevancy
    row = relevancy[:, 0].detach()
    row[:, 0] = 0
    return row


def explained(net: Model, method: str, mode: Any) -> fxplain.Result:
    return fxplain.trace(net, data()).explain(data(), 1, method, mode=mode)


@pytest.mark.parametrize("mode", ["rows", "matrix", "checkpoint"])
@pytest.mark.parametrize("apart", [False, True], ids=["heads of one call", "a call for each head"])
@pytest.mark.parametrize("method", NETS)
def test_against_a_slow_one(method: str, apart: bool, mode: str) -> None:
    found = explained(model(apart), method, mode)
    wanted = slow(model(), data(), 1, method == "net_relevancy_centred")
    torch.testing.assert_close(found.relevance["x"], wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", NETS)
@pytest.mark.parametrize("most", [1, 40])
def test_heads_are_never_cut_apart(method: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the blocks are."""
    wanted = explained(model(), method, "matrix")
    monkeypatch.setattr("fxplain.maps.blocks.MOST", most)
    found = explained(model(), method, "rows")
    torch.testing.assert_close(found.relevance["x"], wanted.relevance["x"], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("family", ["detr-sdpa", "t5-eager", "torchvision_swin_v2", "lxmert-eager"])
@pytest.mark.parametrize("method", NETS)
def test_rows_and_matrices_agree(method: str, family: str) -> None:
    _, inputs, expected = exact(family)
    found, matrix = (
        exactly_traced(family).explain(inputs, expected.target, method, output=expected.output, mode=mode)
        for mode in ("auto", "matrix")
    )
    for name, values in matrix.relevance.items():
        torch.testing.assert_close(found.relevance[name], values, rtol=1e-8, atol=1e-12)


def test_one_head_is_relevancy_with_balanced_gradients() -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.q, self.v, self.head = (nn.Linear(6, 6) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            return self.head((x + (self.q(x) @ x.mT).softmax(-1) @ self.v(x))[:, 0])

    torch.manual_seed(0)
    found = fxplain.compare(One().double().eval(), data(), ["net_relevancy", "relevancy+libra"], target=1)
    one, other = (result.relevance["x"] for result in found.values())
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_its_gradients_are_balanced_already() -> None:
    with pytest.raises(MethodError, match="balanced already"):
        fxplain.explain(model(), data(), method="net_relevancy+libra")


def test_the_papers_relevancy_clamps_head_by_head() -> None:
    assert not ByHeads(lambda maps, gradients, dim: maps).net
    found = fxplain.compare(model(), data(), ["relevancy+libra", "net_relevancy"], target=1)
    one, other = (result.relevance["x"] for result in found.values())
    assert bool((one >= other - 1e-12).all()), "what cancels is counted by eq. 5 alone"
    assert not torch.allclose(one, other, rtol=1e-3)
