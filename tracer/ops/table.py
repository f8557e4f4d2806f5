"""The table of transfer functions: ATen operation -> what it does to token labels.

A transfer function gets a :class:`~fxplain.labels.call.Call` and returns the
:class:`~fxplain.labels.labels.Value` of the result (a tuple of them for several results). Register one with
``@transfer("aten::name", ...)``; see ``docs/add-an-op.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fxplain.labels.call import Call
from fxplain.labels.value import Value

if TYPE_CHECKING:
    pass

Transfer = Callable[["Call"], "Value | tuple[Value, ...]"]

TABLE: dict[str, Transfer] = {}


def transfer(*names: str) -> Callable[[Transfer], Transfer]:
    """Register a transfer function for operations, named as in their schemas, without the overload."""

    def register(function: Transfer) -> Transfer:
        for name in names:
            if name in TABLE:
                raise ValueError(f"{name} has a transfer function already")
            TABLE[name] = function
        return function

    return register
