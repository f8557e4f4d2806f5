"""What a placeholder of a captured graph stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PlaceholderKind = Literal["input", "parameter", "buffer", "constant"]


@dataclass(frozen=True)
class Placeholder:
    """What one placeholder of the graph stands for."""

    node: str
    """Name of the placeholder node."""
    kind: PlaceholderKind
    path: str
    """Of an input the name a user knows, of a parameter or buffer its path in the user's model."""
