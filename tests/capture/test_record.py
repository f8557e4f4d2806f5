"""Recording where symbolic tracing cannot go: what depends on data is held fixed, all else stays computed."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxplain
from fxplain.capture import record as record_module
from fxplain.capture.capture import capture
from fxplain.capture.guard import untouched
from fxplain.capture.inputs import flatten
from fxplain.capture.record import record
from fxplain.capture.verify import run
from fxplain.where import module_path

torch.set_num_threads(1)


class Attend(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.v = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(self.q(x), x, self.v(x))


class ThroughNumpy(Attend):
    def forward(self, x: Tensor) -> Tensor:
        mask = torch.from_numpy((x.detach().cpu().numpy() > 0).astype("float32"))
        return super().forward(x * mask)


class Mapped(Attend):
    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(lambda row: super(Mapped, self).forward(row[None])[0])(x)


class Drawing(Attend):
    """Keeps random tokens, and as many as the input says."""

    def forward(self, x: Tensor) -> Tensor:
        keep = int((x[0] > 0).any(-1).sum().clamp(min=1))
        chosen = torch.multinomial(torch.ones(x.shape[1]), keep)
        return super().forward(x[:, chosen] + torch.rand_like(x[:, chosen]))


class Writing(Attend):
    """Reads its buffer through a view, writes into it, and counts on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.ones(3, 4))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        row = self.table[0]  # type: ignore[index]
        row.add_(x.mean().item())
        return super().forward(x + row + self.table.data[0] * self.calls)  # type: ignore[union-attr, index]


def inputs() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 3, 4)


@pytest.mark.parametrize("kind", [ThroughNumpy, Mapped, Drawing, Writing])
def test_recorded_and_equal(kind: type[nn.Module]) -> None:
    x = inputs()
    model = kind().eval()
    captured = capture(model, (x,), {})
    assert captured.strategy == "record"
    assert captured.specialised
    assert captured.verified <= 1e-6
    assert {"q", "v"} <= {module_path(n) for n in captured.graph.graph.nodes if n.op == "call_function"}


def test_random_draws_are_held_fixed() -> None:
    x = inputs()
    captured = capture(Drawing().eval(), (x,), {})
    values = list(captured.bind((x,), {}).values())
    assert torch.equal(run(captured.graph, values)[0], run(captured.graph, values)[0])


def test_attention_stays_whole() -> None:
    captured = capture(ThroughNumpy().eval(), (inputs(),), {})
    targets = {node.target for node in captured.graph.graph.nodes}
    assert torch.ops.aten.scaled_dot_product_attention.default in targets
    assert torch.ops.aten.linear.default in targets


def test_decomposed_recordings_have_derivatives() -> None:
    x = inputs()
    captured = capture(Mapped().eval(), (x,), {})
    bound = captured.bind((x,), {})
    bound["arg0_1"] = x.clone().requires_grad_()
    torch.fx.Interpreter(captured.graph).run(*bound.values())[0].sum().backward()
    assert bound["arg0_1"].grad is not None


def test_in_place_operations_stay_where_they_cannot_be_made_functional(monkeypatch: Any) -> None:
    def fails(*args: Any) -> Any:
        raise RuntimeError("no")

    monkeypatch.setattr(record_module, "_exported", fails)
    model, x = Writing().eval(), inputs()
    expected = model(x.clone())
    model.table.fill_(1)  # type: ignore[operator]
    model.calls = 0
    tensors, layout = flatten(model, (x,), {})
    with untouched(model):
        draft = record(model, tensors, layout)
    assert any("in-place" in note for note in draft.notes)
    buffers = dict(model.named_buffers()) | dict(model.named_parameters())
    values = [
        draft.constants[p.node]
        if p.kind == "constant"
        else x
        if p.kind == "input"
        else buffers[p.path].detach()
        for p in draft.placeholders
    ]
    for _ in range(2):  # the second run finds the bound tensors as the first did
        torch.testing.assert_close(run(draft.graph, values)[0], expected)
    assert torch.equal(model.table, torch.ones(3, 4))  # type: ignore[arg-type]


def test_scripted_models() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1)))
    captured = capture(model, (inputs(),), {})
    assert captured.verified <= 1e-6
    assert {p.path for p in captured.placeholders if p.kind == "parameter"} == {"0.weight", "0.bias"}


def test_draws_stay_those_of_the_recording_whatever_is_drawn_later() -> None:
    x, model = inputs(), Drawing().eval()
    traced = fxplain.trace(model, x)
    torch.rand(3)
    state = torch.get_rng_state()
    result = traced.explain(x)  # the model is run again, to compare it with the graph
    assert result.verified <= 1e-6
    assert any("random numbers" in note for note in result.notes)
    assert torch.equal(torch.get_rng_state(), state)


class OfArrays(Attend):
    def forward(self, frames: Any, more: Any = None) -> Tensor:
        x = torch.from_numpy(frames)
        return super().forward(x if more is None else x * torch.as_tensor(more["scale"]))


def test_an_array_keeps_the_name_of_its_argument() -> None:
    torch.manual_seed(0)
    frames, scale = torch.randn(1, 3, 4).numpy(), torch.rand(1, 3, 1).numpy()
    model = OfArrays().eval()
    traced = fxplain.trace(model, (frames, {"scale": scale}))
    assert [p.path for p in traced.captured.placeholders if p.kind == "input"] == ["frames", "more.scale"]
    result = traced.explain((frames, {"scale": scale}), target=(0, 1))
    assert list(result.relevance) == ["frames"]
    other = traced.explain((2 * frames, {"scale": scale}), target=(0, 1))  # recorded anew
    torch.testing.assert_close(other.score, model(2 * frames, {"scale": scale})[:, 0, 1])
