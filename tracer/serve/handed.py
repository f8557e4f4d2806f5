"""What a person types or drops on the page, read within limits: nothing of it is executed or kept."""

from __future__ import annotations

import io
import wave
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fxplain.adapters.media.audio import numbers
from fxplain.attribution.table import AUTO
from fxplain.errors import InputError, first_line

MOST_BYTES = 24 << 20
"""Of all that is sent at once."""
MOST_LETTERS = 20_000
MOST_PIXELS = 40_000_000
MOST_SECONDS = 60.0
MOST_TOKENS = 200
"""Of an answer."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Pictures that are read; by Pillow."""


@dataclass(frozen=True)
class Asked:
    """One question to the model."""

    inputs: dict[str, Any]
    """As the explainer takes them."""
    text: str = ""
    target: int | tuple[int, ...] | str | None = None
    tokens: int = 0
    """Of the answer that is asked for; 0 for none."""
    method: str = AUTO


def asked_of(form: Mapping[str, Any], files: Mapping[str, bytes]) -> Asked:
    """The question that a form holds.

    Args:
        form: fields ``text``, ``pair``, ``target``, ``method``, ``tokens``, ``chat``; any may be missing.
        files: the content of ``picture`` and ``sound``.

    Raises:
        InputError: something is too large, or cannot be read; nothing was given.
    """
    inputs: dict[str, Any] = {}
    text, pair = (_text(form, name) for name in ("text", "pair"))
    if pair:
        inputs["text_pair"] = pair
    if files.get("picture"):
        inputs["images"] = picture(files["picture"])
    if files.get("sound"):
        inputs["audio"] = sound(files["sound"])
    if not inputs and not text:
        raise InputError(
            "there is nothing to explain yet", expected="a text, a picture or a sound", found="none"
        )
    return Asked(inputs, text, _target(_text(form, "target")), _tokens(form), _text(form, "method") or AUTO)


def _text(form: Mapping[str, Any], name: str) -> str:
    text = str(form.get(name) or "")
    if len(text) > MOST_LETTERS:
        raise InputError(
            "the text is too long", expected=f"at most {MOST_LETTERS} letters", found=str(len(text))
        )
    return text


def _tokens(form: Mapping[str, Any]) -> int:
    given = str(form.get("tokens") or "0")
    if not given.isdigit() or int(given) > MOST_TOKENS:
        raise InputError(
            "this is no length of an answer", expected=f"0 to {MOST_TOKENS} tokens", found=repr(given)
        )
    return int(given)


def _target(text: str) -> int | tuple[int, ...] | str | None:
    parts = text.split(",")
    if text and all(part.strip().lstrip("-").isdigit() for part in parts):
        numbers_ = tuple(int(part) for part in parts)
        return numbers_ if len(numbers_) > 1 else numbers_[0]
    return text or None


def picture(data: bytes) -> Any:
    """The picture of a file, of one of :data:`FORMATS`.

    Raises:
        InputError: it is none, or too large.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            wide, high = opened.size
            if wide * high > MOST_PIXELS:
                raise InputError(
                    "the picture is too large",
                    expected=f"at most {MOST_PIXELS} pixels",
                    found=f"{wide} x {high}",
                )
            return ImageOps.exif_transpose(opened).convert("RGB")
    except InputError:
        raise
    except Exception as error:  # Pillow says what it likes of a damaged file
        raise InputError(
            "the file is no picture that can be read", expected=", ".join(FORMATS), found=first_line(error)
        ) from error


def sound(data: bytes) -> tuple[Any, int]:
    """The sound of a ``.wav`` file, and its rate.

    Raises:
        InputError: it is none, or too long.
    """
    try:
        with wave.open(io.BytesIO(data)) as file:
            width, channels, rate, count = (
                file.getsampwidth(), file.getnchannels(), file.getframerate(), file.getnframes(),
            )  # fmt: skip
            if count > MOST_SECONDS * rate:
                raise InputError(
                    "the sound is too long", expected=f"{MOST_SECONDS:g} seconds", found=f"{count / rate:.1f}"
                )
            read = file.readframes(count)
    except (wave.Error, EOFError, OSError) as error:
        raise InputError("the file is no .wav that can be read", found=first_line(error)) from error
    return numbers(read, width).reshape(-1, channels).mean(-1, dtype=np.float32), rate
