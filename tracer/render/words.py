"""How tokenizers spell: word marks, byte letters and invisible characters, turned into readable pieces."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PART = "·"
"""For a token without a text of its own: another part of a character that the token before shows."""
_VISIBLE = {"\n": "⏎", "\r": "␍", "\t": "⇥", " ": "␣", "": "∅"}
_JOINERS = "\u200c\u200d"
"""Zero-width characters that letters and emoji need; all other format characters are shown by number."""


class TokenText(str):
    """The text that one token stands for, with the spaces and line breaks that belong to it.

    Joined, the texts of all tokens that are not special are the whole text.

    Args:
        text: that text; for a special token, its name.
        special: the tokenizer's own mark, such as ``[CLS]``, which stands beside the text.
        read_as: what the model read instead, where it did not know the word; else ''.

    Example:
        >>> tokens = [TokenText("[CLS]", special=True), TokenText("play"), TokenText("ing"), TokenText(" on")]
        >>> [(p.before, p.text) for p in pieces(tokens)]
        [('', '[CLS]'), (' ', 'play'), ('', 'ing'), (' ', 'on')]
    """

    special: bool
    read_as: str

    def __new__(cls, text: str, special: bool = False, read_as: str = "") -> TokenText:
        made = super().__new__(cls, text)
        made.special, made.read_as = special, read_as
        return made


@dataclass(frozen=True)
class Piece:
    """One token as it is shown."""

    text: str
    before: str
    """The space and line breaks before it, which are not coloured."""
    line_break: bool
    """The line ends after it."""


def pieces(tokens: Sequence[str]) -> list[Piece]:
    """The tokens of one text, readable.

    Where all are :class:`TokenText` their spaces are known; otherwise the tokenizer's convention is guessed.

    Example:
        >>> [(p.before, p.text) for p in pieces(["[CLS]", "play", "##ing"])]
        [('', '[CLS]'), (' ', 'play'), ('', 'ing')]
        >>> [(p.before, p.text) for p in pieces(["The", "\u0120caf\u00c3\u00a9"])]
        [('', 'The'), (' ', 'caf\u00e9')]
    """
    written = [token for token in tokens if isinstance(token, TokenText)]
    return _as_written(written) if len(written) == len(tokens) else _guessed(tokens)


def _as_written(tokens: Sequence[TokenText]) -> list[Piece]:
    shown: list[Piece] = []
    for i, token in enumerate(tokens):
        text = token.lstrip(" \n\r\t")
        before = token[: len(token) - len(text)] if text else ""
        apart = i > 0 and (token.special or tokens[i - 1].special)
        shown.append(
            Piece(
                _readable(text) or "".join(_VISIBLE.get(c, c) for c in token) or _PART,
                before or " " * apart,
                "\n" in (text or token),
            )
        )
    return shown


def _guessed(tokens: Sequence[str]) -> list[Piece]:
    split = _convention(tokens)
    shown = []
    gap_after = False
    for i, token in enumerate(tokens):
        gap, text, gap_next = split(token)
        shown.append(
            Piece(_readable(text) or _VISIBLE[""], " " * ((gap or gap_after) and i > 0), "\n" in text)
        )
        gap_after = gap_next
    return shown


def words(tokens: Sequence[str]) -> list[int]:
    """For each token the number of its word: tokens without a space between them are one, but for marks,
    punctuation, and scripts that put no spaces.

    Example:
        >>> start = TokenText("<s>", special=True)
        >>> words([start, TokenText("Play"), TokenText("ing"), TokenText(" on"), TokenText("!")])
        [0, 1, 1, 2, 3]
    """
    numbers: list[int] = []
    shown = pieces(tokens)
    for i, (token, piece) in enumerate(zip(tokens, shown, strict=True)):
        before = shown[i - 1] if i else None
        joined = (
            before is not None
            and not piece.before
            and not before.line_break
            and not special(token)
            and not special(tokens[i - 1])
            and _letters(before.text[-1:]) == _letters(piece.text[:1]) != "apart"
        )
        numbers.append(numbers[-1] if joined else (numbers[-1] + 1 if numbers else 0))
    return numbers


def _letters(letter: str) -> str:
    """Whether a letter goes on a word, is punctuation, or stands for itself (of a script without spaces)."""
    if letter == _PART:
        return "letters"
    if letter and unicodedata.category(letter) == "Lo" and unicodedata.east_asian_width(letter) in "WF":
        return "apart"
    return "letters" if letter.isalnum() or letter in "'\u2019_" else "marks"


def direction(tokens: Sequence[str]) -> str:
    """``rtl`` if the first letter with a direction is written right to left, else ``ltr``.

    Special tokens such as ``[CLS]`` do not decide.
    """
    for token in tokens:
        if special(token):
            continue
        for letter in token:
            kind = unicodedata.bidirectional(letter)
            if kind in ("R", "AL"):
                return "rtl"
            if kind == "L" and letter not in "ĠĊ":
                return "ltr"
    return "ltr"


def _convention(tokens: Sequence[str]) -> Callable[[str], tuple[bool, str, bool]]:
    if any(
        token.startswith(("Ġ", "Ċ")) for token in tokens
    ):  # before "##", which starts headings of Markdown
        return _byte_pairs
    if any(token.startswith("▁") for token in tokens):
        return _sentence_piece
    if any(token.startswith("##") for token in tokens):
        return _word_piece
    if any(token.endswith("</w>") for token in tokens):
        return lambda token: (False, token.removesuffix("</w>"), token.endswith(("</w>", "|>")))
    if any(token.endswith("@@") for token in tokens):
        return lambda token: (False, token.removesuffix("@@"), not token.endswith("@@"))
    if any(token.startswith(" ") and token.strip() for token in tokens):
        return lambda token: (token.startswith(" "), token.removeprefix(" "), False)
    return lambda token: (True, token, True)


def _word_piece(token: str) -> tuple[bool, str, bool]:
    continued = token.startswith("##") and len(token) > 2
    return not continued, token[2:] if continued else token, False


def _sentence_piece(token: str) -> tuple[bool, str, bool]:
    byte = _BYTE_TOKEN.fullmatch(token)
    if byte:
        value = int(byte[1], 16)
        return False, chr(value) if value < 128 else token, False
    text = token.removeprefix("▁").replace("▁", " ")
    return token.startswith("▁") or special(token), text, special(token)


def _byte_pairs(token: str) -> tuple[bool, str, bool]:
    if special(token):
        return True, token, True
    letters = _byte_letters()
    if not all(letter in letters for letter in token):
        return False, token, False
    data = bytes(letters[letter] for letter in token)
    text = data.decode("utf-8", errors="backslashreplace")
    return text.startswith(" "), text.removeprefix(" "), False


def special(token: str) -> bool:
    """Whether the token is the tokenizer's own mark, such as ``[CLS]``, ``</s>`` or ``<|endoftext|>``."""
    if isinstance(token, TokenText):
        return token.special
    return bool(re.fullmatch(r"<\|?[\w/ ]+\|?>|\[\w+\]", token))


@cache
def _byte_letters() -> dict[str, int]:
    """The letter by which byte-level tokenizers write each byte: printable ones stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _readable(text: str) -> str:
    """Nothing invisible stays invisible, and nothing can turn the direction of the page."""
    if text and text in _VISIBLE:
        return _VISIBLE[text]
    return "".join(_character(letter) for letter in text)


def _character(letter: str) -> str:
    if letter in "\n\r\t":
        return _VISIBLE[letter]
    invisible = unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
    return f"⟨U+{ord(letter):04X}⟩" if invisible and letter not in _JOINERS else letter
