"""Bad input gives an error of our own that says what was expected, what was found, and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import fresh
from zoo.spec import floats, ids, make

import fxplain
from fxplain.errors import (
    DeviceError,
    FxplainError,
    InputError,
    MethodError,
    NoAttentionError,
    NonFiniteError,
    TargetError,
    UnknownNameError,
)


def raised(kind: type[FxplainError], call: Callable[[], Any], *words: str) -> str:
    """The text of the error, which names what was expected and found, and all of ``words``."""
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert "expected:" in text, text
    assert "found:" in text, text
    for word in words:
        assert word in text, f"{word!r} is not in:\n{text}"
    return text


class Encoder(nn.Module):
    """An encoder with outputs of every sort: logits, a side path without attention, integers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head, self.side = nn.Linear(16, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.embed(x)
        hidden = hidden + self.attention(hidden, hidden, hidden, need_weights=False)[0]
        logits = self.head(hidden[:, 0])
        return {"logits": logits, "side": self.side(x[:, 0]), "chosen": logits.argmax(-1)}


def encoder() -> tuple[nn.Module, dict[str, Tensor]]:
    return make(Encoder), {"x": floats(2, 5, 8)}


def test_no_attention() -> None:
    model = make(lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)))
    text = raised(NoAttentionError, lambda: fxplain.explain(model, floats(2, 8)))
    assert "attention" in text


def test_no_attention_lists_what_softmax_there_is() -> None:
    model = make(lambda: nn.Sequential(nn.Linear(8, 3), nn.Softmax(-1)))
    assert not fxplain.trace(model, floats(2, 8)).attentions
    raised(NoAttentionError, lambda: fxplain.explain(model, floats(2, 8)), "softmax")


class Raises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ZeroDivisionError("the model's own trouble")


def test_model_that_raises() -> None:
    raised(InputError, lambda: fxplain.trace(Raises(), floats(2, 8)), "ZeroDivisionError", "own trouble")


def test_input_of_a_wrong_shape() -> None:
    model, _ = encoder()
    raised(InputError, lambda: fxplain.trace(model, {"x": floats(2, 5, 7)}))


def test_input_of_a_wrong_name() -> None:
    model, inputs = encoder()
    raised(InputError, lambda: fxplain.trace(model, {"wrong_name": inputs["x"]}), "wrong_name")


def test_missing_input() -> None:
    model, _, _ = fresh("t5-sdpa")
    raised(InputError, lambda: fxplain.trace(model, {"input_ids": ids()}))


def test_input_that_is_no_tensor() -> None:
    model, _ = encoder()
    raised(InputError, lambda: fxplain.trace(model, {"x": "a text"}), "str")


def test_model_that_is_none() -> None:
    raised(InputError, lambda: fxplain.trace("bert-base-uncased", floats(2, 8)), "str")


def test_name_that_the_traced_model_does_not_take() -> None:
    model, inputs = encoder()
    traced = fxplain.trace(model, inputs)
    raised(InputError, lambda: traced.explain(inputs | {"wrong_name": inputs["x"]}), "wrong_name")


def test_other_dtype_than_traced() -> None:
    model, inputs = encoder()
    traced = fxplain.trace(model, inputs)
    raised(InputError, lambda: traced.explain({"x": inputs["x"].double()}), "float64")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(bad: float) -> None:
    model, inputs = encoder()
    with torch.no_grad():
        model.get_submodule("head").weight[0, 0] = bad
    raised(NonFiniteError, lambda: fxplain.trace(model, inputs), "head.weight")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_became_not_finite_after_tracing(bad: float) -> None:
    model, inputs = encoder()
    traced = fxplain.trace(model, inputs)
    with torch.no_grad():
        model.get_submodule("head").weight[0, 0] = bad
    raised(NonFiniteError, lambda: traced.explain(inputs))


class Divides(Encoder):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        out = super().forward(x)
        return out | {"logits": out["logits"] / (x[:, :1, 0] - x[:, :1, 0])}


def test_output_that_is_not_finite() -> None:
    raised(NonFiniteError, lambda: fxplain.trace(make(Divides), {"x": floats(2, 5, 8)}), "logits")


def test_input_that_is_not_finite() -> None:
    model, inputs = encoder()
    inputs["x"][0, 0, 0] = float("nan")
    with pytest.raises((NonFiniteError, InputError)) as caught:
        fxplain.trace(model, inputs)
    assert "found:" in str(caught.value)


@pytest.mark.parametrize("target", [3, 99, (0, 1), (0, 0, 0), torch.tensor([0, 7]), torch.tensor([0, 1, 2])])
def test_target_out_of_range(target: Any) -> None:
    model, inputs = encoder()
    traced = fxplain.trace(model, inputs)
    raised(TargetError, lambda: traced.explain(inputs, target=target))


def test_target_out_of_range_says_the_range() -> None:
    model, inputs = encoder()
    traced = fxplain.trace(model, inputs)
    raised(TargetError, lambda: traced.explain(inputs, target=12), "12", "2")


@pytest.mark.parametrize("target", ["a class", 1.5, [0, 1, 2, 3], object()])
def test_target_of_a_wrong_type(target: Any) -> None:
    model, inputs = encoder()
    traced = fxplain.trace(model, inputs)
    raised(TargetError, lambda: traced.explain(inputs, target=target))


