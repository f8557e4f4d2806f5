"""Texts of tokens, from any tokenizer that can spell its ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from fxplain.adapters.show import Spell


class Tokenizer(Protocol):
    """The part of a tokenizer that spelling needs."""

    def convert_ids_to_tokens(self, ids: list[int]) -> Any: ...


def speller(tokenizer: Tokenizer) -> Spell:
    """A function from token ids to the tokenizer's own spellings; drawing makes them readable.

    An id beyond the vocabulary (tables of embeddings are often padded) is written ``<id>``.

    Example:
        >>> class Letters:
        ...     def convert_ids_to_tokens(self, ids):
        ...         return ["ab"[i] if i < 2 else None for i in ids]
        >>> speller(Letters())([1, 0, 7])
        ['b', 'a', '<7>']
    """

    def spell(ids: Sequence[int]) -> list[str]:
        numbers = [int(one) for one in ids]
        found = tokenizer.convert_ids_to_tokens(numbers)
        return [f"<{n}>" if piece is None else str(piece) for n, piece in zip(numbers, found, strict=True)]

    return spell
