"""How tokenizers spell: word marks, byte letters and invisible characters, turned into readable pieces."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_VISIBLE = {"\n": "⏎", "\r": "␍", "\t": "⇥", " ": "␣", "": "∅"}
_JOINERS = "\u200c\u200d"
"""Zero-width characters that letters and emoji need; all other format characters are shown by number."""


@dataclass(frozen=True)
class Piece:
    """One token as it is shown."""

    text: str
    gap: bool
    """A space stands before it."""
    line_break: bool
    """The line ends after it."""


def pieces(tokens: Sequence[str]) -> list[Piece]:
    """The tokens of one text, readable; the tokenizer's convention is seen from the tokens themselves.

    Example:
        >>> [(p.gap, p.text) for p in pieces(["[CLS]", "play", "##ing"])]
        [(False, '[CLS]'), (True, 'play'), (False, 'ing')]
        >>> [(p.gap, p.text) for p in pieces(["The", "\u0120caf\u00c3\u00a9"])]
        [(False, 'The'), (True, 'caf\u00e9')]
    """
    split = _convention(tokens)
    shown = []
    gap_after = False
    for i, token in enumerate(tokens):
        gap, text, gap_next = split(token)
        shown.append(Piece(_readable(text), (gap or gap_after) and i > 0, "\n" in text))
        gap_after = gap_next
    return shown


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
    if any(token.startswith("##") for token in tokens):
        return _word_piece
    if any(token.startswith("Ġ") for token in tokens):
        return _byte_pairs
    if any(token.startswith("▁") for token in tokens):
        return _sentence_piece
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
    return bool(re.fullmatch(r"<\|?[\w/ ]+\|?>|\[\w+\]", token))


@cache
def _byte_letters() -> dict[str, int]:
    """The letter by which byte-level tokenizers write each byte: printable ones stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _readable(text: str) -> str:
    """Nothing invisible stays invisible, and nothing can turn the direction of the page."""
    if text in _VISIBLE:
        return _VISIBLE[text]
    return "".join(_character(letter) for letter in text)


def _character(letter: str) -> str:
    if letter in "\n\r\t":
        return _VISIBLE[letter]
    invisible = unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
    return f"⟨U+{ord(letter):04X}⟩" if invisible and letter not in _JOINERS else letter
