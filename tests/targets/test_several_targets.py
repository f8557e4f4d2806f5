"""Many targets of one input in one run: the same as one by one, in chunks that fit what they may take."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from references import exact, exactly_traced
from torch import Tensor, nn
from zoo.compare import assert_same

import fxplain
from fxplain import several_targets
from fxplain.errors import MethodError, TargetError
from fxplain.targets import confident, generated, top

TARGETS: dict[str, list[Any]] = {
    "bert-sdpa": [0, 2, [1, 0], lambda out: out.logits[:, 0] - out.logits[:, 1]],
    "gpt2-sdpa": [(1, 7), (-1, 3), (2, 0)],
    "bart-sdpa": [(1, 7), (2, 3)],
    "detr-sdpa": [(0, 1), (3, 2), (2, 0)],
    "lxmert-eager": [0, 1],
    "swin-sdpa": [0, 1],
}
MATRIX = ["bart-sdpa", "detr-sdpa"]


def case(name: str) -> tuple[Any, Any, Any]:
    _, inputs, expected = exact(name)
    return exactly_traced(name), inputs, expected


@pytest.mark.parametrize(
    ("name", "mode"), [*((name, "auto") for name in TARGETS), *((name, "matrix") for name in MATRIX)]
)
def test_each_equals_its_own_explanation(name: str, mode: Any) -> None:
    traced, inputs, expected = case(name)
    output = expected.output
    together = traced.explain_targets(inputs, TARGETS[name], output=output, mode=mode)
    assert len(together) == len(TARGETS[name])
    for target, found in zip(TARGETS[name], together, strict=True):
        alone = traced.explain(inputs, target, output=output, mode=mode)
        assert (found.target, found.readout, found.mode) == (alone.target, alone.readout, alone.mode)
        assert not [note for note in found.notes if "one by one" in note]
        assert_same(found, alone, 1e-9, f"{name}, {target}")


class Small(nn.Module):
    """Two layers over tokens, a score for each token and class; counts how often autograd goes through."""

    def __init__(self, pooled: bool = False) -> None:
        super().__init__()
        layers = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layers, 2, enable_nested_tensor=False)
        self.head, self.pooled = nn.Linear(8, 5), pooled

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.encoder(x))
        return scores.mean(1) if self.pooled else scores


def small(pooled: bool = False) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    model, x = Small(pooled).double().eval(), torch.randn(2, 6, 8, dtype=torch.float64)
    return fxplain.trace(model, x), x


@pytest.mark.parametrize("method", ["relevancy+libra", "rollout", "attnlrp", "gradient_x_input", "legrad"])
def test_every_kind_of_method(method: str) -> None:
    traced, x = small()
    for target, found in zip((0, 3), traced.explain_targets(x, [(1, 0), (1, 3)], method), strict=True):
        alone = traced.explain(x, (1, target), method)
        assert_same(found, alone, 1e-9, method)


def test_the_graph_is_run_once_and_backward_as_often_as_the_memory_makes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    traced, x = small()
    targets = [(place, label) for place in range(3) for label in range(3)]
    whole = traced.explain_targets(x, targets)
    runs, passes = [], []
    run, grad = several_targets.run_graph, torch.autograd.grad  # type: ignore[attr-defined]
    monkeypatch.setattr(several_targets, "run_graph", lambda *a: runs.append(run(*a)) or runs[-1])
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: passes.append(k) or grad(*a, **k))
    one = several_targets.chunk_size
    monkeypatch.setattr(several_targets, "chunk_size", lambda ran, *a: one(ran, *a))
    traced.explain_targets(x, targets)
    assert (len(runs), len(passes)) == (1, 1)
    bound = runs[0].run
    held = sum(tensor.nbytes for tensor in bound.tapped.values()) + several_targets.WORKING * bound.largest
    runs.clear()
    passes.clear()
    parts = traced.explain_targets(x, targets, memory=4 * held)
    assert (len(runs), len(passes)) == (1, 3)  # 4 + 4 + 1
    for found, wanted in zip(parts, whole, strict=True):
        assert_same(found, wanted, 1e-9, "chunks")
    passes.clear()
    traced.explain_targets(x, targets, memory=1)
    assert len(passes) == len(targets)


def test_where_a_pass_cannot_be_batched_it_is_taken_one_by_one_and_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    traced, x = small()

    def refuse(*_: Any) -> Any:
        raise RuntimeError("no batching rule")

    monkeypatch.setattr(several_targets, "_of_all", refuse)
    for label, found in enumerate(traced.explain_targets(x, [(0, 0), (0, 1)])):
        assert [note for note in found.notes if "no batching rule" in note]
        assert_same(found, traced.explain(x, (0, label)), 1e-9, "one by one")


def test_layers_and_matrices_of_several_targets() -> None:
    traced, x = small(pooled=True)
    found = traced.explain_targets(x, [0, 1], layers=1)
    for label, result in enumerate(found):
        assert_same(result, traced.explain(x, label, layers=1), 1e-9, "layers")
    wanted = traced.explain(x, 1, mode="matrix").matrix("x", "x")
    torch.testing.assert_close(traced.explain_targets(x, [0, 1])[1].matrix("x", "x"), wanted)
    with pytest.raises(MethodError, match="layers"):
        traced.explain_targets(x, [0], "gradient_x_input", layers=1)


def test_targets_picked_from_the_output() -> None:
    traced, x = small(pooled=True)
    scores = traced.model(x).detach()
    found = traced.explain_targets(x, top(3))
    assert [list(result.target) for result in found] == [
        [(int(place),) for place in column] for column in scores.topk(3).indices.T
    ]
    with pytest.raises(TargetError, match="not so many"):
        traced.explain_targets(x, top(9))
    with pytest.raises(TargetError, match="raised an error"):
        traced.explain_targets(x, lambda out: out["no such"])
    traced, x = small()
    with pytest.raises(TargetError, match="one sample at a time"):
        traced.explain_targets(x, confident(0.1))
    sure = traced.model(x[:1]).detach()[0].softmax(-1)[:, :-1].max(-1).values
    picked = traced.explain_targets(x[:1], confident(float(sure.median())))
    assert len(picked) == int((sure >= sure.median()).sum())


def test_every_generated_token() -> None:
    traced, inputs, _ = case("gpt2-sdpa")
    ids = inputs["input_ids"]
    found = traced.explain_targets(inputs, generated(ids, 2))
    assert len(found) == ids.shape[1] - 2
    for place, result in enumerate(found, 2):
        assert result.target == tuple((place - 1, int(row[place])) for row in ids)
        assert not result.relevance["input_ids"][:, place:].any(), "later tokens predict nothing"
    with pytest.raises(TargetError, match="from there on"):
        traced.explain_targets(inputs, generated(ids, 0))
