"""Texts of tokens, from any tokenizer that has the usual two methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from fxplain.adapters.show import Spell

_WORD_STARTS = ("Ġ", "▁", "Ċ")
"""How byte-level (Ġ a space, Ċ a line break) and sentence-piece (▁) vocabularies write a leading blank."""


class Tokenizer(Protocol):
    """The part of a tokenizer that spelling needs."""

    def convert_ids_to_tokens(self, ids: list[int]) -> Any: ...

    def decode(self, ids: list[int]) -> Any: ...


def speller(tokenizer: Tokenizer) -> Spell:
    """A function from token ids to texts a person can read, joined they give the text back.

    Word pieces keep their ``##``; byte-level and sentence-piece spellings turn into plain characters with
    their leading blank. A token that is only part of a character keeps the vocabulary's own spelling.
    """

    def spell(ids: Sequence[int]) -> list[str]:
        numbers = [int(one) for one in ids]
        pieces = tokenizer.convert_ids_to_tokens(numbers)
        return [_readable(tokenizer, number, piece) for number, piece in zip(numbers, pieces, strict=True)]

    return spell


def _readable(tokenizer: Tokenizer, number: int, piece: Any) -> str:
    if piece is None:  # the model's table of embeddings is longer than the tokenizer's vocabulary
        return f"<{number}>"
    text = str(piece)
    if text.startswith("##"):
        return text
    decoded = str(tokenizer.decode([number]))
    if not decoded or "\ufffd" in decoded:
        return text.replace("▁", " ")
    blank = " " if text.startswith(_WORD_STARTS[:2]) and not decoded.startswith(" ") else ""
    return blank + decoded
