"""What a person wants to see beside the numbers: the pictures, the words and the names of the targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxplain.questions import Question

Picture = NDArray[np.uint8]
"""[H, W, 3], or [T, H, W, 3] for a video; upright, as the model saw it (cropped, not normalised)."""


@dataclass(frozen=True)
class Look:
    """How relevance is laid over a picture.

    Args:
        colours: a colour map of matplotlib (``inferno``, ``viridis``); empty for fxplain's own.
        opacity: of the most relevant place, 0 to 1; a place without relevance shows the picture as it is.
        bare: the map alone, without the picture.
        stretch: use all colours even where the relevance is nearly the same everywhere. Without it such a map
            is pale.
    """

    colours: str = ""
    opacity: float = 0.75
    bare: bool = False
    stretch: bool = False


@dataclass(frozen=True, eq=False)
class Series:
    """What lies under a line of tokens: a sound, or measurements one after the other.

    Args:
        values: ``[place]`` or ``[place, channel]``; of a sound one channel, from -1 to 1.
        axis: what the places are counted in, with its unit: ``seconds``, ``hour``.
        start: of the first place, on the axis.
        step: from one place to the next.
        names: of the places, where they have names: months.
        covers: where on the axis the tokens begin and end; None: where the values do. An input that was
            padded goes on behind them.
        shape: of an input whose tokens have rows and columns, such as a spectrogram: its places along the
            axis, and across.
        sound: whether it can be heard.

    Example:
        >>> months = Series(np.arange(4.0), "month", names=["Jan", "Feb", "Mar", "Apr"])
        >>> [months.words(token, 2) for token in (0, 1)]
        ['Jan to Feb', 'Mar to Apr']
        >>> Series(np.zeros(16000), "seconds", step=1 / 16000).words(0, 50)
        '0.00-0.02 seconds'
    """

    values: NDArray[Any]
    axis: str = "place"
    start: float = 0.0
    step: float = 1.0
    names: Sequence[str] = ()
    covers: tuple[float, float] | None = None
    shape: tuple[int, int] | None = None
    sound: bool = False

    @property
    def ends(self) -> tuple[float, float]:
        """Where on the axis the values begin and end."""
        return self.start, self.start + len(self.values) * self.step

    def edges(self, count: int) -> NDArray[Any]:
        """[count + 1]: where on the axis each of so many tokens begins, and where the last one ends."""
        return np.linspace(*(self.covers or self.ends), count + 1)

    def words(self, token: int, count: int) -> str:
        """Where one of so many tokens lies."""
        first, last = (float(edge) for edge in self.edges(count)[token : token + 2])
        return self.stretch(first, last)

    def stretch(self, first: float, last: float) -> str:
        """A part of the axis in words."""
        places = [(end - self.start) / self.step for end in (first, last)]
        low, high = round(places[0]), max(round(places[1]) - 1, round(places[0]))
        if 0 <= low < len(self.names):
            ends = dict.fromkeys((self.names[low], self.names[min(high, len(self.names) - 1)]))
            return " to ".join(ends)
        if self.step >= 1 and high <= low:
            return f"{self.axis} {self.start + low * self.step:g}"
        digits = 0 if self.step >= 1 else 2
        return f"{first:.{digits}f}-{last:.{digits}f} {self.axis}"

    def along(self, grid: Sequence[int]) -> int:
        """Which axis of a grid of tokens runs along the series: the one that divides the input like the
        other."""
        if len(grid) < 2 or self.shape is None:
            return len(grid) - 1
        own, other = self.shape
        rows, columns = grid[-2:]
        skew = [abs(np.log(own / a * b / other)) for a, b in ((rows, columns), (columns, rows))]
        return len(grid) - 2 + int(skew[1] < skew[0])


@dataclass(frozen=True, eq=False)
class Laid:
    """One of several pictures that share a token space.

    Args:
        picture: uint8 [H, W, 3].
        tokens: [rows, columns]: which token of the space stands at each place.
    """

    picture: Picture
    tokens: NDArray[Any]


@dataclass(frozen=True, eq=False)
class Display:
    """What to show for each token space; everything is optional.

    Args:
        images: token space -> one picture per sample, uint8 [H, W, 3] or, for video, [T, H, W, 3].
        tokens: token space -> per sample the texts of its tokens. As :class:`TokenText` they hold their own
            spaces and line breaks; plain strings are words, or tokens as a tokenizer spells them.
        labels: names of the targets: index -> name, or a sequence indexed by the target.
        title: heads the report and the picture, e.g. the model's name.
        captions: one line per sample, e.g. the name of the file it came from.
        notes: what a person should know of how the inputs were made, e.g. that a text was cut.
        turns: token space -> per sample the parts of a conversation, or of a pair of texts: first token, the
            one after the last, and what it is.
        seen: token space -> per sample which part of the picture's height and width is picture; the rest, at
            the bottom and on the right, is padding, which is not shown.
        look: how relevance is laid over pictures.
        frames: token space -> what each frame of a video, or each of several pictures in one, is called.
        series: token space -> per sample the sound or the measurements that its tokens lie over.
        times: token space -> the seconds at which the frames of a video stand.
        laid: token space -> pictures of one sample, each of a size of its own, that share the space.

    Example:
        >>> display = Display(tokens={"input_ids": [["[CLS]", "good", "[SEP]"]]}, labels=["bad", "good"])
        >>> display.target_name(((1,),), 0)
        '1 (good)'
    """

    images: Mapping[str, Sequence[Picture]] = field(default_factory=dict)
    tokens: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)
    labels: Mapping[int, str] | Sequence[str] = ()
    title: str = ""
    captions: Sequence[str] = ()
    notes: Sequence[str] = ()
    turns: Mapping[str, Sequence[Sequence[tuple[int, int, str]]]] = field(default_factory=dict)
    seen: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    look: Look = field(default_factory=Look)
    frames: Mapping[str, Sequence[str]] = field(default_factory=dict)
    series: Mapping[str, Sequence[Series]] = field(default_factory=dict)
    times: Mapping[str, Sequence[float]] = field(default_factory=dict)
    laid: Mapping[str, Sequence[Laid]] = field(default_factory=dict)

    def image(self, space: str, sample: int) -> Picture | None:
        """The picture of one sample, or None; a grey one is given three channels."""
        pictures = self.images.get(space, ())
        if sample >= len(pictures):
            return None
        picture = np.asarray(pictures[sample])
        return np.repeat(picture[..., None], 3, axis=-1) if picture.ndim == 2 else picture

    def frame(self, space: str, step: int, count: int) -> str:
        """What to call one of several frames."""
        names, times = self.frames.get(space, ()), self.times.get(space, ())
        if len(names) == count:
            return names[step]
        name = f"frame {step + 1} of {count}"
        if times and len(times) % count == 0:
            own = times[step * len(times) // count :][: len(times) // count]
            name = " to ".join(dict.fromkeys(f"{second:.2f}" for second in (own[0], own[-1]))) + " seconds"
        return name

    def line(self, space: str, sample: int) -> Series | None:
        """The sound or series of one sample, or None."""
        own = self.series.get(space, ())
        return own[sample] if sample < len(own) else None

    def part(self, space: str, sample: int) -> tuple[float, float]:
        """Which part of the height and width of one sample's picture is no padding."""
        parts = self.seen.get(space, ())
        return parts[sample] if sample < len(parts) else (1.0, 1.0)

    def texts(self, space: str, sample: int, size: int | None = None) -> Sequence[str] | None:
        """The token texts of one sample, or None.

        ``size``: how many tokens the space has in a sample. Where all texts together have as many (several
        texts beside one picture), they are one sample's.
        """
        samples = self.tokens.get(space, ())
        if len(samples) > 1 and sum(map(len, samples)) == size:
            return [text for texts in samples for text in texts]
        return samples[sample] if sample < len(samples) else None

    def caption(self, sample: int) -> str:
        """The line above one sample, or ''."""
        return self.captions[sample] if sample < len(self.captions) else ""

    def target_name(self, target: Any, sample: int) -> str:
        """The target of one sample in words: its index, and its name where there is one.

        The index is a tuple into the model's output; its last entry is taken for the class or word.
        """
        index = _of_sample(target, sample)
        if not isinstance(index, tuple):
            return str(index)
        name = self._label(index[-1]) if index else None
        text = ", ".join(str(entry) for entry in index)
        if name and name != name.strip():  # a word of a vocabulary, with the space that begins it
            name = repr(name)
        return f"{text} ({name})" if name else text

    def question(self, questions: Sequence[Question], sample: int) -> str:
        """What one sample's score answers, in words, with the names and texts that are known here."""
        if sample >= len(questions):
            return ""

        def before(space: str, place: int) -> str | None:
            texts = self.texts(space, sample)
            return None if texts is None else "".join(texts[max(0, place - 2) : place + 1])

        return questions[sample].named(self.labels).words(before)

    def _label(self, index: object) -> str | None:
        if not isinstance(index, int):
            return None
        if isinstance(self.labels, Mapping):
            return self.labels.get(index)
        return self.labels[index] if 0 <= index < len(self.labels) else None


def _of_sample(target: Any, sample: int) -> Any:
    """One sample's target: targets come as one tuple per sample, or as one for all."""
    if hasattr(target, "tolist"):
        target = target.tolist()
    if not isinstance(target, (tuple, list)):
        return (target,) if isinstance(target, int) else target
    if all(isinstance(entry, int) for entry in target):
        return tuple(target)
    own = target[sample] if sample < len(target) else ()
    return tuple(own) if isinstance(own, list) else own
