"""The LRP methods of the CVPR 2021 paper against its equations, written out layer by layer, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from references import exact, exactly_traced
from references.lrp import Attributed, bert, vit
from torch import Tensor, nn
from zoo.spec import Inputs

import fxplain

TARGET = 1
METHODS = {
    "lrp": "lrp",
    "partial_lrp": "partial",
    "transformer_attribution": "attribution",
    "transformer_attribution_no_gradient": "no_gradient",
    "transformer_attribution_no_relevance": "no_relevance",
    "transformer_attribution_last_layer": "last_layer",
    "transformer_attribution layers=1": "second_layer",
    "transformer_attribution_attention": "with_maps",
}
"""Method -> where the reference has it."""
By_hand = Callable[[nn.Module, Inputs, int, int], Attributed]
# not vit-eager: its softmax is in float32 even in a model of float64
CASES = [("bert-eager", bert), ("bert-sdpa", bert), ("vit-sdpa", vit)]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("name", "by_hand"), CASES, ids=[name for name, _ in CASES])
def test_the_methods_equal_the_equations(name: str, by_hand: By_hand) -> None:
    model, inputs, _ = exact(name)
    if by_hand is vit and not hasattr(model.vit, "layers"):
        pytest.skip("the reference names the layers of a newer transformers' ViT")
    results: dict[str, fxplain.Result] = {}
    for asked in METHODS:
        method, _, layer = asked.partition(" layers=")
        layers = int(layer) if layer else None
        results[asked] = exactly_traced(name).explain(inputs, TARGET, method, layers=layers)
    for sample in range(2):
        expected = by_hand(model, inputs, sample, TARGET)
        for method, wanted in ((method, getattr(expected, name)) for method, name in METHODS.items()):
            assert wanted.abs().max() > 1e-5
            close(tokens(results[method].relevance, sample), wanted)
        if expected.pixels is not None:
            close(results["lrp"].inputs["pixel_values"][sample], expected.pixels)


def tokens(relevance: fxplain.result.Relevance, sample: int) -> Tensor:
    """In the order of the model's own sequence: the class token, if there is one, first."""
    names = sorted(relevance, key=lambda name: "cls" not in name)
    return torch.cat([relevance[name][sample] for name in names])
