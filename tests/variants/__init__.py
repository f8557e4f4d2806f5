"""Attention respelled: see base.py."""

from __future__ import annotations

from variants.base import Expected
from variants.blocks import BLOCKS
from variants.loops import LOOPS
from variants.masked import MASKED
from variants.places import PLACES
from variants.signed import SIGNED

PARTS = (
    "online",
    "ring",
    "merged",
    "two_passes",
    "ones_column",
    "heads-",
    "samples-heads",
    "differential-outputs",
)
EVERY = {**BLOCKS, **LOOPS, **MASKED, **PLACES, **SIGNED}
VARIANTS: dict[str, Expected] = {n: e for n, e in EVERY.items() if not n.startswith(PARTS)}

__all__ = ["VARIANTS", "Expected"]
