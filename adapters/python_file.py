"""``path/to/file.py:factory``: a model made by the user's own code, which runs because they asked for it."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from fxplain.adapters.generic import loaded_from, own
from fxplain.adapters.loaded import Loaded, LoadOptions
from fxplain.adapters.names import near
from fxplain.adapters.processors import Processors
from fxplain.errors import FxplainError, LoadError, first_line


def load(text: str, options: LoadOptions) -> Loaded:
    """Run the file, call its factory without arguments, and take what it returns.

    The factory may return a model, a pair (model, inputs) or (model, processor), or a :class:`Loaded` for
    full control; a ``fxplain.Explainer`` has one.

    Raises:
        LoadError: no such file or factory, either raises, or what comes back is no model.
    """
    path_text, _, factory = text.rpartition(":") if not text.endswith(".py") else (text, "", "")
    path = Path(path_text).expanduser()
    if not path.is_file():
        raise LoadError("there is no such Python file", where=str(path), hint="write it as FILE.py:FACTORY")
    with _importing_from(path.resolve().parent):
        module = _run(path)
        made = _call(_factory(module, factory, path), path, factory)
    made = getattr(made, "loaded", made)
    if isinstance(made, Loaded):
        return made
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, torch.nn.Module):
        raise LoadError(
            "the factory returned no model",
            where=f"{path}:{factory}",
            expected="a module, a pair (module, inputs) or (module, processor), or a fxplain.Explainer",
            found=type(model).__name__,
        )
    if Processors.of(inputs) is not None:
        return own(model, inputs, name=factory)
    return loaded_from(model, factory, inputs)


def _run(path: Path) -> ModuleType:
    # registered under a name of its own, as dataclasses and pickles look their module up there
    name = f"fxplain_file_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise LoadError("the file cannot be imported as Python", where=str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except FxplainError:
        raise
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        raise LoadError("the file raised while it ran", where=str(path), found=first_line(error)) from error
    return module


def _factory(module: ModuleType, factory: str, path: Path) -> Any:
    own = {n: v for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__}
    callables = [name for name, value in own.items() if callable(value) and not name.startswith("_")]
    if not factory:
        raise LoadError(
            "the factory is missing",
            where=str(path),
            expected=f"{path.name}:FACTORY",
            found=", ".join(callables) or "no function or class in the file",
        )
    found = getattr(module, factory, None)
    if found is None:
        raise LoadError(
            f"the file defines no {factory!r}",
            where=str(path),
            expected=", ".join(callables) or "a function that returns the model",
            found=factory,
            hint=f"did you mean {near(factory, callables)}?" if near(factory, callables) else None,
        )
    return found


def _call(factory: Any, path: Path, name: str) -> Any:
    if isinstance(factory, torch.nn.Module):  # the model itself, made when the file ran
        return factory
    if not callable(factory):
        raise LoadError(
            f"{name!r} cannot be called",
            where=str(path),
            expected="a function that takes no arguments and returns the model",
            found=type(factory).__name__,
        )
    try:
        return factory()
    except FxplainError:
        raise
    except Exception as error:
        raise LoadError(
            "the factory raised", where=f"{path}:{name}", expected="a model", found=first_line(error)
        ) from error


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Let the file import its neighbours, as it could if it were run as a script."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
