"""Sounds, as a file or as an array, for the processor that lies beside a model."""

from __future__ import annotations

import wave
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxplain.display import Series
from fxplain.errors import InputError

Wave = NDArray[np.float32]
"""[sample]: one channel, from -1 to 1."""


def sound_of(given: Any, rate: int, notes: list[str] | None = None) -> Wave:
    """One channel of sound at the rate that a model takes.

    Args:
        given: a ``.wav`` file of whole numbers, an array [sample] that has the rate, or a pair of an array
            and its rate.
        rate: samples a second that the model takes; a sound that has others is resampled.
        notes: a line is added if it was.

    Raises:
        InputError: no such file, another format, or several dimensions.

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
        sound = resampled(sound, own, rate)
        if notes is not None:
            notes.append(f"the sound is resampled from {own} to {rate} samples a second")
    return sound


def resampled(sound: Wave, own: int, rate: int) -> Wave:
    """A sound at another rate: the same frequencies, as far as that rate holds them.

    Example:
        >>> tone = np.sin(np.arange(480) * 2 * np.pi / 48).astype(np.float32)
        >>> float(abs(resampled(tone, 48000, 16000) - tone[::3]).max()) < 1e-3
        True
    """
    count = max(round(len(sound) * rate / own), 1)
    spectrum = np.fft.rfft(sound)[: count // 2 + 1]
    return np.asarray(np.fft.irfft(spectrum, count) * (count / len(sound)), dtype=np.float32)


Extract = Callable[[Sequence[Wave]], Mapping[str, Any]]
"""A feature extractor with its rate: sounds -> the model's inputs."""


def under(extract: Extract, sounds: Sequence[Wave], rate: int) -> dict[str, tuple[Series, ...]]:
    """Input -> the sounds, and which seconds of them its places stand for.

    Extractors do not say how they go through time, so each is asked: two sounds that differ only in when a
    noise is heard differ in the input at the two places of the noise. An input of which this tells nothing is
    left out.

    Example:
        >>> def frames(sounds):
        ...     return {"frames": np.stack([abs(s).reshape(-1, 100).sum(-1) for s in sounds])}
        >>> under(frames, [np.ones(8000, np.float32)], 8000)["frames"][0].covers
        (0.0, 1.0)
    """
    count = max(map(len, sounds))
    heard = np.random.default_rng(0).standard_normal(max(count // 50, 1)).astype(np.float32) * 0.5
    places, found = (count // 4, count - count // 4 - len(heard)), []
    for start in places:
        sound = np.zeros(count, np.float32)
        sound[start : start + len(heard)] = heard
        found.append(extract([sound]))
    inputs: dict[str, tuple[Series, ...]] = {}
    for name in found[0]:
        own = [np.asarray(one[name], dtype=np.float64) for one in (found[0], found[1])]
        known = _through(abs(own[0][0] - own[1][0]), places, rate) if own[0].ndim > 1 else None
        if known is not None:
            covers, shape = known
            inputs[name] = tuple(
                Series(sound, "seconds", 0.0, 1 / rate, covers=covers, shape=shape, sound=True)
                for sound in sounds
            )
    return inputs


def _through(
    changed: NDArray[Any], places: tuple[int, int], rate: int
) -> tuple[tuple[float, float], tuple[int, int] | None] | None:
    """Seconds at which an input begins and ends, and its size in time and across, from where it changed; None
    where no axis of it is time."""
    changed = np.where(changed > changed.max() / 2, changed, 0)  # levels of all places may move a little
    best: tuple[float, int, float, float] | None = None
    for axis in range(changed.ndim):
        rows = changed.sum(tuple(other for other in range(changed.ndim) if other != axis))
        at = np.arange(len(rows))
        middle = (rows * at).sum() / max(rows.sum(), 1e-30)
        halves = [np.where(at < middle, rows, 0), np.where(at < middle, 0, rows)]
        if any(half.sum() == 0 for half in halves):
            continue
        ends = [float((half * at).sum() / half.sum()) for half in halves]
        wide = max(
            np.sqrt((half * (at - end) ** 2).sum() / half.sum())
            for half, end in zip(halves, ends, strict=True)
        )
        spread = float(wide / (ends[1] - ends[0]))
        if best is None or spread < best[0]:
            best = (spread, axis, ends[0], ends[1])
    if best is None or best[0] > _SHARP:
        return None
    _, axis, low, high = best
    hop = max(round((places[1] - places[0]) / (high - low)), 1)
    size, whole = changed.shape[axis], changed.size
    shape = (size, whole // size) if changed.ndim == 2 else None
    return (0.0, size * hop / rate), shape


_SHARP = 0.2
"""Of two places, how far each may reach beside their distance to be told apart."""


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
    return numbers(data, width).reshape(-1, channels).mean(-1, dtype=np.float32), rate


def numbers(data: bytes, width: int) -> Wave:
    """Whole numbers of 1 to 4 bytes, least byte first, as parts of the largest."""
    if width == 1:  # without a sign, as the format has it
        return (np.frombuffer(data, np.uint8).astype(np.float32) - np.float32(128)) / np.float32(128)
    letters = np.frombuffer(data, np.uint8).reshape(-1, width)
    filled = np.zeros((len(letters), 4), np.uint8)
    filled[:, 4 - width :] = letters
    return (filled.reshape(-1).view("<i4") / 2.0**31).astype(np.float32)
