"""``FILE.pt2``: a program saved by ``torch.export.save``, checked before torch reads it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from fxplain.adapters.generic import loaded_from
from fxplain.adapters.loaded import Loaded, LoadOptions
from fxplain.capture.audit import audit, output_classes, record_of
from fxplain.capture.captured import Captured
from fxplain.capture.guard import quiet
from fxplain.capture.inputs import positional_names
from fxplain.errors import LoadError, first_line
from fxplain.saved.files import FOUND
from fxplain.traced import load as load_traced


def load(text: str, options: LoadOptions) -> Loaded:
    """Read an exported program; its example inputs serve where a person gives none. One that fxplain has
    saved is traced already.

    ``torch.export.load`` unpickles and evaluates parts of some archives. Unless pickles are allowed the
    archive is first searched for such parts, and refused if one is found.

    Raises:
        LoadError: no such file, truncated, or not written by torch.export.save.
        UnsafeFileError: reading it would unpickle or evaluate something.
    """
    path = Path(text).expanduser()
    if not path.is_file():
        raise LoadError("there is no such exported program", where=str(path))
    if not options.allow_pickle:
        audit(path)
    if record_of(path, f"extra/{FOUND}") is not None:
        captured = load_traced(path).captured
        return loaded_from(captured.model, path.stem, _inputs(captured))
    program = _read(path)
    return loaded_from(program, path.stem, _example(program))


def _read(path: Path) -> Any:
    try:
        for name in output_classes(path):  # importing the module registers how its outputs are put together
            importlib.import_module(name)
        with quiet():
            return torch.export.load(str(path))
    except Exception as error:  # torch raises whatever the broken part of the archive makes it raise
        raise LoadError(
            "the exported program cannot be read",
            where=str(path),
            expected=f"a file saved by torch.export.save of torch {torch.__version__} or near",
            found=first_line(error),
            hint="export and save it again with the torch that is installed here",
        ) from error


def _example(program: Any) -> Any:
    """The inputs the program was exported with, in a form that fxplain.trace takes; None if not stored."""
    stored = program.example_inputs
    if not isinstance(stored, tuple) or len(stored) != 2:
        return None
    args, kwargs = stored
    return tuple(args) if not kwargs else dict(kwargs) if not args else _named(program, args, kwargs)


def _inputs(captured: Captured) -> Any:
    """The inputs that a traced model was traced with."""
    args, kwargs = captured.layout.fill(captured.example)
    if not args or not kwargs:
        return args or kwargs
    return {**dict(zip(positional_names(captured.model, len(args)), args, strict=True)), **kwargs}


def _named(program: Any, args: Any, kwargs: Any) -> Any:
    """Positional and keyword inputs together have one form only: all by name."""
    signature = program.module_call_graph[0].signature
    names = list(getattr(signature, "forward_arg_names", None) or ())
    if len(names) < len(args):
        return None
    return {**dict(zip(names, args, strict=False)), **kwargs}
