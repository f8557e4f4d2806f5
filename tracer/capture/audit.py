"""What ``torch.export.load`` would unpickle or evaluate in a ``.pt2`` archive, found before it does.

An archive of plain tensors and ATen operations needs neither, so everything here is refused by default:

* pickled weights, constants and objects, and sample inputs that are more than tensors;
* compiled libraries;
* operations other than ATen's and torch's own control flow (a target names any attribute of torch);
* names, shape expressions and guards that are not what they should be (torch pastes names into code that it
  compiles, and evaluates expressions and guards).

This follows what torch 2.11 to 2.15 do with each part. Whatever a part is not known to be is refused.
"""

from __future__ import annotations

import ast
import io
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from fxplain.errors import LoadError, UnsafeFileError, first_line


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_RECORDS = re.compile(
    r"data/(weights|constants)/(weight_\d+|tensor_\d+|[\w.-]+_config\.json)"
    r"|data/sample_inputs/[\w.-]+\.pt|models/[\w.-]+\.json|extra/.*"
    r"|archive_format|archive_version|byteorder|\.data/(version|serialization_id|alignment)|\.format_version"
)
_NAME = re.compile(r"([A-Za-z_]\w*(\.\w+)*)?")
_PLAIN = re.compile(r"[\w.\-+:/@]*")
_NAMED = {"name", "as_name", "forward_arg_names", "as_names"}
_FREE = {"metadata", "as_string", "as_strings", "torch_version"}
"""Keys whose texts torch keeps as texts."""
_OPERATORS = _words(
    "add and_ eq floordiv ge getitem gt invert le lt mod mul ne neg not_ or_ pos pow sub truediv xor"
)
_CONTROL_FLOW = _words(
    "associative_scan auto_functionalized auto_functionalized_v2 cond flex_attention invoke_subgraph "
    "map_impl scan tag_activation_checkpoint while_loop wrap wrap_with_autocast wrap_with_set_grad_enabled"
)
_NAMESPACES = {"aten", "prims", "torchvision", "quantized", "quantized_decomposed"}
_FUNCTIONS = _words(
    "Abs Add And CeilDiv CeilToInt CleanDiv Eq Equality FloatPow FloatTrueDiv Float FloorDiv FloorToInt Ge "
    "GreaterThan Gt Identity IntTrueDiv Integer LShift Le LessThan Lt Max Min Mod ModularIndexing Mul Ne Not "
    "Or Pow PowByNatural PythonMod RShift Rational RoundDecimal RoundToInt StrictGreaterThan StrictLessThan "
    "Symbol ToFloat TruncToFloat TruncToInt Unequality Where false true"
)
_METHODS = {"size", "dim", "stride", "shape", "dtype", "ndim", "item", "isnan", "storage_offset"}
_NODES = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Call, ast.Name, ast.Constant,
    ast.Subscript, ast.Attribute, ast.keyword, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.Load,
)  # fmt: skip


def audit(path: Path, operations: Collection[str] = ()) -> None:
    """Read the archive as data and raise at the first part that torch would unpickle or evaluate.

    ``operations``: libraries whose operations are known to be harmless too (``torch.ops.NAME``).

    Raises:
        LoadError: the file is no archive, truncated, or no exported program.
        UnsafeFileError: such a part is there.
    """
    reader = _open(path)
    names = _names(path, reader)
    if len(set(names)) != len(names):
        raise _unsafe(path, "an archive with two records of one name")
    strange = next((name for name in names if not _RECORDS.fullmatch(name)), None)
    if strange is not None:
        raise _unsafe(path, f"the record {strange}")
    if not any(name.startswith("models/") for name in names):
        raise _broken(path, "no record under models/")
    for name in names:
        if name.endswith("_config.json"):
            _payload(path, _json(path, reader, name))
        elif name.startswith("models/"):
            _model(path, _json(path, reader, name), operations)
        elif name.startswith("data/sample_inputs/"):
            _samples(path, name, _record(path, reader, name))


def record_of(path: Path, name: str) -> bytes | None:
    """The content of one record of an archive; None where there is none of that name."""
    reader = _open(path)
    return _record(path, reader, name) if name in _names(path, reader) else None


def output_classes(path: Path) -> list[str]:
    """Modules of transformers whose output classes the program returns."""
    reader = _open(path)
    texts = [reader.get_record(name) for name in _names(path, reader) if name.startswith("models/")]
    found = {name for text in texts for name in re.findall(r'"(transformers[\w.]*)\.\w+\\*"', text.decode())}
    return sorted(name for name in found if name.startswith("transformers."))


def _open(path: Path) -> Any:
    try:
        return torch._C.PyTorchFileReader(str(path))
    except RuntimeError as error:
        raise _broken(path, first_line(error).split(". This is")[0]) from error


def _names(path: Path, reader: Any) -> list[str]:
    try:
        return list(reader.get_all_records())
    except RuntimeError as error:  # a name that leaves the archive's own folder
        raise UnsafeFileError(
            "the exported program has records that lead out of the archive, and torch does not read it",
            where=str(path),
            expected="an archive written by torch.export.save",
            found=first_line(error),
        ) from error


def _record(path: Path, reader: Any, name: str) -> bytes:
    try:
        return bytes(reader.get_record(name))
    except RuntimeError as error:
        raise _broken(path, f"{name}: {first_line(error)}") from error


