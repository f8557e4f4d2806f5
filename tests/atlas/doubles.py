"""Models that compute in float64 throughout: also where they ask for float32, as many a softmax does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class Doubled(nn.Module):
    """A model with its weights in float64, in place, whose float32 steps are float64 ones."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.double()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _Doubles():
            return self.model(*args, **kwargs)


class _Doubles(TorchFunctionMode):
    """Whoever asks for float32 gets float64."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        named = {name: _wide(value) for name, value in (kwargs or {}).items()}
        return func(*(_wide(value) for value in args), **named)


def _wide(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def doubled(value: Any) -> Any:
    """Nested inputs with every floating tensor in float64."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {name: doubled(inside) for name, inside in value.items()}
    return tuple(doubled(inside) for inside in value) if isinstance(value, (tuple, list)) else value
