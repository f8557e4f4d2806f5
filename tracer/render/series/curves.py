"""The lines, the spectrogram and the axis of a series, as plain arrays and paths."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxplain.display import Series

ACROSS = 800
"""Columns of a drawing."""


def channels(series: Series) -> NDArray[np.float64]:
    """[place, channel]; what is not finite lies on the middle line."""
    values = np.nan_to_num(np.asarray(series.values, dtype=np.float64), posinf=0.0, neginf=0.0)
    return values.reshape(len(values), -1)


def outlines(series: Series) -> tuple[str, ...]:
    """SVG paths in a box of 1000 x 100: one, filled, of a sound; else a line for each channel."""
    values = channels(series)
    if series.sound:
        groups = np.array_split(values[:, 0], min(ACROSS, len(values)))
        most = max(float(np.abs(values).max(initial=0.0)), 1e-9)
        at = (np.arange(len(groups)) + 0.5) * 1000 / len(groups)
        high = [50 - 48 * float(group.max()) / most for group in groups]
        low = [50 - 48 * float(group.min()) / most for group in groups]
        ends = [*zip(at, high, strict=True), *reversed([*zip(at, low, strict=True)])]
        return (_path(ends) + "Z",)
    least, most = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    lowest = least if least < 0 else float(values.min())
    range_ = max(most - lowest, 1e-12)
    thinned = np.unique(np.linspace(0, len(values) - 1, min(len(values), 2000)).round().astype(int))
    return tuple(
        _path([((i + 0.5) * 1000 / len(values), 96 - 92 * (values[i, c] - lowest) / range_) for i in thinned])
        for c in range(min(values.shape[1], 12))
    )


def _path(points: list[tuple[Any, Any]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def spectrogram(series: Series) -> NDArray[np.float64]:
    """[pitch, time]: the loudness of every pitch in decibels under the loudest; low pitches last."""
    sound = channels(series)[:, 0]
    rate = 1 / series.step
    window = max(min(round(0.025 * rate), len(sound)), 8)
    sound = np.pad(sound, (0, max(window - len(sound), 0)))
    hop = max(round(0.01 * rate), (len(sound) - window) // ACROSS + 1)
    frames = np.lib.stride_tricks.sliding_window_view(sound, window)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(window), axis=-1)) ** 2
    loud = 10 * np.log10(np.maximum(power, 1e-12))
    return np.asarray((loud - loud.max()).T[::-1])


def levels(loud: NDArray[Any], least: float = -70.0) -> NDArray[np.float64]:
    """Decibels as 0 to 1."""
    return np.asarray(np.clip(1 - loud / least, 0.0, 1.0))


def ticks(series: Series, most: int = 8) -> tuple[tuple[float, str], ...]:
    """Percent of the axis and what stands there, at round numbers or at names."""
    first, last = series.ends
    if series.names:
        count = len(series.names)
        every = max(-(-count // (most * 2)), 1)
        return tuple(((i + 0.5) / len(series.values) * 100, series.names[i]) for i in range(0, count, every))
    step = _round((last - first) / most)
    if series.step >= 1:
        step = max(step, series.step)
    at = np.arange(np.ceil(first / step - 1e-9) * step, last + 1e-9 * step, step)
    middle = 0.5 * series.step if series.step >= 1 else 0.0  # a place that is counted is as wide as its step
    found = [
        ((float(x) + middle - first) / (last - first) * 100, f"{float(x) + 0.0:.6g}") for x in at.round(12)
    ]
    return tuple((place, name) for place, name in found if place <= 100.01)


def _round(value: float) -> float:
    """The next larger of 1, 2, 5, 10, ... times a power of ten."""
    power = 10.0 ** np.floor(np.log10(max(value, 1e-12)))
    return float(next(power * times for times in (1, 2, 5, 10) if power * times >= value * (1 - 1e-9)))


def shortest(values: NDArray[Any], edges: NDArray[Any], part: float = 0.5) -> tuple[float, float] | None:
    """The shortest stretch of an axis that has so much of what is there; None where there is nothing.

    Args:
        values: [token]; of negative ones the size counts.
        edges: [token + 1]: where each begins, and where the last one ends.
        part: of the whole, 0 to 1.

    Example:
        >>> shortest(np.array([0.0, 1.0, 3.0, 1.0, 0.0]), np.arange(6.0))
        (2.0, 3.0)
        >>> shortest(np.array([1.0, 1.0, 1.0, 1.0]), np.arange(5.0))
        (0.0, 2.0)
    """
    sizes = np.abs(np.asarray(values, dtype=np.float64))
    sums = np.concatenate([[0.0], np.cumsum(sizes)])
    if not sums[-1] > 0:
        return None
    wanted = sums[:-1] + part * sums[-1]
    ends = np.searchsorted(sums, wanted - 1e-12 * sums[-1])
    valid = np.flatnonzero(ends < len(sums))
    lengths = edges[ends[valid]] - edges[valid]
    best = int(valid[np.argmin(lengths)])
    return float(edges[best]), float(edges[ends[best]])
