"""Small modules that spell attention in every way that one meets, and softmaxes that are none.

The cases have the shape of the zoo's: (module, inputs, what is to be found).
"""

from __future__ import annotations

from zoo.spec import Builder

from spellings.negatives import NEGATIVES
from spellings.scores import SCORES
from spellings.streams import STREAMS
from spellings.weights import WEIGHTS

SPELLINGS: dict[str, Builder] = {**SCORES, **WEIGHTS, **STREAMS}

__all__ = ["NEGATIVES", "SPELLINGS"]
