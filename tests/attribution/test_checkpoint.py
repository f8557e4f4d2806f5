"""Activation checkpointing: the same relevance, slice by slice, and little held at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attribution.test_method_samples import Classes
from speed_meters import peak_bytes
from torch import Tensor, nn
from zoo import built, traced

import fxplain
from fxplain.errors import MethodError
from fxplain.maps import blocks as map_blocks
from fxplain.run.checkpoint import PassingGradients, Sliced, checkpointed
from fxplain.run.replay import gradients_of
from fxplain.run.replay import replay as plainly
from fxplain.run.slices import slices_of
from fxplain.traced import Traced

FAMILIES = (
    "bert_masked_lm-sdpa bert-eager gpt2-sdpa t5-sdpa detr-sdpa swin-sdpa clip-sdpa mixtral-eager nn_decoder"
)


def encoder(layers: int, width: int = 16) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(width, 2, 4 * width, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).eval().requires_grad_(False)


def sliced(traced: Traced, x: Tensor) -> tuple[PassingGradients, dict[str, Tensor | None]]:
    """The gradients of one score, slice by slice and all at once."""
    labelled = traced._first
    bound = labelled.captured.bind((x,), {})
    sites, shapes = labelled.classified.sites, labelled.findings.ledger.shapes
    run = checkpointed(labelled.captured, bound, sites, shapes, gradients=True)
    passing = run.gradients(run.outputs[0][0, 0, 1], False, lambda name, gradient: None)
    assert isinstance(passing, PassingGradients)
    plain = plainly(labelled.captured, bound, sites, gradients=True)
    return passing, dict(gradients_of(plain.outputs[0][0, 0, 1], plain.tapped))


@pytest.mark.parametrize("name", FAMILIES.split())
def test_checkpointing_changes_nothing_but_memory(name: str) -> None:
    _, inputs, expected = built(name)
    rows, again = (
        traced(name).explain(inputs, expected.target, output=expected.output, mode=mode)
        for mode in ("rows", "checkpoint")
    )
    assert again.mode == "rows"
    for space, relevance in rows.relevance.items():
        torch.testing.assert_close(again.relevance[space], relevance, rtol=1e-5, atol=1e-8)
    assert torch.equal(again.score, rows.score)


def test_the_first_explanation_of_a_layout_holds_maps_against_outputs_too() -> None:
    x = torch.randn(2, 5, 16)
    traced = fxplain.trace(encoder(3), x)
    result = traced.explain(x, (0, 1), mode="checkpoint")
    assert 0 < result.verified < 1e-5
    torch.testing.assert_close(result.relevance["src"], traced.explain(x, (0, 1)).relevance["src"])


def test_methods_without_gradients_and_layers_alone_are_had_as_well() -> None:
    x = torch.randn(1, 5, 16)
    traced = fxplain.trace(encoder(3), x)
    for options in ({"method": "rollout"}, {"layers": slice(1, None)}, {"method": "relevancy+libra"}):
        found, same = (traced.explain(x, (0, 1), mode=mode, **options) for mode in ("rows", "checkpoint"))
        torch.testing.assert_close(found.relevance["src"], same.relevance["src"])


def test_samples_that_touch_have_a_backward_pass_each() -> None:
    x = torch.randn(2, 5, 6)
    traced = fxplain.trace(Classes().eval(), x)
    found, same = (traced.explain(x, 1, mode=mode) for mode in ("rows", "checkpoint"))
    for space in found.relevance:
        torch.testing.assert_close(found.relevance[space], same.relevance[space])


def test_several_targets_are_taken_one_by_one() -> None:
    x = torch.randn(1, 5, 16)
    traced = fxplain.trace(encoder(2), x)
    found, same = (traced.explain_targets(x, [(0, 1), (3, 2)], mode=mode) for mode in ("rows", "checkpoint"))
    for one, other in zip(found, same, strict=True):
        torch.testing.assert_close(one.relevance["src"], other.relevance["src"])


def test_one_slice_for_each_layer_and_little_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_blocks, "MOST", 192 * 8)
    layers, x = 8, torch.randn(1, 192, 32)
    model = encoder(layers, 32)
    traced = fxplain.trace(model, x)
    labelled = traced._first
    graph = labelled.captured.graph.graph
    cut = slices_of(graph, labelled.classified.sites, labelled.findings.ledger.shapes)
    assert len(cut) == layers
    assert all(len(own.taken) == 1 for own in cut[1:]), "the residual stream alone goes from layer to layer"
    traced.explain(x, (0, 1))
    rows, less = (
        peak_bytes(lambda mode=mode: traced.explain(x, (0, 1), mode=mode), "cpu", model.parameters())  # type: ignore[misc]
        for mode in ("rows", "checkpoint")
    )
    assert less < 0.45 * rows


def test_gradients_are_forgotten_as_the_rows_pass_unless_they_are_asked_for_again() -> None:
    x = torch.randn(1, 5, 16)
    passing, whole = sliced(fxplain.trace(encoder(4), x), x)
    assert set(passing) == set(whole)
    for name in reversed(whole):
        assert torch.equal(passing[name], whole[name])  # type: ignore[arg-type]
        assert len(passing._found) == 1
    for name in whole:  # from the first on: nothing may be missing
        assert torch.equal(passing[name], whole[name])  # type: ignore[arg-type]
    assert passing.hold
    assert len(passing._found) > 1


def test_each_slice_is_run_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    x, runs = torch.randn(1, 5, 16), []
    traced = fxplain.trace(encoder(4), x)
    traced.explain(x, (0, 1))
    run = Sliced._run
    monkeypatch.setattr(Sliced, "_run", lambda self, own, *rest: runs.append(own) or run(self, own, *rest))
    traced.explain(x, (0, 1), mode="checkpoint")
    assert [runs.count(own) for own in dict.fromkeys(runs)] == [2] * 4


class Noisy(nn.Module):
    """Draws random numbers between two attentions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(encoder(1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = nn.functional.dropout(layer(x), 0.3, training=True)
        return x


def test_random_numbers_are_drawn_as_before() -> None:
    x, found = torch.randn(1, 5, 16), []
    traced = fxplain.trace(Noisy().eval(), x)
    for seed, mode in ((1, "rows"), (1, "checkpoint"), (2, "checkpoint")):
        torch.manual_seed(seed)
        found.append(traced.explain(x, (0, 1), mode=mode).relevance["x"])  # type: ignore[arg-type]
    torch.testing.assert_close(found[1], found[0])
    assert not torch.allclose(found[2], found[0])


def test_a_mode_that_is_none_is_told() -> None:
    x = torch.randn(1, 5, 16)
    with pytest.raises(MethodError, match="no mode"):
        fxplain.trace(encoder(1), x).explain(x, (0, 1), mode="checkpoints")  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["attnlrp", "legrad", "gradient_x_input"])
def test_methods_with_ways_of_their_own_refuse(method: str) -> None:
    x = torch.randn(1, 5, 16)
    with pytest.raises(MethodError, match="activation checkpointing"):
        fxplain.trace(encoder(2), x).explain(x, (0, 1), method=method, mode="checkpoint")


def test_where_no_rows_can_be_carried_it_refuses() -> None:
    _, inputs, expected = built("sam-sdpa")
    with pytest.raises(MethodError, match="co-attention"):
        traced("sam-sdpa").explain(inputs, expected.target, output=expected.output, mode="checkpoint")


def test_a_graph_that_writes_is_refused() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_function(torch.ops.aten.add_.Tensor, (x, 1)),))
    captured = replace(
        fxplain.trace(encoder(1), torch.randn(1, 5, 16)).captured, graph=torch.fx.GraphModule({}, graph)
    )
    with pytest.raises(MethodError, match="writes into a tensor"):
        checkpointed(captured, {"x": torch.ones(2)}, (), {}, gradients=True)
