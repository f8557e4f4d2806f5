"""Records as JSON and back: only classes of a fixed list, tensors as bytes, nodes of a graph by name.

Nothing here runs code: what is read becomes numbers, texts, tensors and records of the classes below.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, fx

from fxplain import tasks
from fxplain.capture import inputs, tree
from fxplain.labels import axes, batch_axis, elements, findings, flows, labels, notebook, tokens
from fxplain.labels import value as values
from fxplain.saved.older import OLDER
from fxplain.saved.record import Record, as_record

CLASSES: Mapping[str, type] = {
    f"{home}.{name}": getattr(module, name)
    for home, module, names in (
        ("find", findings, ("Findings",)),
        ("batch", batch_axis, ("Guess",)),
        ("ledger", notebook, ("Ledger", "Remarks")),
        ("ledger", tokens, ("Tokens",)),
        ("sites", flows, ("Born",)),
        ("axes", axes, ("Axes",)),
        ("flows", flows, ("Site", "Copied", "EdgeList", "Elementwise", "Gathered", "Kernel", "Matrix")),
        ("flows", flows, ("Operator", "Sampled", "Sum", "Window", "WrittenOut")),
        ("elements", elements, ("Elements", "Root")),
        ("labels", labels, ("Slot",)),
        ("labels", values, ("Coarser", "GaveWay", "Hidden", "Single", "Spectrum", "Value")),
        ("inputs", inputs, ("InputTensor", "Layout")),
        ("tree", tree, ("Slot",)),
        ("tasks", tasks, ("Task",)),
    )
    for name in names
}
"""All that a file may hold, by names that stay when the project's files move; two are called Slot."""
_NAMES = {kind: name for name, kind in CLASSES.items()}

WHILE_LABELLING = {
    "ledger.Ledger": {"taken"},
    "ledger.Remarks": {"looked"},
    "ledger.Tokens": {"_of_elements", "_at_places"},
    "labels.Value": {"unsummed"},
}
"""Fields that nobody reads once a graph is labelled: they are left out."""

_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_CONTAINERS: Mapping[str, Callable[[Any], Any]] = {"tuple": tuple, "list": list, "set": frozenset}


def encode(value: Any) -> dict[str, Any]:
    """A value of plain containers, numbers, texts, tensors, nodes and records, as JSON knows it.

    Raises:
        TypeError: it holds something else.

    Example:
        >>> decode(encode({"a": (1, torch.ones(2))}), {})
        {'a': (1, tensor([1., 1.]))}
    """
    writer = _Writer()
    return {"value": writer.write(value), "records": writer.records, "tensors": writer.tensors}


def decode(content: Mapping[str, Any], nodes: Mapping[str, fx.Node]) -> Any:
    """What :func:`encode` was given, its nodes those of these names.

    Raises:
        Exception: of many kinds, where the content is not what :func:`encode` gives.
    """
    reader = _Reader(nodes)
    reader.tensors = [_tensor(entry) for entry in content["tensors"]]
    for entry in content["records"]:  # each holds only earlier ones
        reader.records.append(reader.record(entry))
    return reader.read(content["value"])


class _Writer:
    def __init__(self) -> None:
        self.records: list[Any] = []
        self.tensors: list[Any] = []
        self._known: dict[int, tuple[int, Any]] = {}
        self._same: dict[tuple[Any, ...], int] = {}

    def write(self, value: Any) -> Any:
        if value is None or isinstance(value, (str, bool, int)):
            return value
        if isinstance(value, float):
            return {"float": value.hex()}
        if isinstance(value, Tensor):
            return {"tensor": self._tensor(value)}
        if isinstance(value, fx.Node):
            return {"node": value.name}
        if isinstance(value, (torch.dtype, torch.device)):
            return {"dtype" if isinstance(value, torch.dtype) else "device": str(value)}
        if type(value) in _NAMES:
            return {"record": self._record(value)}
        if isinstance(value, Mapping) and type(value) is dict:
            return {"dict": [[self.write(key), self.write(entry)] for key, entry in value.items()]}
        for name, kind in (("tuple", (tuple, torch.Size)), ("list", list), ("set", (frozenset, set))):
            if type(value) in (kind if isinstance(kind, tuple) else (kind,)):
                return {name: [self.write(entry) for entry in value]}
        if (entries := as_record(value)) is not None:
            return {"fields": [[key, self.write(entry)] for key, entry in entries.items()]}
        raise TypeError(f"a value of type {type(value).__name__}")

    def _record(self, value: Any) -> int:
        if id(value) not in self._known:
            name = _NAMES[type(value)]
            left_out = WHILE_LABELLING.get(name, set())
            content = {
                field.name: self.write(getattr(value, field.name))
                for field in fields(value)
                if field.name not in left_out
            }
            self.records.append({"of": name, "with": content})
            self._known[id(value)] = len(self.records) - 1, value
        return self._known[id(value)][0]

    def _tensor(self, tensor: Tensor) -> int:
        tensor = tensor.detach()
        for axis, size in enumerate(tensor.shape):
            if size > 1 and tensor.stride(axis) == 0:
                tensor = tensor.narrow(axis, 0, 1)
        flat = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.reshape(-1))
        data = flat.view(torch.uint8).numpy().tobytes() if len(flat) else b""
        shape = tuple(tensor.shape)
        key = (str(tensor.dtype), shape, data)
        if key not in self._same:
            packed = base64.b64encode(zlib.compress(data, 1)).decode("ascii")
            self.tensors.append({"dtype": str(tensor.dtype), "shape": list(shape), "data": packed})
            self._same[key] = len(self.tensors) - 1
        return self._same[key]


class _Reader:
    def __init__(self, nodes: Mapping[str, fx.Node]) -> None:
        self.nodes = nodes
        self.records: list[Any] = []
        self.tensors: list[Tensor] = []

    def read(self, value: Any) -> Any:
        if value is None or isinstance(value, (str, bool, int)):
            return value
        ((kind, content),) = value.items()
        if kind in _CONTAINERS:
            return _CONTAINERS[kind](self.read(entry) for entry in content)
        if kind in ("dict", "fields"):
            pairs = {self.read(key): self.read(entry) for key, entry in content}
            return pairs if kind == "dict" else Record(pairs)
        plain: Mapping[str, Callable[[Any], Any]] = {
            "float": float.fromhex,
            "tensor": self.tensors.__getitem__,
            "node": self.nodes.__getitem__,
            "record": self.records.__getitem__,
            "dtype": _DTYPES.__getitem__,
            "device": torch.device,
        }
        return plain[kind](content)

    def record(self, entry: Mapping[str, Any]) -> Any:
        name, kind = entry["of"], CLASSES.get(entry["of"])
        own = {key: self.read(value) for key, value in entry["with"].items()}
        known = {field.name for field in fields(kind)} if kind is not None else set()
        if kind is not None and set(own) == known - WHILE_LABELLING.get(name, set()):
            return kind(**own)
        if name not in OLDER:
            raise ValueError(f"a {name} of another version of fxplain")
        return OLDER[name](own)


def _tensor(entry: Mapping[str, Any]) -> Tensor:
    dtype, shape = _DTYPES[entry["dtype"]], torch.Size(entry["shape"])
    size = shape.numel() * dtype.itemsize
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(base64.b64decode(entry["data"], validate=True), size + 1)
    if len(data) != size:
        raise ValueError("a tensor of another size than it says")
    if not size:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).view(shape)
