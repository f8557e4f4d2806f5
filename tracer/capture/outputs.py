"""What a model returns: flattened to named tensors, and rebuilt around other tensors of the same order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fxplain.capture.tree import Slot, mapped


def flatten(output: Any) -> list[tuple[str, Tensor]]:
    """The tensors of a model's output with their names, in order.

    A bare tensor is named ``"output"``; the others by field, key or position, joined by dots. Caches and
    other objects that are neither containers nor dataclasses are left out.

    Example:
        >>> import torch
        >>> [name for name, _ in flatten({"logits": torch.ones(1), "states": (torch.ones(1),)})]
        ['logits', 'states.0']
    """
    found: list[tuple[str, Tensor]] = []
    mapped(output, lambda path, tensor: found.append((path or "output", tensor)), _drop)
    return found


def skeleton(output: Any) -> Any:
    """The output's structure, a :class:`~fxplain.capture.tree.Slot` for each tensor; holds no tensor."""
    count = iter(range(1 << 30))
    return mapped(output, lambda path, tensor: Slot(next(count)), _drop)


def rebuild(structure: Any, tensors: Sequence[Tensor]) -> Any:
    """The model's own output structure around these tensors.

    Example:
        >>> import torch
        >>> rebuild(skeleton({"logits": torch.ones(1)}), [torch.zeros(1)])
        {'logits': tensor([0.])}
    """
    return mapped(structure, lambda path, slot: tensors[slot.index], _drop)


def _drop(path: str, thing: Any) -> None:
    return None
