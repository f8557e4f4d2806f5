"""Relevance as a walk: what comes through an attention is what is lost without it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo import built, traced

import fxplain
from fxplain.errors import MethodError


def encoder(layers: int) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).eval(), torch.randn(2, 5, 8)


@pytest.mark.parametrize("method", ["relevancy", "rollout", "net_relevancy"])
def test_without_a_layer_so_much_less_arrives(method: str) -> None:
    model, x = encoder(3)
    found = fxplain.trace(model, x)
    walk = found.walk(x, (0, 3), method)
    assert torch.equal(walk.result.relevance["src"], found.explain(x, (0, 3), method).relevance["src"])
    for left_out in range(3):
        others = [layer for layer in range(3) if layer != left_out]
        without = found.explain(x, (0, 3), method, layers=others).relevance["src"]
        torch.testing.assert_close(walk.passed[left_out], walk.result.relevance["src"] - without)
    assert walk.shares.shape == (3, 2)


def test_one_attention_carries_everything() -> None:
    model, x = encoder(1)
    walk = fxplain.trace(model, x).walk(x, (0, 3))
    torch.testing.assert_close(walk.shares, torch.ones(1, 2))


@pytest.mark.parametrize("name", ["lxmert-eager", "t5-sdpa", "detr-eager", "swin-eager"])
def test_streams_of_every_kind(name: str) -> None:
    _, inputs, _ = built(name)
    walk = traced(name).walk(inputs)
    assert len(walk.passed) == len(walk.steps) == len(traced(name).attentions)
    rows = torch.cat(list(walk.result.relevance.values()), -1)
    assert all(own.shape == rows.shape for own in walk.passed)
    assert float(walk.shares.max()) <= 1 + 1e-5
    assert bool((walk.shares.amax(0) > 0).all())


def test_paths_through_two_layers() -> None:
    """R = I + a + b + b a for two layers of self-attention: what goes through the first is a and b a."""
    model, x = encoder(2)
    found = fxplain.trace(model, x)
    walk = found.walk(x, (0, 3))
    a, b = (
        found.explain(x, (0, 3), layers=[layer], mode="matrix").matrix("src", "src") - torch.eye(5)
        for layer in (0, 1)
    )
    expected = (a + b @ a)[:, 0].clone()
    expected[:, 0] = 0
    torch.testing.assert_close(walk.passed[0], expected)


def test_a_method_that_goes_another_way_is_refused() -> None:
    model, x = encoder(1)
    with pytest.raises(MethodError, match="attention by attention"):
        fxplain.trace(model, x).walk(x, (0, 3), "gradient_x_input")