CALLABLES: dict[str, Callable[[Any], Any]] = {
    "detached": lambda out: out["logits"][:, 0].detach(),
    "integers": lambda out: out["logits"].argmax(-1),
    "no tensor": lambda out: 3.0,
    "one for all": lambda out: out["logits"].sum(),
    "too many": lambda out: out["logits"],
    "raises": lambda out: out["no such output"],
    "not finite": lambda out: out["logits"][:, 0] * float("nan"),
}


@pytest.mark.parametrize("name", CALLABLES)
def test_target_that_is_no_differentiable_score_per_sample(name: str) -> None:
    model, inputs = encoder()
    traced = fxplain.trace(model, inputs)
    kinds: Any = (TargetError, NonFiniteError) if name == "not finite" else TargetError
    raised(kinds, lambda: traced.explain(inputs, target=CALLABLES[name]))


def test_output_of_integers() -> None:
    model, inputs = encoder()
    traced = fxplain.trace(model, inputs)
    raised(TargetError, lambda: traced.explain(inputs, target=0, output="chosen"), "chosen")


def test_output_that_is_not_there() -> None:
    model, inputs = encoder()
    traced = fxplain.trace(model, inputs)
    raised(TargetError, lambda: traced.explain(inputs, output="scores"), "scores", "logits")


def test_score_that_depends_on_no_attention() -> None:
    model, inputs = encoder()
    traced = fxplain.trace(model, inputs)
    raised(TargetError, lambda: traced.explain(inputs, target=0, output="side"), "attention")


def test_unknown_method() -> None:
    model, inputs = encoder()
    traced = fxplain.trace(model, inputs)
    raised(MethodError, lambda: traced.explain(inputs, method="relevance"), "relevance", "relevancy")


def test_unknown_method_is_refused_before_the_work() -> None:
    raised(MethodError, lambda: fxplain.explain(Raises(), floats(2, 8), method="no such"), "no such")


def test_unknown_space() -> None:
    model, inputs = encoder()
    result = fxplain.explain(model, inputs, target=0)
    raised(UnknownNameError, lambda: result.relevance["pixels"], "pixels", "x")
    raised(UnknownNameError, lambda: result.matrix("x", "pixels"), "pixels")


def test_model_on_two_devices() -> None:
    model, inputs = encoder()
    model.get_submodule("head").to("meta")
    raised(DeviceError, lambda: fxplain.trace(model, inputs), "meta")


def test_inputs_on_another_device_than_the_model() -> None:
    model, inputs = encoder()
    with pytest.raises((DeviceError, InputError)) as caught:
        fxplain.trace(model, {"x": inputs["x"].to("meta")})
    assert "meta" in str(caught.value)


def test_model_on_the_meta_device() -> None:
    model, inputs = encoder()
    with pytest.raises((DeviceError, InputError)) as caught:
        fxplain.trace(model.to("meta"), inputs)
    assert "meta" in str(caught.value)


def test_empty_batch() -> None:
    model, _ = encoder()
    with pytest.raises(FxplainError):
        fxplain.explain(model, {"x": floats(0, 5, 8)}, target=0)


def test_every_error_has_a_next_step_where_one_can_be_given() -> None:
    model, inputs = encoder()
    traced = fxplain.trace(model, inputs)
    for call in (
        lambda: traced.explain(inputs, target=12),
        lambda: traced.explain(inputs, method="no such"),
        lambda: traced.explain(inputs, target=0, output="side"),
        lambda: fxplain.explain(make(lambda: nn.Linear(8, 3)), floats(2, 8)),
    ):
        with pytest.raises(FxplainError) as caught:
            call()
        assert "next step:" in str(caught.value), str(caught.value)


class Overflowing(nn.Module):
    """Scores whose exponential is infinite where a mask drops it: finite values, and no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attend = nn.Linear(5, 8), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        large = self.attend(x, x, x)[0].mean(1) + 1000
        return torch.where(large < 0, large.exp(), 0.0)


def test_a_gradient_that_is_not_finite_is_named() -> None:
    torch.manual_seed(0)
    with pytest.raises(
        NonFiniteError, match=r"(?s)gradient.*node exp .*aten\.exp.*module .*test_bad_input\.py:\d+"
    ):
        fxplain.explain(Overflowing().eval(), torch.randn(2, 4, 5), target=1)


class Coded(nn.Module):
    """Attends, and goes on with the nearest entry of a table alone."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.embed, self.attend = nn.Linear(5, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.codes, self.pooled = nn.Embedding(7, 8), pooled

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = self.attend(x, x, x)[0]
        x = self.codes((x @ self.codes.weight.T).max(-1).indices)
        return x.mean(1) if self.pooled else x[:, 0]


def test_a_choice_that_cuts_the_gradient_is_named() -> None:
    torch.manual_seed(0)
    inputs, said = torch.randn(2, 4, 5), r"(?s)no attention.*node max.*aten\.max\.dim.*py:\d+ chooses"
    with pytest.raises(TargetError, match=said):
        fxplain.explain(Coded(pooled=False).eval(), inputs, target=1)
    notes = fxplain.explain(Coded(pooled=True).eval(), inputs, target=1).notes
    assert any(re.search(said, note) for note in notes)
