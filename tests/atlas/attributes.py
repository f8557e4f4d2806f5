"""Reading and changing the attributes of configurations of transformers, whatever they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeGuard

VOCABULARY = 128
HEADS = 4


def configurations(config: Any) -> Iterator[Any]:
    """A configuration and all those inside it."""
    yield config
    for value in vars(config).values():
        inside = value if isinstance(value, (list, tuple)) else (value,)
        for each in inside:
            if hasattr(each, "to_diff_dict") and each is not config:
                yield from configurations(each)


def assign(config: Any, name: str, value: Any) -> None:
    if value is vars(config).get(name):
        return
    try:
        setattr(config, name, value)
    except Exception:  # a setter that refuses: the old value stays, and the model says whether it fits
        return


def each_int(value: Any, change: Callable[[int], int]) -> Any:
    """Change every int in nested lists, tuples and dicts, and keep the types."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(each_int(v, change) for v in value)
    if isinstance(value, dict):
        return {k: each_int(v, change) for k, v in value.items()}
    return value


def width_of(config: Any) -> int:
    for name in ("hidden_size", "d_model", "n_embd", "embed_dim", "dim"):
        value = vars(config).get(name)
        if isinstance(value, int):
            return value
    return 64


def heads_of(config: Any) -> int:
    for name in ("num_attention_heads", "n_head", "num_heads", "n_heads", "encoder_attention_heads"):
        value = vars(config).get(name)
        if isinstance(value, int):
            return value
    return HEADS


def is_ints(value: Any) -> TypeGuard[list[int] | tuple[int, ...]]:
    """Whether this is a list or tuple of whole numbers, and not empty."""
    return isinstance(value, (list, tuple)) and bool(value) and all(type(v) is int for v in value)
