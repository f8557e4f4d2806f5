"""Capture: every way to call a model, every strategy, and a graph that equals the model under autograd."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fxplain
from fxplain.capture import capture as capture_module
from fxplain.capture.capture import STRATEGIES, Captured, capture
from fxplain.capture.inputs import normalise
from fxplain.capture.verify import run, verify
from fxplain.errors import CaptureError, DeviceError, InputError, NonFiniteError, VerificationError
from fxplain.where import module_path, source_line

torch.set_num_threads(1)


@dataclass
class Answer:
    logits: Tensor
    states: tuple[Tensor, ...]
    cache: Any = None


class Cache:
    def __init__(self, keys: Tensor) -> None:
        self.keys = keys


class Attend(nn.Module):
    """One attention over [batch, token, 8]; the base of the toys below."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.q(x) @ self.k(x).transpose(1, 2) / 8**0.5, dim=-1)
        return weights @ self.v(x)


class Structured(Attend):
    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return Answer(logits=y[:, 0], states=(x, y), cache=Cache(y))


class Nested(Attend):
    def forward(self, parts: Mapping[str, Any], scale: float = 1.0, *, flip: bool = False) -> Any:
        x = parts["image"]["pixels"] + parts["texts"][0].unsqueeze(-1)
        y = super().forward(x.flip(1) if flip else x)
        return {"logits": y[:, 0] * scale}


class Branch(Attend):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y * 2 if y.sum().item() > 0 else y * 3


class Loop(Attend):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        while y.abs().max() > 0.1:
            y = y * 0.5
        return y


class Experts(Attend):
    """Dispatch of tokens to experts by ``nonzero``, as mixture-of-experts models do."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(8, 3), nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        flat = super().forward(x).flatten(0, 1)
        choice = self.router(flat).argmax(-1)
        out = torch.zeros_like(flat)
        for index in choice.unique().tolist():
            rows = torch.where(choice == index)[0]
            out.index_add_(0, rows, self.experts[index](flat[rows]))
        kept = flat[choice == choice[0]]
        return out.view_as(x) + kept.mean(0)


class Masked(Attend):
    """Boolean masks in every use, and repeats by a tensor of counts."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x).clone()
        positive = x > 0
        y[positive] = y[positive] * 2 + 1
        chosen = torch.masked_select(y, positive)
        counts = positive[0, :, 0].long() + 1
        return y.repeat_interleave(counts, dim=1).sum(1) + chosen.mean() if bool(positive.any()) else y.sum(1)


class InPlace(Attend):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)  # type: ignore[operator]
        x.mul_(0.5)
        y = super().forward(x)
        z = y.clone()
        z[:, 0] = x[:, 1]
        z.masked_fill_(x > 1, 0.25)
        window = z.transpose(1, 2)[:, :, 1:]
        window += 1
        window.relu_()
        return z @ z.transpose(1, 2) + self.calls


class WritesPlain(InPlace):
    """Writes into a tensor that is an attribute and no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = torch.ones(8)

    def forward(self, x: Tensor) -> Tensor:
        self.plain.mul_(2)
        return super().forward(x) + self.plain.sum()


class Frozen(Attend):
    """A region without gradient, and one in mixed precision."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = super().forward(x)
        with torch.enable_grad():
            y = y + super().forward(y)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.q(y)
        return y.float().softmax(-1)


class Tied(Attend):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(super().forward(self.embed(ids)))


class Dropping(Attend):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.drop(x))


class Prefixed(Attend):
    """Attends to a cache that is handed over, and writes into it."""

    def forward(self, x: Tensor, past: Cache) -> Tensor:
        past.keys = torch.cat([past.keys, x], dim=1)
        return super().forward(past.keys)


