"""``fxplain methods`` and the names given to ``--method`` and ``--layers``."""

from __future__ import annotations

import re

from fxplain.attention.layers import Layers
from fxplain.attribution.table import AUTO, LIBRA, METHODS, method_named
from fxplain.errors import MethodError

_LAYER = re.compile(r"[+-]?\d+")


def table_of_methods() -> str:
    """Every method with one line and its paper, and what the switch says."""
    width = max(map(len, METHODS), default=0)
    lines = [f"{name:<{width}}  {m.description} ({m.paper})" for name, m in METHODS.items()]
    balanced = ", ".join(name for name, method in METHODS.items() if method.takes_libra)
    lines += [
        "",
        f"{AUTO} (where none is named): relevancy, or net_relevancy where attention is causal.",
        f"NAME{LIBRA} takes balanced gradients (LibraGrad, Mehri et al., CVPR 2025), for these methods:",
        f"  {balanced}",
    ]
    return "\n".join(lines)


def parse_methods(text: str) -> list[str]:
    """The methods of ``--method``, refused before anything is loaded.

    Raises:
        MethodError: with the names that there are.

    Example:
        >>> parse_methods("relevancy, legrad+libra")
        ['relevancy', 'legrad+libra']
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names or [text]:
        method_named(name)
    return names


def parse_layers(text: str | None) -> Layers | None:
    """The layers of ``--layers``.

    Raises:
        MethodError: it is neither a layer, nor a range, nor several layers.

    Example:
        >>> parse_layers("3"), parse_layers("8:"), parse_layers("0,-1")
        (3, slice(8, None, None), (0, -1))
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if all(_LAYER.fullmatch(part) for part in parts):
        numbers = tuple(map(int, parts))
        return numbers if len(numbers) > 1 else numbers[0]
    ends = [end.strip() for end in text.split(":")]
    if len(ends) == 2 and all(not end or _LAYER.fullmatch(end) for end in ends):
        return slice(*(int(end) if end else None for end in ends))
    raise MethodError("these are no layers", expected="3, 8:, 2:5, -1 or 0,1", found=text)
