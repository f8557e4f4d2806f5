"""Models of any factory with fewer layers: the arguments of the constructor are changed on the way."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

DEPTH = re.compile(r"(^|_)(depths?|layers|stages|num_blocks|num_layers|d)$")
SIDE = re.compile(r"^(img|image|spatial|input)_size$")
WINDOW = re.compile(r"^(partition|window)_size$")
FRAMES = re.compile(r"^temporal_size$")
CLASSES = 10
HEADS, WIDEST = 4, 384
"""Wider models of one width get so many heads."""


class _EmptyWithoutData(TorchFunctionMode):
    """Uninitialised tensors, as weights are at first, have no data; all others do."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        device = {"device": "meta"} if func is torch.empty else {}
        return func(*args, **{**(kwargs or {}), **device})


Factory = Callable[[], nn.Module]
Arguments = dict[str, Any]


def kind_of(factory: Factory) -> type[nn.Module]:
    """The class of what a factory makes, without weights if that can be."""
    try:
        with torch.device("meta"):
            return type(factory())
    except (NotImplementedError, RuntimeError):  # sizes are worked out with tensors
        with _EmptyWithoutData():
            return type(factory())


def remade(factory: Factory, kind: type[nn.Module], change: Callable[[Arguments], Arguments]) -> nn.Module:
    """What the factory makes when the outermost constructor of ``kind`` gets changed arguments."""
    original = kind.__init__
    signature = inspect.signature(original)
    calls = 0

    @wraps(original)
    def changed(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 1 or type(self) is not kind:
            return original(self, *args, **kwargs)
        given = dict(signature.bind(self, *args, **kwargs).arguments)
        given.pop("self", None)
        given |= given.pop("kwargs", {})
        return original(self, **change(given))

    kind.__init__ = changed  # type: ignore[method-assign]
    try:
        return factory()
    finally:
        kind.__init__ = original  # type: ignore[method-assign]


def parameters(kind: type[nn.Module]) -> Arguments:
    """The names of all that a constructor takes, also through ``**kwargs`` to the one above, with what they
    are by default."""
    names: Arguments = {}
    for each in kind.__mro__:
        if "__init__" in vars(each):
            found = inspect.signature(vars(each)["__init__"]).parameters
            names = {name: p.default for name, p in found.items()} | names
            if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in found.values()):
                break
    return names


def smaller(
    kind: type[nn.Module],
    given: Arguments,
    side: int,
    most: int | None = 2,
    frames: int | None = None,
    window: int | None = None,
) -> Arguments:
    """Arguments for pictures of this side, few classes, and at most so many layers in each stage."""
    known = parameters(kind)
    changed = dict(given)
    if most is not None:
        deep = {name: v for name, v in known.items() if DEPTH.search(name) and type(v) in (int, tuple, list)}
        changed = {name: shallow(v, name, most) for name, v in {**deep, **given}.items()}
        changed |= _fewer({**deep, **given}, changed)
        changed |= _narrow({**known, **changed})
    for name in known:
        if SIDE.match(name):
            changed[name] = (side, side) if type(given.get(name)) is tuple else side
        elif WINDOW.match(name) and window is not None and type(given.get(name)) is int:
            changed[name] = window
        elif FRAMES.match(name) and frames is not None:
            changed[name] = frames
        elif name == "num_classes" and given.get(name) != 0:
            changed[name] = CLASSES
    return changed


def _narrow(given: Arguments) -> dict[str, Any]:
    """A few heads of the same width instead of many, where one width goes through the whole model."""
    many, width = given.get("num_heads"), given.get("embed_dim")
    if type(many) is not int or type(width) is not int or many <= HEADS or width % many or width <= WIDEST:
        return {}
    found = {"num_heads": HEADS, "embed_dim": width // many * HEADS}
    shared = given.get("num_kv_heads")
    if type(shared) is int:
        found["num_kv_heads"] = max(shared * HEADS // many, 1)
    elif type(shared) in (tuple, list):
        found["num_kv_heads"] = type(shared)(max(each * HEADS // many, 1) for each in shared)  # type: ignore[misc]
    return found


def _fewer(given: Arguments, changed: Arguments) -> Arguments:
    """Sequences with one entry for each layer, where there are fewer layers: entries from all over."""
    found = {}
    for name, deep in given.items():
        less = changed[name]
        if DEPTH.search(name) and type(deep) is int and less < deep:
            places = [round(n * (deep - 1) / max(less - 1, 1)) for n in range(less)]
            for other, value in given.items():
                if type(value) in (tuple, list) and len(value) == deep:
                    found[other] = type(value)(value[place] for place in places)
    return found


def shallow(value: Any, name: str, most: int) -> Any:
    """An argument with what counts layers, by its name, cut to ``most`` in each stage, and to one more where
    there are no stages; also inside of configurations."""
    if DEPTH.search(name) and type(value) is int:
        return min(value, most + 1)
    if type(value) in (tuple, list):
        counts = DEPTH.search(name)
        return type(value)(min(v, most) if counts and type(v) is int else shallow(v, "", most) for v in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        return dataclasses.replace(value, **{f: shallow(getattr(value, f), f, most) for f in fields})
    if not isinstance(value, (nn.Module, type)) and any(
        DEPTH.search(n) for n in getattr(value, "__dict__", {})
    ):
        value = copy.copy(value)
        vars(value).update({n: shallow(v, n, most) for n, v in vars(value).items()})
    return value
