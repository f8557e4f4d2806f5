"""Every transfer function: importing this module fills the table."""

from fxplain.labels.call import Call
from fxplain.ops import (  # noqa: F401
    by_index,
    catenation,
    creation,
    kernels,
    movement,
    products,
    recurrence,
    reduction,
    sampling,
    sequences,
    tokens,
    windows,
)
from fxplain.ops.meeting import contraction  # noqa: F401
from fxplain.ops.table import TABLE

__all__ = ["TABLE", "Call"]
