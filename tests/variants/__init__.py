"""Attention respelled: see base.py."""

from __future__ import annotations

from variants.base import Expected
from variants.blocks import BLOCKS
from variants.keys import KEYS
from variants.loops import LOOPS
from variants.masked import MASKED
from variants.places import PLACES
from variants.signed import SIGNED

VARIANTS: dict[str, Expected] = {**BLOCKS, **KEYS, **LOOPS, **MASKED, **PLACES, **SIGNED}

__all__ = ["VARIANTS", "Expected"]
