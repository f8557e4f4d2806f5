"""The text of each token: the part of the user's text that it covers, or what the tokenizer decodes it to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from fxplain.render.words import TokenText

_CONTEXT = 6
"""How many tokens before a token are decoded with it: enough for a character split over tokens (4 bytes)."""
_BROKEN = "\ufffd"
"""What decoders write for bytes that are no whole character."""


class Tokenizer(Protocol):
    """The part of a tokenizer that is needed here; ``is_fast`` tells whether it gives offsets."""

    @property
    def is_fast(self) -> bool: ...

    @property
    def all_special_ids(self) -> list[int]: ...

    def __call__(self, text: Any, **options: Any) -> Any: ...

    def convert_ids_to_tokens(self, ids: list[int]) -> Any: ...

    def decode(self, ids: list[int], **options: Any) -> Any: ...


class Speller:
    """Token ids -> the text of each token, spaces and line breaks included.

    If the text that the ids were made from is given, each token gets the part that the tokenizer's offsets
    name. Joined, the tokens are that text again. Otherwise the ids are decoded one after the other, and a
    token's text is what it adds. If a character is split over several tokens, the first of them gets it.
    Special tokens are marked. An id beyond the vocabulary (tables of embeddings are often padded) is written
    ``<id>``.

    Example:
        >>> from transformers import BertTokenizer
        >>> words = "[PAD] [UNK] [CLS] [SEP] [MASK] play ##ing".split()
        >>> spell = Speller(BertTokenizer({word: number for number, word in enumerate(words)}))
        >>> spell([2, 5, 6, 3], "Playing")
        ['[CLS]', 'Play', 'ing', '[SEP]']
        >>> spell([5, 6, 5, 7])
        ['play', 'ing', ' play', '<7>']
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        # the mark of unknown words stands for text, other special tokens stand beside it
        self.unknown = getattr(tokenizer, "unk_token_id", None)
        ends = (getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "sep", "cls"))
        if self.unknown in tuple(ends):
            self.unknown = None
        self.marks = frozenset(tokenizer.all_special_ids) - {self.unknown}

    def __call__(self, ids: Sequence[int], text: str | Sequence[str] | None = None) -> list[TokenText]:
        from fxplain.render.words import TokenText

        numbers = [int(one) for one in ids]
        names = [
            f"<{n}>" if name is None else str(name)
            for n, name in zip(numbers, self.tokenizer.convert_ids_to_tokens(numbers), strict=True)
        ]
        outside = [n in self.marks or name == f"<{n}>" for n, name in zip(numbers, names, strict=True)]
        found: dict[int, str] = {}
        parts = (text,) if isinstance(text, str) else tuple(text or ())
        for part in filter(None, parts):
            after = max(found, default=-1) + 1  # the second of two texts lies behind the first
            covered = self._covered(numbers[after:], outside[after:], part, len(parts) == 1)
            found |= {place + after: piece for place, piece in covered.items()}
        for i, mark in enumerate(outside):  # a text names a picture once, and its place is kept many times
            if (
                mark
                and i in found
                and found[i].strip() == names[i]
                and numbers[i] in numbers[max(i - 1, 0) : i]
            ):
                del found[i]
        for start, stop in _runs([mark or i in found for i, mark in enumerate(outside)]):
            found |= enumerate(self._decoded(numbers[start:stop]), start)
        return [
            TokenText(name, special=True)
            if mark and i not in found
            else TokenText(found[i], read_as=name if n == self.unknown else "")
            for i, (n, name, mark) in enumerate(zip(numbers, names, outside, strict=True))
        ]

    def word(self, number: int, after: Sequence[int]) -> str:
        """The text of one token behind other tokens, such as the next word of a language model."""
        return self._difference([*after], [*after, number])

    def _covered(self, ids: list[int], outside: list[bool], text: str, alone: bool) -> dict[int, str]:
        """Place -> the part of the text it covers; empty where these ids were not made from this text.

        Behind a text that was cut lie only marks if it is ``alone``, else a mark first of all.
        """
        if not getattr(self.tokenizer, "is_fast", False):
            return {}
        read = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, truncation=False)
        start, size = _overlap(ids, read["input_ids"])
        rest = outside[start + size :] if alone else outside[start + size :][:1]
        if not size or (size < len(read["input_ids"]) and not all(rest)):
            return {}
        parts, done = [], 0
        for i, (_, end) in enumerate(read["offset_mapping"][:size]):
            part = text[done:end]
            mark_of_space = (
                part.strip() and read["input_ids"][i] != self.unknown and self._blank(ids[start + i])
            )
            parts.append("" if mark_of_space else part)
            done = done if mark_of_space else max(done, end)
        if size == len(read["input_ids"]):  # spaces at the end, which no token covers
            parts[-1] += text[done:]
        return dict(enumerate(parts, start))

    def _blank(self, number: int) -> bool:
        """Whether the token spells nothing but the beginning of a word."""
        return not self._text([number]).strip()

    def _decoded(self, ids: Sequence[int]) -> Iterator[str]:
        """What each token adds to the decoding of those before it."""
        first = 0  # of the tokens whose character is not whole yet
        for i in range(len(ids)):
            before = list(ids[max(0, first - _CONTEXT) : first])
            added = self._difference(before, [*before, *ids[first : i + 1]])
            if added.endswith(_BROKEN) and i - first < 3 and i + 1 < len(ids):
                continue
            yield added
            yield from [""] * (i - first)
            first = i + 1

    def _difference(self, before: list[int], after: list[int]) -> str:
        return self._text(after)[len(self._text(before)) :]

    def _text(self, ids: list[int]) -> str:
        if not ids:
            return ""
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return str(self.tokenizer.decode(ids, **options))


def _overlap(ids: list[int], read: list[int]) -> tuple[int, int]:
    """Where in ``ids`` the longest beginning of ``read`` lies, and how long that is."""
    best = (0, 0)
    for start in range(len(ids) if read else 0):
        if ids[start] == read[0] and ids[start : start + best[1]] == read[: best[1]]:
            pairs = zip(ids[start:], read, strict=False)
            size = next(
                (i for i, (one, other) in enumerate(pairs) if one != other), min(len(ids) - start, len(read))
            )
            best = max(best, (start, size), key=lambda found: found[1])
    return best


def _runs(stops: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Start and end of each run of places that do not stop it."""
    start = 0
    for i, stop in enumerate([*stops, True]):
        if stop:
            if start < i:
                yield start, i
            start = i + 1
