"""``FILE.pt`` and its like: a whole pickled module, which can run code and is refused by default."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from fxplain.adapters.generic import loaded_from
from fxplain.adapters.loaded import Loaded, LoadOptions
from fxplain.errors import LoadError, UnsafeFileError, first_line


def load(text: str, options: LoadOptions) -> Loaded:
    """Unpickle a module, or a pair (module, inputs), if that was allowed.

    Raises:
        LoadError: no such file, unreadable, or it holds no module (weights alone, for instance).
        UnsafeFileError: it was not allowed.
    """
    path = Path(text).expanduser()
    if not path.is_file():
        raise LoadError("there is no such file", where=str(path))
    made = _read(path, options.allow_pickle)
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, torch.nn.Module):
        raise LoadError(
            "the file holds no model",
            where=str(path),
            expected="a whole module; weights alone do not say the architecture",
            found=type(made).__name__,
            hint="write a factory that builds the model and loads these weights: FILE.py:FACTORY",
        )
    return loaded_from(model, path.stem, inputs)


def _read(path: Path, allowed: bool) -> Any:
    try:
        with (
            warnings.catch_warnings()
        ):  # torch warns of pickles that it did not write; the error will say more
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=not allowed)
    except pickle.UnpicklingError as error:
        if allowed:
            raise _unreadable(path, error) from error
        raise UnsafeFileError(
            "the file is a pickle, which can run code when it is read",
            where=str(path),
            expected="safetensors in a folder with config.json, a .pt2 program, or FILE.py:FACTORY",
            found=first_line(error),
            hint="if you trust the file, add --allow-pickle",
        ) from error
    except Exception as error:  # an allowed pickle may raise anything
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> LoadError:
    return LoadError(
        "the file cannot be read; it may be truncated, or hold something else",
        where=str(path),
        expected="a module saved by torch.save",
        found=first_line(error),
    )
