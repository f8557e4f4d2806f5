"""Tensors inside nested Python values: found with their paths, and replaced without touching the original."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

Visit = Callable[[str, Any], Any]
_ATOMS = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, torch.Size)


@dataclasses.dataclass(frozen=True)
class Slot:
    """Stands for the tensor number ``index`` in a value whose tensors were taken out."""

    index: int


def join(path: str, key: object) -> str:
    """``"images"`` and ``0`` give ``"images.0"``; at the root the key alone."""
    return f"{path}.{key}" if path else str(key)


def mapped(value: Any, leaf: Visit, other: Visit, path: str = "") -> Any:
    """A copy of ``value`` with every tensor (or :class:`Slot`) passed through ``leaf(path, tensor)``.

    Walks tuples, named tuples, lists, mappings and dataclasses. Numbers, strings and the like stay; any
    other object becomes ``other(path, object)``.

    Example:
        >>> mapped({"a": [torch.ones(2), 3]}, lambda path, tensor: path, lambda path, thing: None)
        {'a': ['a.0', 3]}
    """
    if isinstance(value, (Tensor, Slot)):
        return leaf(path, value)
    if isinstance(value, _ATOMS):
        return value
    if isinstance(value, Mapping):
        return _mapping(value, {k: mapped(v, leaf, other, join(path, k)) for k, v in value.items()})
    if isinstance(value, (list, tuple)):
        names = getattr(value, "_fields", range(len(value)))
        items = [mapped(v, leaf, other, join(path, k)) for k, v in zip(names, value, strict=True)]
        if hasattr(value, "_fields"):
            return type(value)(*items)
        return tuple(items) if isinstance(value, tuple) else items
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _dataclass(value, leaf, other, path)
    return other(path, value)


def _mapping(value: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """``items`` in a mapping of the type of ``value``; a plain dict where that type cannot be filled."""
    if type(value) is dict:
        return items
    try:
        new: Any = copy.copy(value)
        for key, item in items.items():
            new[key] = item
    except Exception:  # an immutable or unusual mapping; its entries are what matters
        return items
    return new


def _dataclass(value: Any, leaf: Visit, other: Visit, path: str) -> Any:
    new = copy.copy(value)
    for field in dataclasses.fields(value):
        if hasattr(value, field.name):
            item = mapped(getattr(value, field.name), leaf, other, join(path, field.name))
            object.__setattr__(new, field.name, item)  # the dataclass may be frozen
    return new


def object_leaves(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors in the attributes of an arbitrary object (a cache, say), depth first, each object once."""
    seen: set[int] = set()

    def walk(thing: Any, path: str) -> Iterator[tuple[str, Tensor]]:
        if isinstance(thing, Tensor):
            yield path, thing
            return
        if isinstance(thing, (*_ATOMS, type, torch.nn.Module)) or id(thing) in seen:
            return
        seen.add(id(thing))
        if isinstance(thing, Mapping):
            parts = list(thing.items())
        elif isinstance(thing, (list, tuple)):
            parts = list(enumerate(thing))
        else:
            parts = list(getattr(thing, "__dict__", {}).items())
        for key, part in parts:
            yield from walk(part, join(path, key))

    yield from walk(value, path)


def with_tensors(value: Any, new: Mapping[int, Tensor]) -> Any:
    """A deep copy of an arbitrary object in which the tensor with id ``i`` is ``new[i]``."""
    return copy.deepcopy(value, dict(new))
