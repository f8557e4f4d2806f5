"""Inputs in every form a model is called with, and outputs in every form it returns."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxplain.capture import inputs, outputs
from fxplain.capture.inputs import check_layout, normalise
from fxplain.errors import InputError

Pair = namedtuple("Pair", ["left", "right"])
ONE, TWO = torch.ones(1), torch.full((2,), 2.0)


class Net(nn.Module):
    def forward(self, first: Any, second: Any = None, *rest: Any, flag: bool = False, **more: Any) -> Any:
        return first


@dataclass(frozen=True)
class Frozen:
    value: Any
    count: int = 3


class Cache:
    def __init__(self, *tensors: Tensor) -> None:
        self.layers = [{"key": tensor} for tensor in tensors]
        self.me = self  # caches refer to themselves and each other


def test_normalise() -> None:
    assert normalise(ONE) == ((ONE,), {})
    assert normalise((ONE, 3)) == ((ONE, 3), {})
    assert normalise([ONE, None]) == ((ONE, None), {})
    assert normalise(UserDict({"a": ONE, "flag": True})) == ((), {"a": ONE, "flag": True})


@pytest.mark.parametrize("wrong", ["text", 3, None, {1: ONE}, object()])
def test_normalise_refuses(wrong: Any) -> None:
    with pytest.raises(InputError, match="expected"):
        normalise(wrong)


def paths(*args: Any, **kwargs: Any) -> list[str]:
    return [tensor.path for tensor in inputs.flatten(Net(), args, kwargs)[1].tensors]


def test_names_as_the_user_knows_them() -> None:
    assert paths(ONE, TWO) == ["first", "second"]
    assert paths(ONE, TWO, ONE, other=[ONE, {"deep": ONE}]) == [
        "first",
        "second",
        "rest.0",
        "other.0",
        "other.1.deep",
    ]
    assert paths(Pair(ONE, TWO), Frozen(ONE)) == ["first.left", "first.right", "second.value"]
    assert paths(Cache(ONE, TWO)) == ["first.layers.0.key", "first.layers.1.key"]
    assert [t.path for t in inputs.flatten(len, (ONE,), {})[1].tensors] == ["input.0"]


def test_fill_puts_other_tensors_in_the_same_places() -> None:
    cache = Cache(ONE)
    args = (Pair(ONE, "text"), [TWO, 3], OrderedDict(a=ONE))
    tensors, layout = inputs.flatten(Net(), args, {"past": cache, "maker": Frozen(TWO)})
    new = [torch.full_like(tensor, 7.0) for tensor in tensors]
    (pair, items, mapping), kwargs = layout.fill(new)
    assert isinstance(pair, Pair)
    assert pair.right == "text"
    assert items[0] is new[1]
    assert isinstance(mapping, OrderedDict)
    assert kwargs["past"] is not cache
    assert kwargs["past"].layers[0]["key"] is new[3]
    assert kwargs["past"].me is kwargs["past"]
    assert kwargs["maker"].value is new[4]
    assert cache.layers[0]["key"] is ONE


def layout(*args: Any, like: Any = None, **kwargs: Any) -> inputs.Layout:
    return inputs.flatten(Net(), args, kwargs, like)[1]


def test_order_and_form_of_equal_arguments_do_not_matter() -> None:
    traced = layout(ONE, second=TWO, flag=True)
    for other in (
        layout(flag=True, second=TWO, first=ONE, like=traced),
        layout(ONE, TWO, flag=True, like=traced),
    ):
        check_layout(traced, other)
    tensors, _ = inputs.flatten(Net(), (), {"second": TWO, "first": ONE, "flag": True}, traced)
    assert tensors == [ONE, TWO]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (layout(ONE), "'second' is missing"),
        (layout(ONE, TWO, third=ONE), "'third' was not there"),
        (layout(TWO, TWO), r"(?s)'first' differs.*float32\[1\].*float32\[2\]"),
        (layout(ONE.long(), TWO), r"(?s)'first' differs.*float32\[1\].*int64\[1\]"),
        (layout(ONE, TWO, flag=True), "not tensors"),
        (layout(ONE, TWO, thing=torch.float32), "not tensors"),
        (layout(ONE, TWO.to("meta")), "another device"),
    ],
)
def test_what_differs_is_named(other: inputs.Layout, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_layout(layout(ONE, TWO), other)


def test_signature_for_messages() -> None:
    assert inputs.signature(Net()) == "forward(first, second=None, *rest, flag=False, **more)"
    assert inputs.signature(object()) == "forward(...)"


OUTPUTS: dict[str, tuple[Any, list[str]]] = {
    "tensor": (ONE, ["output"]),
    "tuple": ((ONE, (TWO, None)), ["0", "1.0"]),
    "named": (Pair(ONE, TWO), ["left", "right"]),
    "dataclass": (Frozen({"a": ONE}), ["value.a"]),
    "mapping": (MappingProxyType({"logits": ONE, "loss": 3.0}), ["logits"]),
    "cache": ({"logits": ONE, "cache": Cache(TWO)}, ["logits"]),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_flatten_and_rebuild(name: str) -> None:
    output, names = OUTPUTS[name]
    flat = outputs.flatten(output)
    assert [path for path, _ in flat] == names
    rebuilt = outputs.rebuild(outputs.skeleton(output), [tensor for _, tensor in flat])
    again = outputs.flatten(rebuilt)
    assert [path for path, _ in again] == names
    assert all(a is b for (_, a), (_, b) in zip(flat, again, strict=True))
    if name == "cache":
        assert rebuilt["cache"] is None


def test_model_output_of_transformers() -> None:
    modeling = pytest.importorskip("transformers.modeling_outputs")
    output = modeling.CausalLMOutputWithPast(logits=ONE, past_key_values=Cache(ONE), hidden_states=(ONE, TWO))
    assert [name for name, _ in outputs.flatten(output)] == ["logits", "hidden_states.0", "hidden_states.1"]
    rebuilt = outputs.rebuild(outputs.skeleton(output), [TWO, ONE, ONE])
    assert type(rebuilt) is type(output)
    assert rebuilt.logits is TWO
    assert rebuilt.past_key_values is None
