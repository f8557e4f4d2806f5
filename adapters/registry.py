"""The table from what a person writes for MODEL to the loader that understands it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fxplain.adapters.loaded import Loaded, LoadOptions
from fxplain.errors import LoadError


@dataclass(frozen=True)
class Source:
    """One way to name a model.

    Args:
        form: how it is written, for help texts.
        example: one that could be typed.
        matches: whether a MODEL is written this way; the first source of the table that says so loads it.
        module: the file in this package whose ``load(text, options)`` loads it, imported only then.
    """

    form: str
    example: str
    matches: Callable[[str], bool]
    module: str


_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")


def _is_python(text: str) -> bool:
    path, _, _ = text.rpartition(":")
    return path.endswith(".py") or text.endswith(".py")


def _is_pickle(text: str) -> bool:
    return Path(text).suffix.lower() in _PICKLES and not Path(text).is_dir()


def _starts(prefix: str) -> Callable[[str], bool]:
    return lambda text: text.startswith(prefix)


SOURCES: tuple[Source, ...] = (
    Source("timm:NAME", "timm:vit_tiny_patch16_224", _starts("timm:"), "timm"),
    Source("torchvision:NAME", "torchvision:vit_b_16", _starts("torchvision:"), "torchvision"),
    Source("FILE.py:FACTORY", "model.py:build", _is_python, "python_file"),
    Source("FILE.pt2", "model.pt2", lambda text: text.lower().endswith(".pt2"), "program"),
    Source("FILE.pt (with --allow-pickle)", "model.pt", _is_pickle, "pickled"),
    Source("Hugging Face folder or id", "google/vit-base-patch16-224", lambda text: True, "huggingface"),
)
"""In order: the first that matches loads. To add an ecosystem, add a line here and a file beside this one."""


def load(model: str, options: LoadOptions | None = None) -> Loaded:
    """Load a model by what a person wrote for it.

    Args:
        model: one of the forms of :data:`SOURCES`.
        options: what is allowed; by default nothing that runs code of others.

    Returns:
        The model in evaluation mode, on the wanted device, with its way to prepare inputs.

    Raises:
        LoadError: the name or file gives no model.
        UnsafeFileError: loading would run code that was not allowed.
    """
    options = options or LoadOptions()
    text = model.strip()
    if not text:
        forms = ", ".join(source.form for source in SOURCES)
        raise LoadError("no model was named", expected=f"one of: {forms}", found="an empty text")
    source = next(source for source in SOURCES if source.matches(text))
    loader = importlib.import_module(f"fxplain.adapters.{source.module}")
    loaded: Loaded = loader.load(text, options)
    if isinstance(loaded.model, torch.nn.Module):
        loaded.model.eval()
    return _placed(loaded, options.device)


def _placed(loaded: Loaded, device: str | None) -> Loaded:
    if device is None:
        return loaded
    if not isinstance(loaded.model, torch.nn.Module):
        raise LoadError(
            "an exported program stays on the device it was exported on",
            where=loaded.name,
            found=f"--device {device}",
            hint="export it on that device, or leave --device out",
        )
    try:
        return replace(loaded, model=loaded.model.to(device))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise LoadError(
            "the model cannot be moved to the device",
            where=loaded.name,
            expected="a device that torch has here, such as cpu or cuda:0",
            found=f"{device!r}: {str(error).splitlines()[0]}",
        ) from error
