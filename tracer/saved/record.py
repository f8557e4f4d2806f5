"""Outputs of a model whose class is another library's, without that library."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


class Record(dict[str, Any]):
    """Entries by name, as an attribute, and by place, as the outputs of most libraries have them.

    Example:
        >>> output = Record(loss=None, logits=3)
        >>> output.logits, output["logits"], output[0]
        (3, 3, 3)
    """

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"the output has no {name!r}; it has {', '.join(self)}")

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, (int, slice)):  # places count what is there
            return tuple(value for value in self.values() if value is not None)[key]
        return super().__getitem__(key)


def as_record(value: Any) -> dict[str, Any] | None:
    """The entries of a mapping, named tuple or dataclass by name; None for anything else."""
    if isinstance(value, Mapping):
        entries = dict(value.items())
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        entries = dict(zip(value._fields, value, strict=True))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        entries = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    else:
        return None
    return entries if all(isinstance(key, str) for key in entries) else None
