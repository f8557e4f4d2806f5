"""Tensors from files that hold nothing but tensors, and tensors by the names of a forward's arguments."""

from __future__ import annotations

import inspect
import itertools
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxplain.errors import InputError, UnsafeFileError

MAIN_INPUTS = frozenset(
    {"input_ids", "pixel_values", "input_features", "input_values", "pixel_values_videos"}
)
"""What processors call texts, pictures, sounds and videos."""


def read_tensors(path: Path) -> Any:
    """The tensors of a file: a tensor, a tuple or list, or a dict, just as the model is called.

    ``.pt`` and ``.pth`` are read with ``weights_only=True``, ``.npz`` and ``.npy`` without pickles.

    Raises:
        InputError: no such file, another suffix, truncated, or something in it is no tensor.
        UnsafeFileError: the file is a pickle of more than tensors.
    """
    if not path.is_file():
        raise InputError("there is no such file of tensors", where=str(path))
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            "the file has a suffix that no reader of tensors knows",
            where=str(path),
            expected=", ".join(_READERS),
            found=path.suffix or "no suffix",
        )
    found = reader(path)
    _check_leaves(found, path, "")
    return found


def _read_torch(path: Path) -> Any:
    try:
        with (
            warnings.catch_warnings()
        ):  # torch warns of pickles that it did not write; the error will say more
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not _is_pickle(path):
            raise _unreadable(path, "a file saved by torch.save", error) from error
        raise UnsafeFileError(
            "the file holds more than tensors, and reading it would run code",
            where=str(path),
            expected="tensors, in tuples, lists or dicts",
            found=_last_line(error),
            hint="save the tensors alone: torch.save({'input_ids': ids}, 'inputs.pt')",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise _unreadable(path, "a file saved by torch.save", error) from error


def _read_numpy(path: Path) -> Any:
    import numpy as np

    try:
        with path.open("rb") as file:
            read = np.load(file, allow_pickle=False)
            if not isinstance(read, np.lib.npyio.NpzFile):
                return torch.from_numpy(read)
            with read:
                arrays = {name: torch.from_numpy(read[name]) for name in read.files}
    except (ValueError, OSError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise _unreadable(path, "numpy arrays of numbers", error) from error
    return arrays["arr_0"] if list(arrays) == ["arr_0"] else arrays


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, "a safetensors file", error) from error


_READERS: Mapping[str, Callable[[Path], Any]] = {
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".npz": _read_numpy,
    ".npy": _read_numpy,
    ".safetensors": _read_safetensors,
}


def _is_pickle(path: Path) -> bool:
    """Whether the bytes start like what torch.save or pickle writes: a zip archive or a pickle."""
    with path.open("rb") as file:
        start = file.read(2)
    return start in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def _unreadable(path: Path, expected: str, error: Exception) -> InputError:
    return InputError(
        "the file cannot be read; it may be truncated, or hold something else",
        where=str(path),
        expected=expected,
        found=_last_line(error),
    )


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _check_leaves(value: Any, path: Path, name: str) -> None:
    if isinstance(value, (Tensor, bool, int, float)) or value is None:
        return
    if isinstance(value, Mapping):
        items: list[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, (list, tuple)):
        items = list(enumerate(value))
    else:
        raise InputError(
            "the file of inputs holds something that is no tensor",
            where=f"{path}, {name or 'the whole of it'}",
            expected="tensors and numbers, in tuples, lists or dicts",
            found=type(value).__name__,
        )
    for key, entry in items:
        _check_leaves(entry, path, f"{name}.{key}" if name else str(key))


def tensor_items(model: Any, inputs: Any) -> Iterator[tuple[str, Tensor]]:
    """Top-level tensors of inputs by the name a user knows; positional ones by forward's parameter names."""
    from fxplain.capture.inputs import normalise, positional_names

    args, kwargs = normalise(inputs)
    positional = zip(positional_names(model, len(args)), args, strict=True)
    for name, value in itertools.chain(positional, kwargs.items()):
        if isinstance(value, Tensor):
            yield name, value


def on_device_of(model: Any, inputs: Any) -> Any:
    """The same inputs with every tensor on the device of the model's first parameter or buffer."""
    device = device_of(model)
    return mapped_tensors(inputs, lambda tensor: tensor.to(device)) if device is not None else inputs


def device_of(model: Any) -> torch.device | None:
    """Device of the first parameter or buffer; None for a model without either."""
    if not isinstance(model, torch.nn.Module):  # an exported program: its state dict tells
        state = getattr(model, "state_dict", None)
        values = state.values() if isinstance(state, Mapping) else ()
        return next((tensor.device for tensor in values), None)
    return next((tensor.device for tensor in itertools.chain(model.parameters(), model.buffers())), None)


def mapped_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy of nested tuples, lists and mappings with ``change`` applied to each tensor."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: mapped_tensors(entry, change) for key, entry in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(mapped_tensors(entry, change) for entry in value)
    return value


def accepted(model: Any) -> frozenset[str]:
    """Names of forward's own parameters, without ``**kwargs``."""
    parameters = inspect.signature(model.forward).parameters.values()
    return frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))


def argument(model: Any, name: str) -> str:
    """What a model's forward calls the input of this name: the same, else the first one of a model that has
    names of its own."""
    from fxplain.capture.inputs import positional_names

    names = accepted(model)
    if name in names or names & MAIN_INPUTS:
        return name
    return positional_names(model, 1)[0]


def takes_no(what: str, model: Any, flag: str) -> InputError:
    return InputError(
        f"the model takes no {what}",
        expected=", ".join(sorted(accepted(model) & MAIN_INPUTS)) or "other inputs",
        found=flag,
    )
