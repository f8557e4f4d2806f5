"""Sounds, as a file or as an array, for the processor that lies beside a model."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxplain.errors import InputError

Wave = NDArray[np.float32]
"""[sample]: one channel, from -1 to 1."""


def sound_of(given: Any, rate: int) -> Wave:
    """One channel of sound at the rate that a model takes.

    Args:
        given: a ``.wav`` file of whole numbers, an array [sample] that has the rate, or a pair of an array
            and its rate.
        rate: samples a second that the model takes.

    Raises:
        InputError: no such file, another format, several dimensions, or another rate.

    Example:
        >>> sound_of((np.zeros(8), 16000), 16000).shape
        (8,)
    """
    if isinstance(given, (str, Path)):
        given = read_wave(Path(given))
    array, own = given if isinstance(given, tuple) else (given, rate)
    sound = np.asarray(array, dtype=np.float32)
    if sound.ndim != 1 or not sound.size:
        raise InputError("this is no sound", expected="an array [sample]", found=f"shape {list(sound.shape)}")
    if own != rate:
        raise InputError(
            "the sound has another rate than the model takes",
            expected=f"{rate} samples a second",
            found=f"{own} samples a second",
            hint=f"convert it: ffmpeg -i IN.wav -ar {rate} -ac 1 OUT.wav",
        )
    return sound


def read_wave(path: Path) -> tuple[Wave, int]:
    """The mean of a file's channels, from -1 to 1, and its rate.

    Raises:
        InputError: no such file, or it is no ``.wav`` of whole numbers.
    """
    if not path.is_file():
        raise InputError("there is no such sound", where=str(path))
    try:
        with wave.open(str(path), "rb") as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            data = file.readframes(file.getnframes())
    except (wave.Error, EOFError, OSError) as error:
        raise InputError(
            "the file cannot be read as a sound",
            where=str(path),
            expected="a .wav file of whole numbers (PCM)",
            found=f"{type(error).__name__}: {error}",
            hint="convert it: ffmpeg -i IN -c:a pcm_s16le OUT.wav",
        ) from error
    return _numbers(data, width).reshape(-1, channels).mean(-1, dtype=np.float32), rate


def _numbers(data: bytes, width: int) -> Wave:
    """Whole numbers of 1 to 4 bytes, least byte first, as parts of the largest."""
    if width == 1:  # without a sign, as the format has it
        return (np.frombuffer(data, np.uint8).astype(np.float32) - np.float32(128)) / np.float32(128)
    letters = np.frombuffer(data, np.uint8).reshape(-1, width)
    filled = np.zeros((len(letters), 4), np.uint8)
    filled[:, 4 - width :] = letters
    return (filled.reshape(-1).view("<i4") / 2.0**31).astype(np.float32)
