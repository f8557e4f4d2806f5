"""Weights of the small models that the experiments train: safetensors at half precision, in ``weights/``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

FOLDER = Path(__file__).parent / "weights"


def store(name: str, model: nn.Module, path: Path | None = None) -> Path:
    """Keep a trained model's weights; half the precision is half the size, and changes no answer."""
    path = path or FOLDER / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file({key: value.clone().contiguous() for key, value in state.items()}, path)
    path.chmod(0o644)
    return path


def restore(name: str, model: Any, path: Path | None = None) -> Any:
    """The model with the weights that were kept, in float32 and evaluation mode."""
    state = load_file(path or FOLDER / f"{name}.safetensors")
    own = model.state_dict()
    model.load_state_dict({key: value.to(own[key].dtype) for key, value in state.items()})
    model.eval()
    return model
