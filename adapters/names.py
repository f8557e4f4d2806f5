"""Near names for messages, short names for files, and names of targets."""

from __future__ import annotations

import difflib
import re
from collections.abc import ItemsView, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

from fxplain.adapters.processors import Processors
from fxplain.tasks import task_of


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


class Vocabulary(Mapping[int, str]):
    """The words of a tokenizer as they stand inside a text: index -> word, worked out when it is asked for.

    A word that begins with a space is one that begins a word. Tokens that are marks have their names.
    """

    def __init__(self, tokenizer: Any) -> None:
        from fxplain.adapters.text import Speller

        self._speller = Speller(tokenizer)

    @cached_property
    def _pieces(self) -> list[str | None]:
        tokenizer: Any = self._speller.tokenizer
        pieces: list[str | None] = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        return pieces

    @cached_property
    def _after(self) -> list[int]:
        ids: list[int] = self._speller.tokenizer("a", add_special_tokens=False)["input_ids"]
        return ids[-1:]

    def index(self, word: str) -> int | None:
        """The index of a text that is one word of the vocabulary; None if it is none, or several."""
        ids = self._speller.tokenizer(word, add_special_tokens=False)["input_ids"] if word else []
        return ids[0] if len(ids) == 1 and self.get(ids[0]) == word else None

    @cached_property
    def _all(self) -> dict[int, str]:
        return {index: self[index] for index in self}

    def items(self) -> ItemsView[int, str]:
        """All words; worked out once, in a second or two."""
        return self._all.items()

    def pieces(self, text: str) -> list[str]:
        """The words of the vocabulary that a text is made of."""
        ids = self._speller.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [self.get(one, f"<{one}>") for one in ids]

    def __getitem__(self, index: int) -> str:
        piece = self._pieces[index] if isinstance(index, int) and 0 <= index < len(self._pieces) else None
        if piece is None:
            raise KeyError(index)
        if index in self._speller.marks or index == self._speller.unknown:
            return str(piece)
        return self._speller.word(index, self._after)

    def __iter__(self) -> Iterator[int]:
        return (index for index, piece in enumerate(self._pieces) if piece is not None)

    def __len__(self) -> int:
        return sum(piece is not None for piece in self._pieces)


def target_names(model: Any, processors: Processors) -> Mapping[int, str]:
    """Names of the last axis of the output: words for a language model, classes for a classifier."""
    head = getattr(model, "get_output_embeddings", lambda: None)
    speaks = head() is not None or task_of(model).kind in ("next token", "words")
    if speaks and processors.tokenizer is not None:
        return Vocabulary(processors.tokenizer)
    told = task_of(model).names
    names = dict(told or getattr(getattr(model, "config", None), "id2label", None) or {})
    if all(name == f"LABEL_{index}" for index, name in names.items()):  # what every configuration starts from
        return {}
    return {int(index): str(name) for index, name in names.items()}