def _json(path: Path, reader: Any, name: str) -> Any:
    try:
        return json.loads(_record(path, reader, name))
    except ValueError as error:
        raise _broken(path, f"{name}: {first_line(error)}") from error


def _payload(path: Path, config: Any) -> None:
    entries = config.get("config", {}) if isinstance(config, dict) else {}
    for name, entry in entries.items():
        if entry.get("use_pickle") or not re.fullmatch(r"(weight|tensor)_\d+", entry.get("path_name", "")):
            raise _unsafe(path, f"the pickled tensor or object {name!r}")


def _samples(path: Path, name: str, data: bytes) -> None:
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:  # torch.export.load would fall back to reading it as a pickle
        raise _unsafe(path, f"{name}, which is more than tensors ({first_line(error)})") from error


def _model(path: Path, program: Any, operations: Collection[str]) -> None:
    for key, text in _texts(program, ""):
        check = _CHECKS.get(key)
        if check is not None:
            problem = None if _is_of(text, operations) else check(text)
        elif key in _NAMED:
            problem = None if _NAME.fullmatch(text) else f"the name {text!r}"
        else:
            problem = None if _PLAIN.fullmatch(text) else f"the text {text!r} under {key!r}"
        if problem:
            raise _unsafe(path, problem)


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Every text of the program with the key it stands under; keys count as texts of their own."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for entry in value:
            yield from _texts(entry, key)
    elif isinstance(value, Mapping):
        for name, entry in value.items():
            yield "", name
            if name not in _FREE or not _only_texts(entry):
                yield from _texts(entry, name)


def _only_texts(value: Any) -> bool:
    """Whether it is what stands under a key of free texts, and not a thing that someone gave such a name."""
    if isinstance(value, Mapping):
        return all(isinstance(entry, str) for entry in value.values()) and not _CHECKS.keys() & value.keys()
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(e, str) for e in value))


def _operation(text: str) -> str | None:
    """A problem unless the text names an ATen operation, torch's control flow, or arithmetic."""
    parts = text.split(".")
    if text.startswith("torch.ops.higher_order.") and len(parts) == 4:
        return None if parts[3] in _CONTROL_FLOW else f"the operation {text}"
    if text.startswith("torch.ops.") and len(parts) in (4, 5) and parts[2] in _NAMESPACES:
        return None if _is_op(parts[2:]) else f"the operation {text}"
    arithmetic = parts[0] == "_operator" and parts[-1] in _OPERATORS
    mathematics = parts[0] == "math" and not parts[-1].startswith("_")
    symbolic = parts[0] == "torch" and re.fullmatch(r"_?sym_\w+", parts[-1]) is not None
    return None if len(parts) == 2 and (arithmetic or mathematics or symbolic) else f"the operation {text}"


def _is_of(text: str, libraries: Collection[str]) -> bool:
    parts = text.split(".")
    return text.startswith("torch.ops.") and parts[2] in libraries and _is_op(parts[2:])


def _is_op(parts: list[str]) -> bool:
    found: Any = torch.ops
    for part in parts:
        found = getattr(found, part, None)
    if isinstance(found, torch._ops.OpOverloadPacket):
        return not any("file" in str(schema) for schema in found._schemas.values())
    return isinstance(found, torch._ops.OpOverload) and "filename" not in str(found._schema)


def _expression(text: str) -> str | None:
    """A problem unless the text is arithmetic on symbols, as sympy prints it, or a guard on sizes."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return f"the expression {text!r}"
    return None if all(_harmless(node) for node in ast.walk(tree)) else f"the expression {text!r}"


def _harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Attribute) or (
            isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS | {"not", "len"}
        )
    if isinstance(node, ast.Attribute):
        return node.attr in _METHODS
    if isinstance(node, ast.Constant):
        return not isinstance(node.value, (str, bytes)) or _PLAIN.fullmatch(str(node.value)) is not None
    if isinstance(node, ast.Name):
        return not node.id.startswith("__")
    return isinstance(node, _NODES)


def _structure(text: str) -> str | None:
    """A problem if building inputs or outputs of this structure would import something or paste odd names."""
    try:
        tree = json.loads(text)
    except ValueError:
        return f"the structure {text!r}"
    for key, entry in _texts(tree, ""):
        if key == "context":
            inner = _structure(entry) if entry[:1] in '[{"' else None
            if inner or "__enum__" in entry or not (entry[:1] in '[{"' or _PLAIN.fullmatch(entry)):
                return inner or f"the structure {text!r}"
        elif entry in ("collections.defaultdict", "__enum__") or not _PLAIN.fullmatch(entry):
            return f"the structure {text!r}"
    return None


_CHECKS: Mapping[str, Callable[[str], str | None]] = {
    "target": _operation,
    "as_operator": _operation,
    "expr_str": _expression,
    "guards_code": _expression,
    "in_spec": _structure,
    "out_spec": _structure,
}


def _unsafe(path: Path, found: str) -> UnsafeFileError:
    return UnsafeFileError(
        "reading the exported program could run code",
        where=str(path),
        expected="tensors, ATen operations and plain names",
        found=found,
        hint="if you trust the file, add --allow-pickle",
    )


def _broken(path: Path, found: str) -> LoadError:
    return LoadError(
        "the file is no exported program, or it is truncated",
        where=str(path),
        expected="an archive written by torch.export.save of torch 2.8 or later",
        found=found,
    )
