"""What a user hands over, as the arguments of the model's forward; its tensors by the names a user knows."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxplain.capture.tree import Slot, join, mapped, object_leaves, with_tensors
from fxplain.errors import InputError

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def normalise(inputs: Any) -> Arguments:
    """Positional and keyword arguments for ``model(*args, **kwargs)``.

    A tensor is the one positional argument, a tuple or list holds positional ones, a mapping (dict,
    BatchEncoding) keyword ones. Values may nest; those that are not tensors are handed over as they are.

    Raises:
        InputError: anything else, or a mapping whose keys are not names.

    Example:
        >>> normalise({"input_ids": torch.ones(1, 3)})[1].keys()
        dict_keys(['input_ids'])
    """
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        strange = [key for key in inputs if not isinstance(key, str)]
        if strange:
            raise InputError(
                "the keys of the inputs are not argument names",
                expected="a mapping from the names of forward's arguments",
                found=f"the key {strange[0]!r}",
                hint="to hand over the mapping itself as one argument, wrap it: (mapping,)",
            )
        return (), dict(inputs)
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}
    raise InputError(
        "the inputs are of a type that no model is called with",
        expected="a tensor, a tuple or list of arguments, or a mapping of keyword arguments",
        found=type(inputs).__name__,
        hint="prepare tensors with the model's processor or tokenizer; torch.as_tensor converts arrays",
    )


@dataclass(frozen=True)
class InputTensor:
    """One tensor of the inputs: the name a user knows, its shape, dtype and device at capture."""

    path: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)}"


@dataclass(frozen=True)
class Layout:
    """The structure of one call's arguments with the tensors taken out.

    Two inputs of equal layout differ in the values of their tensors alone.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    tensors: tuple[InputTensor, ...]

    def fill(self, tensors: Sequence[Tensor]) -> Arguments:
        """Arguments with these tensors in their places; mutable containers and objects are fresh copies."""

        def copied(path: str, thing: Any) -> Any:
            if not isinstance(thing, _Opaque):
                return thing
            return with_tensors(thing.value, {key: tensors[i] for key, i in thing.slots})

        def given(path: str, slot: Slot) -> Any:
            tensor = tensors[slot.index]
            return tensor.numpy() if isinstance(slot, _OfArray) else tensor

        both = mapped((self.args, dict(self.kwargs)), given, copied)
        return both[0], both[1]

    @property
    def holds_arrays(self) -> bool:
        """Whether NumPy arrays are among the arguments: only a recording follows them into the model."""
        found: list[bool] = []
        mapped(
            (self.args, dict(self.kwargs)),
            lambda path, slot: found.append(isinstance(slot, _OfArray)),
            lambda path, thing: None,
        )
        return any(found)


@dataclass(frozen=True)
class _OfArray(Slot):
    """Stands for a NumPy array, whose numbers are a tensor's while the model does not run."""


class _Opaque:
    """An object among the inputs (a cache, say), which the model may change, and its tensors' slots."""

    def __init__(self, value: Any, slots: list[tuple[int, int]]) -> None:
        self.value = value
        self.slots = slots

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Opaque) and type(self.value) is type(other.value)

    def __hash__(self) -> int:
        return hash(type(self.value))


def flatten(
    model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], like: Layout | None = None
) -> tuple[list[Tensor], Layout]:
    """The tensors of a call's arguments in order, and the layout that holds them.

    Positional arguments are named as the parameters of ``model.forward``. With ``like``, arguments of the
    same names are brought into its form: which are positional, and the order of the others. A NumPy array
    counts as a tensor; the model is handed an array.
    """
    args, kwargs = _arranged(model, args, kwargs)
    if like is not None:
        args, kwargs = _alike(model, args, kwargs, like)
    found: list[tuple[str, Tensor]] = []

    def take(path: str, tensor: Tensor) -> Slot:
        found.append((path, tensor))
        return Slot(len(found) - 1)

    def other(path: str, thing: Any) -> Any:
        start = len(found)
        array = _of_numpy(thing)
        if array is not None:
            found.append((path, array))
            return _OfArray(start)
        found.extend(object_leaves(thing, path))
        slots = [(id(tensor), start + i) for i, (_, tensor) in enumerate(found[start:])]
        stateful = bool(slots) or (hasattr(thing, "__dict__") and not callable(thing))
        return _Opaque(thing, slots) if stateful else thing

    names = positional_names(model, len(args))
    positional = tuple(mapped(value, take, other, name) for name, value in zip(names, args, strict=True))
    keyword = {name: mapped(value, take, other, name) for name, value in kwargs.items()}
    tensors = tuple(InputTensor(path, tuple(t.shape), t.dtype, t.device) for path, t in found)
    return [tensor for _, tensor in found], Layout(positional, keyword, tensors)


