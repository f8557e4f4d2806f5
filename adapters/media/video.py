"""Videos as frames with their times: of a file, of an array, or of several pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxplain.adapters.media.images import picture_of
from fxplain.errors import InputError, first_line

Frames = NDArray[np.uint8]
"""[frame, height, width, 3]."""

ANIMATIONS = (".gif", ".webp", ".png", ".apng")
"""Read by Pillow; other videos by PyAV."""
_MOST = 16
"""Frames, where the model does not say how many it takes."""
_LONGEST = 3000
"""Frames of a file that are read."""


def frames_of(given: Any, count: int | None, notes: list[str]) -> tuple[Frames, tuple[float, ...]]:
    """The frames that a model takes, evenly in time from beginning to end, and the seconds at which they
    stand.

    Args:
        given: a file; an array uint8 [frame, height, width, 3], a list of pictures, or a pair of one of these
            and the number of frames a second (else they count as one a second).
        count: frames that the model takes; None: at most 16.
        notes: a line is added where frames are left out or shown twice.

    Raises:
        InputError: no such file, no video, or nothing that reads it is installed.

    Example:
        >>> frames, times = frames_of((np.zeros((8, 4, 4, 3), np.uint8), 2), 4, notes := [])
        >>> frames.shape, times, notes
        ((4, 4, 4, 3), (0.0, 1.0, 2.5, 3.5), ['of the 8 frames of the video 4 are explained'])
    """
    if isinstance(given, (str, Path)):
        frames, times = read_video(Path(given))
    else:
        rate = 1.0
        if isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], (int, float)):
            given, rate = given
        frames = np.stack([np.asarray(picture_of(one)) for one in given])
        times = np.arange(len(frames) + 1) / rate
    moments = _moments(times)
    wanted = count or min(len(moments), _MOST)
    seconds = moments[np.linspace(0, len(moments) - 1, wanted).round().astype(int)]
    chosen = np.searchsorted(times[:-1], seconds, "right") - 1
    if wanted < len(frames):
        notes.append(f"of the {len(frames)} frames of the video {wanted} are explained")
    elif len(set(chosen.tolist())) < wanted:
        notes.append(
            f"the video has {len(frames)} frames, and the model takes {wanted}: some are shown again"
        )
    return frames[chosen], tuple(round(float(one), 4) for one in seconds)


def _moments(times: NDArray[Any]) -> NDArray[Any]:
    """The seconds from which frames are chosen: as many as there are frames, or, where some stand longer than
    others (animations leave out frames that repeat), one for each of the shortest ones' length.

    Example:
        >>> _moments(np.array([0.0, 1.0, 1.5, 2.0]))
        array([0. , 0.5, 1. , 1.5])
    """
    lengths = np.diff(times)
    even = lengths.mean()
    if len(lengths) < 2 or np.abs(lengths - even).max() <= 0.5 * even:
        return times[:-1]
    count = min(round((times[-1] - times[0]) / max(lengths.min(), 1e-3)), _LONGEST)
    seconds: NDArray[Any] = np.linspace(times[0], times[-1], count, endpoint=False).round(4)
    return seconds


def read_video(path: Path) -> tuple[Frames, NDArray[np.float64]]:
    """All frames of a file, the seconds at which each begins to stand, and the one at which the last ends.

    Raises:
        InputError: no such file, it cannot be read, or PyAV is not installed.
    """
    if not path.is_file():
        raise InputError("there is no such video", where=str(path))
    reader = _animation if path.suffix.lower() in ANIMATIONS else _film
    try:
        frames, times = reader(path)
    except InputError:
        raise
    except Exception as error:  # each reader says what it likes of a damaged file
        raise InputError(
            "the file cannot be read as a video", where=str(path), found=first_line(error)
        ) from error
    if not frames:
        raise InputError("the video has no frames", where=str(path))
    return np.stack(frames), np.asarray(times, dtype=np.float64)


def _animation(path: Path) -> tuple[list[Any], list[float]]:
    from PIL import Image, ImageSequence

    frames: list[Any] = []
    times: list[float] = []
    now = 0.0
    with Image.open(path) as image:
        for frame in ImageSequence.Iterator(image):
            frames.append(np.asarray(frame.convert("RGB")))
            times.append(now)
            now += float(frame.info.get("duration", 100)) / 1000
            if len(frames) >= _LONGEST:
                break
    return frames, [*times, now]


def _film(path: Path) -> tuple[list[Any], list[float]]:
    try:
        import av
    except ImportError as error:
        raise InputError(
            "videos of this form are read by PyAV, which is not installed",
            where=str(path),
            expected=f"an animation ({', '.join(ANIMATIONS)}), or PyAV",
            hint="install it: pip install 'fxplain[video]'",
        ) from error
    frames: list[Any] = []
    times: list[float] = []
    with av.open(str(path)) as file:
        for frame in file.decode(video=0):
            frames.append(frame.to_ndarray(format="rgb24"))
            times.append(float(frame.time or 0.0))
            if len(frames) >= _LONGEST:
                break
    step = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1.0
    return frames, [*times, times[-1] + step] if times else []


def count_of(model: Any) -> int | None:
    """How many frames a model takes, by its configuration; None where it does not say."""
    config = getattr(model, "config", None)
    for part in (config, getattr(config, "vision_config", None)):
        for name in ("num_frames", "frames_per_clip"):
            found = getattr(part, name, None)
            if isinstance(found, int):
                return found
    return None
