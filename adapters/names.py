"""Near names for messages, and short names for files."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


def near(name: str, known: Iterable[str], count: int = 4) -> str:
    """The known names most like ``name``, quoted and joined; an empty text if none is like it.

    Example:
        >>> near("vit_b16", ["vit_b_16", "swin_t"])
        "'vit_b_16'"
    """
    by_lower = {one.lower(): one for one in known}
    found = difflib.get_close_matches(name.lower(), list(by_lower), n=count, cutoff=0.5)
    return ", ".join(repr(by_lower[one]) for one in found)


def file_stem(name: str) -> str:
    """A name that is safe as the start of a file's name.

    Example:
        >>> file_stem("timm:vit tiny/../x")
        'timm-vit-tiny-x'
    """
    return re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")[:80] or "model"