def _of_numpy(thing: Any) -> Tensor | None:
    """The numbers of a NumPy array as a tensor; None for anything else, also for texts and objects."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(thing, numpy.ndarray) or thing.dtype.kind not in "biuf":
        return None
    try:
        return torch.from_numpy(thing.copy())
    except TypeError:  # numbers of a width that tensors lack
        return None


def _arranged(model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """For an exported program: each argument positional or by keyword, just as at its export."""
    info = getattr(getattr(getattr(model, "graph", None), "_codegen", None), "pytree_info", None)
    if info is None or info.in_spec.num_children != 2:
        return args, kwargs
    values = {**dict(zip(info.orig_args, args, strict=False)), **kwargs}
    positional, keyword = info.in_spec.children()
    names = info.orig_args[: positional.num_children]
    if len(args) > len(info.orig_args) or set(values) != {*names, *keyword.context}:
        raise InputError(
            "the inputs are not those that the program was exported with",
            expected=", ".join([*names, *keyword.context]),
            found=", ".join(values) or "no input",
        )
    return tuple(values[name] for name in names), {name: values[name] for name in keyword.context}


def _alike(
    model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], like: Layout
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    values = {**dict(zip(positional_names(model, len(args)), args, strict=True)), **kwargs}
    names = positional_names(model, len(like.args))
    if set(values) != {*names, *like.kwargs} or len(values) != len(args) + len(kwargs):
        return args, kwargs  # check_layout says what differs
    return tuple(values[name] for name in names), {name: values[name] for name in like.kwargs}


def positional_names(model: Any, count: int) -> list[str]:
    """Names of the first ``count`` positional parameters of ``forward``; ``args.0`` for variadic ones."""
    names: list[str] = []
    calls = getattr(model, "module_call_graph", None)  # an exported program keeps the names of its model's
    if calls:
        names = list(getattr(calls[0].signature, "forward_arg_names", None) or ())
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError, AttributeError):  # scripted or built-in: there is no signature to read
        parameters = []
    for parameter in parameters:
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            names.append(parameter.name)
        elif parameter.kind is parameter.VAR_POSITIONAL:
            names += [join(parameter.name, i) for i in range(count - len(names))]
    names += [join("input", i) for i in range(len(names), count)]
    return names[:count]


def signature(model: Any) -> str:
    """``forward(input_ids, attention_mask=None)``: what the model expects, for messages."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError, AttributeError):
        return "forward(...)"
    shown = [str(p.replace(annotation=inspect.Parameter.empty)) for p in parameters]
    return f"forward({', '.join(shown[:12])}{', ...' if len(shown) > 12 else ''})"


def described(layout: Layout) -> str:
    """``input_ids int64[2, 7], attention_mask int64[2, 7]``: what was found, for messages."""
    return ", ".join(f"{tensor.path} {tensor}" for tensor in layout.tensors) or "no tensor"


def check_layout(expected: Layout, found: Layout) -> None:
    """Raise :class:`InputError` at the first difference of ``found`` from the layout of the capture."""
    have = {tensor.path: tensor for tensor in found.tensors}
    for tensor in expected.tensors:
        other = have.pop(tensor.path, None)
        if other is None:
            raise InputError(
                f"the input {tensor.path!r} is missing",
                expected=described(expected),
                found=described(found),
            )
        if (other.shape, other.dtype) != (tensor.shape, tensor.dtype):
            raise InputError(
                f"the input {tensor.path!r} differs from the one the model was traced with",
                expected=str(tensor),
                found=str(other),
                hint="trace the model again for inputs of another shape or dtype",
            )
        if other.device != tensor.device:
            raise InputError(
                f"the input {tensor.path!r} lies on another device than at the trace",
                expected=str(tensor.device),
                found=str(other.device),
            )
    if have:
        raise InputError(
            f"the input {next(iter(have))!r} was not there when the model was traced",
            expected=described(expected),
            found=described(found),
        )
    if not _equal((expected.args, dict(expected.kwargs)), (found.args, dict(found.kwargs))):
        raise InputError(
            "arguments that are not tensors, or the order of the arguments, differ from the trace",
            expected=f"{expected.args} {dict(expected.kwargs)}",
            found=f"{found.args} {dict(found.kwargs)}",
            hint="trace the model again with these arguments",
        )


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # arrays and the like compare to something that is neither true nor false
        return repr(one) == repr(other)
