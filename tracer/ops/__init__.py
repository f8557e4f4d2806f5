"""Transfer functions: how every kind of operation carries token labels (importing it fills the table)."""

from fxplain.ops import (
    accumulation,
    births,
    contraction,
    convolution,
    creation,
    folding,
    fused,
    layout,
    padding,
    products,
    recurrence,
    reduction,
    regions,
    sampling,
    solving,
    spectrum,
)
from fxplain.ops.table import TABLE, Call, Operand, transfer

__all__ = [
    "TABLE",
    "Call",
    "Operand",
    "accumulation",
    "births",
    "contraction",
    "convolution",
    "creation",
    "folding",
    "fused",
    "layout",
    "padding",
    "products",
    "recurrence",
    "reduction",
    "regions",
    "sampling",
    "solving",
    "spectrum",
    "transfer",
]