TOYS: dict[str, tuple[type[nn.Module], Any, str]] = {
    "plain": (Attend, (2, 4, 8), "export"),
    "structured": (Structured, (2, 4, 8), "export"),
    "in_place": (InPlace, (2, 4, 8), "export"),
    "writes_plain": (WritesPlain, (2, 4, 8), "record"),
    "frozen_region": (Frozen, (2, 4, 8), "export"),
    "branch": (Branch, (2, 4, 8), "record"),
    "loop": (Loop, (2, 4, 8), "record"),
    "experts": (Experts, (2, 4, 8), "record"),
    "masked": (Masked, (2, 4, 8), "record"),
}


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def replayed(captured: Captured, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> list[Tensor]:
    """Gradients of the first output's sum for each floating input, by running the graph under autograd."""
    bound = captured.bind(args, kwargs or {})
    kinds = {p.node: p.kind for p in captured.placeholders}
    assert not any(tensor.requires_grad for tensor in bound.values())
    leaves = [n for n, t in bound.items() if kinds[n] == "input" and t.is_floating_point()]
    bound.update({name: bound[name].clone().requires_grad_() for name in leaves})
    outputs = torch.fx.Interpreter(captured.graph).run(*bound.values())
    outputs[0].float().sum().backward()
    return [bound[name].grad for name in leaves]  # type: ignore[misc]


@pytest.mark.parametrize("name", TOYS)
def test_strategy_and_equality(name: str) -> None:
    kind, shape, strategy = TOYS[name]
    model, x = made(kind), torch.randn(shape)
    captured = capture(model, (x,), {})
    assert captured.strategy == strategy
    assert captured.verified <= 1e-6
    assert captured.specialised is (strategy == "record")
    assert ("export" in captured.reasons) is (strategy == "record")
    assert verify(captured, (x,), {}) <= 1e-6


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s[0])
def test_every_strategy_gives_a_functional_flat_graph(
    name: str, strategy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, shape, needs = TOYS[name]
    if needs == "record" and strategy[0] == "export":
        pytest.skip("needs a recording")
    monkeypatch.setattr(capture_module, "STRATEGIES", (strategy,))
    captured = capture(made(kind), (torch.randn(shape),), {})
    names = {p.node for p in captured.placeholders}
    for node in captured.graph.graph.nodes:
        assert node.op in ("placeholder", "call_function", "output")
        assert not getattr(getattr(node.target, "_schema", None), "is_mutable", False), node
        assert node.op != "placeholder" or node.name in names
        assert node.op != "call_function" or "test_capture.py" in source_line(node)
    assert [n.name for n in captured.graph.graph.nodes if n.op == "placeholder"] == [
        p.node for p in captured.placeholders
    ]
    modules = {module_path(n) for n in captured.graph.graph.nodes if n.op == "call_function"}
    assert {"", "q", "k", "v"} <= modules


@pytest.mark.parametrize("name", ["plain", "branch", "loop", "experts", "masked", "in_place", "writes_plain"])
def test_gradients_of_the_replay_are_the_models(name: str) -> None:
    kind, shape, _ = TOYS[name]
    model, x = made(kind), torch.randn(shape)
    captured = capture(model, (x,), {})
    (found,) = replayed(captured, (x,))
    leaf = x.clone().requires_grad_()
    model(leaf * 1).sum().backward()
    torch.testing.assert_close(found, leaf.grad)


def test_gradients_flow_through_a_region_without_gradient() -> None:
    (grad,) = replayed(capture(made(Frozen), (x := torch.randn(2, 4, 8),), {}), (x,))
    assert grad.abs().sum() > 0


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_works_frozen_and_in_every_grad_mode(frozen: bool, mode: Any) -> None:
    model = made(Attend).requires_grad_(not frozen)
    with mode():
        x = torch.randn(2, 4, 8)
        captured = capture(model, (x,), {})
    assert replayed(captured, (x,))[0].abs().sum() > 0


def test_output_structure_names_and_rebuild() -> None:
    captured = capture(made(Structured), (torch.randn(2, 4, 8),), {})
    assert captured.outputs == ("logits", "states.0", "states.1")
    rebuilt = captured.rebuild([torch.zeros(1), torch.ones(1), torch.ones(2)])
    assert isinstance(rebuilt, Answer)
    assert rebuilt.logits.item() == 0
    assert rebuilt.states[1].shape == (2,)
    assert rebuilt.cache is None


def test_a_bare_tensor_is_named_output() -> None:
    assert capture(made(Attend), (torch.randn(2, 4, 8),), {}).outputs == ("output",)


def test_nested_inputs_and_constants() -> None:
    model = made(Nested)
    parts = {"image": {"pixels": torch.randn(2, 4, 8)}, "texts": [torch.randn(2, 4)]}
    args, kwargs = normalise((parts,))
    captured = capture(model, args, {**kwargs, "scale": 2.0, "flip": True})
    inputs = [p.path for p in captured.placeholders if p.kind == "input"]
    assert inputs == ["parts.image.pixels", "parts.texts.0"]
    assert set(captured.bind((parts,), {"scale": 2.0, "flip": True}))
    with pytest.raises(InputError, match="differ from the trace"):
        captured.bind((parts,), {"scale": 3.0, "flip": True})


def test_a_cache_among_the_inputs_is_an_input_and_is_not_written() -> None:
    past = Cache(torch.randn(2, 3, 8))
    x = torch.randn(2, 4, 8)
    captured = capture(made(Prefixed), (x, past), {})
    assert [p.path for p in captured.placeholders if p.kind == "input"] == ["x", "past.keys"]
    assert past.keys.shape == (2, 3, 8)
    assert replayed(captured, (x, past))[1].shape == (2, 3, 8)


def test_tied_weights_and_live_weights() -> None:
    model, ids = made(Tied), torch.tensor([[1, 2, 3]])
    captured = capture(model, (ids,), {})
    tied = [p for p in captured.placeholders if p.path in ("embed.weight", "head.weight")]
    assert len(tied) == 1
    with torch.no_grad():
        model.embed.weight.mul_(2)  # type: ignore[union-attr, operator]
    assert verify(captured, (ids,), {}) <= 1e-6


def test_training_mode_is_captured_in_eval_mode_and_noted() -> None:
    model = made(Dropping).train()
    captured = capture(model, (x := torch.randn(2, 4, 8),), {})
    assert any("training mode" in note for note in captured.notes)
    assert model.training
    torch.testing.assert_close(
        run(captured.graph, list(captured.bind((x,), {}).values()))[0], model.eval()(x)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    captured = capture(made(Attend).to(dtype), (torch.randn(2, 4, 8, dtype=dtype),), {})
    assert captured.verified <= 1e-2


# torch.compile imports code of torch's own that some releases call deprecated
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_wrapper_is_seen_through() -> None:
    model = made(Attend)
    captured = capture(torch.compile(model), (torch.randn(2, 4, 8),), {})  # type: ignore[arg-type]
    assert captured.model is model


def test_bind_refuses_other_inputs() -> None:
    captured = capture(made(Attend), (torch.randn(2, 4, 8),), {})
    with pytest.raises(InputError, match=r"(?s)'x' differs.*float32\[2, 4, 8\].*float32\[3, 4, 8\]"):
        captured.bind((torch.randn(3, 4, 8),), {})
    with pytest.raises(InputError, match="float64"):
        captured.bind((torch.randn(2, 4, 8).double(),), {})
    with pytest.raises(InputError, match="missing"):
        captured.bind((), {})
    with pytest.raises(InputError, match="was not there"):
        captured.bind((torch.randn(2, 4, 8), torch.ones(1)), {})


def test_the_models_own_message_when_it_raises() -> None:
    with pytest.raises(InputError, match=r"(?s)mat1 and mat2.*forward\(x\).*x float32\[2, 4, 7\]"):
        capture(made(Attend), (torch.randn(2, 4, 7),), {})
    with pytest.raises(InputError, match="unexpected keyword argument 'pixels'"):
        capture(made(Attend), (), {"pixels": torch.randn(1)})
    with pytest.raises(InputError, match="index out of range"):
        capture(made(Tied), (torch.tensor([[99]]),), {})
    with pytest.raises(InputError, match="not a PyTorch module"):
        capture(len, (torch.ones(1),), {})  # type: ignore[arg-type]


def test_devices() -> None:
    with pytest.raises(DeviceError, match=r"(?s)no weights.*q.weight"):
        capture(made(Attend).to("meta"), (torch.randn(2, 4, 8),), {})
    with pytest.raises(DeviceError, match="input x"):
        capture(made(Attend), (torch.randn(2, 4, 8, device="meta"),), {})


def test_not_finite() -> None:
    model = made(Attend)
    with torch.no_grad():
        model.k.weight[0, 0] = float("nan")  # type: ignore[union-attr, index, operator]
    with pytest.raises(NonFiniteError, match=r"(?s)k\.weight.*1 of 64"):
        capture(model, (torch.randn(2, 4, 8),), {})
    with pytest.raises(NonFiniteError, match="output 'output'"):
        capture(made(Attend), (torch.full((2, 4, 8), float("nan")),), {})


def test_every_strategys_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: Any, tensors: Any, layout: Any) -> Any:
        raise RuntimeError("out of ideas\nand more lines")

    monkeypatch.setattr(capture_module, "STRATEGIES", (("first", broken), ("second", broken)))
    with pytest.raises(CaptureError, match=r"first: RuntimeError: out of ideas; second: Runtime"):
        capture(made(Attend), (torch.randn(2, 4, 8),), {})


def test_a_graph_that_is_not_the_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: Any, tensors: Any, layout: Any) -> Any:
        draft = STRATEGIES[0][1](model, tensors, layout)
        for node in draft.graph.graph.nodes:
            if node.target is torch.ops.aten.softmax.int:
                node.args = (node.args[0], 1)
        draft.graph.recompile()
        return draft

    monkeypatch.setattr(capture_module, "STRATEGIES", (("wrong", wrong),))
    with pytest.raises(VerificationError, match=r"(?s)output 'output'.*at most 1e-05"):
        capture(made(Attend), (torch.randn(2, 4, 8),), {})
    monkeypatch.setattr(capture_module, "STRATEGIES", (("wrong", wrong), *STRATEGIES))
    captured = capture(made(Attend), (torch.randn(2, 4, 8),), {})
    assert captured.strategy == "export"
    assert "VerificationError" in captured.reasons["wrong"]


def test_weights_whose_sum_overflows_are_finite() -> None:
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.fill_(3e38)
    assert capture(model, (torch.zeros(1, 2),), {}).verified == 0


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the products of a linear map that compute anything."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        computes = all(type(each) in (Tensor, nn.Parameter) for each in args if isinstance(each, Tensor))
        self.count += computes and func in (torch.ops.aten.addmm.default, torch.ops.aten.linear.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_trace_runs_the_model_once_and_its_graph_once(batch: int) -> None:
    """One run of the graph serves its labels and the comparison with the model."""
    model = nn.Sequential(nn.Linear(6, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).eval()
    x = torch.randn(batch, 5, 6)
    with Products() as once:
        model(x)
    with Products() as counted:
        fxplain.trace(model, x)
    assert counted.count == 2 * once.count
