"""What every loader returns: the model, and how files and texts become its inputs and what a person sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fxplain.adapters.processors import Processors
from fxplain.adapters.show import Show
from fxplain.adapters.tensors import on_device_of, read_tensors, tensor_items
from fxplain.errors import InputError

if TYPE_CHECKING:
    from fxplain.display import Display, Laid, Series


@dataclass(frozen=True)
class LoadOptions:
    """What a person allows and wants while a model is loaded; nothing unsafe is on by default.

    Args:
        allow_pickle: load weights and programs from pickles, which can run code.
        allow_remote_code: run modelling code that comes with a model.
        random_weights: build a named architecture without fetching weights.
        device: where the model goes, as torch spells it.
    """

    allow_pickle: bool = False
    allow_remote_code: bool = False
    random_weights: bool = False
    device: str | None = None


@dataclass(frozen=True)
class Request:
    """What a person hands over to be explained.

    Args:
        images: picture files, or pictures.
        texts: one for each sample.
        pairs: to each text a second one.
        chat: a conversation in place of a text.
        sounds: sound files, or arrays.
        videos: video files, or frames.
        decoder_text: what the decoder has said so far.
        given: whatever was handed over, for a function that makes inputs of it.
        special: whether the tokenizer adds its special tokens.
        learned: what the encoder has found out.
    """

    images: tuple[Any, ...] = ()
    texts: tuple[str, ...] = ()
    decoder_text: str | None = None
    pairs: tuple[str, ...] = ()
    chat: tuple[Mapping[str, Any], ...] = ()
    sounds: tuple[Any, ...] = ()
    videos: tuple[Any, ...] = ()
    given: Any = None
    special: bool = True
    learned: Learned = field(default_factory=lambda: Learned())

    @property
    def notes(self) -> list[str]:
        """What a person should know of how the request was read; the encoder adds to it."""
        return self.learned.notes

    @property
    def empty(self) -> bool:
        """Whether nothing was handed over."""
        things = (self.images, self.texts, self.chat, self.sounds, self.videos)
        return not any(things) and self.decoder_text is None and self.given is None


@dataclass(frozen=True)
class Learned:
    """What an encoder finds out about a request.

    Args:
        notes: what a person should know of how it was read: a text was cut.
        turns: input of ids -> for each sample where turns lie: first token, the one after the last, whose.
        texts: input of ids -> the texts its rows were made from, where these are not the request's.
        series: input -> for each sample the sound that it was made from.
        times: input -> the seconds at which the frames of a video stand.
    """

    notes: list[str] = field(default_factory=list)
    turns: dict[str, tuple[tuple[tuple[int, int, str], ...], ...]] = field(default_factory=dict)
    texts: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    series: dict[str, tuple[Series, ...]] = field(default_factory=dict)
    times: dict[str, tuple[float, ...]] = field(default_factory=dict)


Encode = Callable[[Request], Any]
"""Turns a request into the model's inputs, by name if it can; raises InputError for what it cannot take."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A loaded model with what its ecosystem knows about its inputs.

    Args:
        model: a module, or an exported program.
        name: how to call it in titles and file names.
        encode: pictures and texts -> the model's inputs; or a pair of them and a Display.
        show: inputs -> pictures and token texts.
        inputs: inputs that came with the model (a factory's, a program's), or None.
        dummy: makes inputs of the right form when a person gives none, or None.
        labels: names of the targets, index -> name.
        notes: what a person should know about the loading.
        processors: the tokenizer and its like, where they are known.

    Example:
        >>> import torch
        >>> loaded = Loaded(torch.nn.Identity(), "identity", inputs=torch.ones(1, 2))
        >>> loaded.prepare()[0]
        tensor([[1., 1.]])
    """

    model: Any
    name: str
    encode: Encode | None = None
    show: Show = field(default_factory=Show)
    inputs: Any = None
    dummy: Callable[[], Any] | None = None
    labels: Mapping[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    processors: Processors | None = None

    def prepare(
        self,
        *,
        image: Any = (),
        text: str | Sequence[str] = (),
        input: Path | str | None = None,
        decoder_text: str | None = None,
        **more: Any,
    ) -> tuple[Any, Display]:
        """Inputs for the model, and what to show for them.

        Args:
            image: picture files, or pictures (of Pillow, or uint8 [H, W, 3]), one per sample.
            text: texts, one per sample (or the candidate texts of a model that compares).
            input: a file of tensors; merged with the rest when it holds named ones.
            decoder_text: what the decoder of an encoder-decoder has said so far.
            more: ``text_pair``, a second text to each; ``chat``, a list of messages; ``audio``, sounds as
                :func:`fxplain.adapters.media.audio.sound_of` takes them; ``video``, as
                :func:`fxplain.adapters.media.video.frames_of` takes them; ``given``, anything, for a model
                whose processor is a function.

        Returns:
            The inputs, and a Display whose spaces are named as the *inputs* they come from.

        Raises:
            InputError: nothing was given and the model came with nothing, or it cannot take what was given.
        """
        request = _request(image, text, decoder_text, more)
        named, shown = self._encoded(request)
        if input is not None:
            inputs = _merged(named, read_tensors(Path(input)), Path(input))
        elif named is not None:
            inputs = named
        elif self.inputs is not None:
            inputs = self.inputs
        else:
            raise InputError(
                "there is nothing to explain",
                expected="a picture (--image), a text (--text) or a file of tensors (--input)",
                found="none of them",
            )
        inputs = on_device_of(self.model, inputs)
        return inputs, self._shown(inputs, request) if shown is None else shown

    def example(self) -> Any:
        """Inputs to trace the model with when a person gives none.

        Raises:
            InputError: nothing is known about the model's inputs.
        """
        inputs = self.inputs if self.inputs is not None or self.dummy is None else self.dummy()
        if inputs is None:
            raise InputError(
                f"what {self.name} takes as inputs is not known",
                expected="a factory that returns (model, inputs), or inputs on the command line",
                hint="give --image, --text or --input FILE.pt",
            )
        return on_device_of(self.model, inputs)

    def display(self, inputs: Any, captions: Sequence[str] = ()) -> Display:
        """Pictures and token texts of these inputs, by the name of the input."""
        return self.show.display(tensor_items(self.model, inputs), self.labels, self.name, captions)

    def _shown(self, inputs: Any, request: Request) -> Display:
        captions = [one.name if isinstance(one, Path) else "" for one in request.images]
        written: Sequence[Any] = request.texts
        if request.pairs:
            written = tuple(zip(request.texts, request.pairs, strict=True))
        texts: dict[str, Sequence[Any]] = {self.show.ids: written, **request.learned.texts}
        if request.decoder_text is not None:
            texts["decoder_input_ids"] = (request.decoder_text,)
        shown = self.show.display(tensor_items(self.model, inputs), self.labels, self.name, captions, texts)
        learned = request.learned
        return replace(
            shown,
            notes=tuple(dict.fromkeys(request.notes)),
            turns=learned.turns,
            series=learned.series,
            times=learned.times,
            laid=self._laid(inputs),
            frames={**shown.frames, **_pictures(shown, request)},
        )

    def _laid(self, inputs: Any) -> dict[str, Sequence[Laid]]:
        from fxplain.adapters.media.patches import laid_out

        seen = None if self.processors is None else self.processors.image
        return {} if seen is None else laid_out(seen, dict(tensor_items(self.model, inputs)), self.show)

    def _encoded(self, request: Request) -> tuple[Any, Display | None]:
        """The inputs, or None if nothing was given; and what to show, if that comes along."""
        if request.empty:
            return None, None
        if self.encode is None:
            raise InputError(
                f"{self.name} comes with nothing that turns pictures or texts into its inputs",
                expected="tensors, as the model is called with",
                hint="save them with torch.save and give --input FILE.pt",
            )
        made = self.encode(request)
        if isinstance(made, tuple) and len(made) == 2 and hasattr(made[1], "tokens"):
            return made
        return dict(made) if isinstance(made, Mapping) else made, None


def _pictures(shown: Display, request: Request) -> dict[str, Sequence[str]]:
    """What each picture of an input that holds several for one text is called, where no video was given."""
    found: dict[str, Sequence[str]] = {}
    for name, images in shown.images.items():
        count = len(images[0]) if len(images) == 1 and np.ndim(images[0]) == 4 else 1
        if count > 1 and request.images and not request.videos:
            what = "picture" if count == len(request.images) else "part"  # large ones are cut
            found[name] = [f"{what} {number}" for number in range(1, count + 1)]
    return found


def _request(image: Any, text: Any, decoder_text: str | None, more: Mapping[str, Any]) -> Request:
    unknown = set(more) - {"text_pair", "chat", "audio", "video", "given"}
    if unknown:
        raise TypeError(f"there is no {unknown.pop()}=")
    return Request(
        images=tuple(Path(one) if isinstance(one, str) else one for one in _several(image)),
        texts=tuple(_several(text)),
        decoder_text=decoder_text,
        pairs=tuple(_several(more.get("text_pair", ()))),
        chat=tuple(more.get("chat", ())),
        sounds=_sounds(more.get("audio", ())),
        videos=_videos(more.get("video", ())),
        given=more.get("given"),
    )


def _several(value: Any) -> tuple[Any, ...]:
    """Several things, of one thing or of several."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _sounds(value: Any) -> tuple[Any, ...]:
    """Several sounds, of one or of several; a pair of an array and its rate is one."""
    pair = isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], int)
    array = isinstance(value, (list, tuple)) and len(value) > 0 and isinstance(value[0], float)
    return (value,) if pair or array else _several(value)


def _videos(value: Any) -> tuple[Any, ...]:
    """Several videos, of one or of several: files, or pairs of frames and their rate, in a list."""
    if isinstance(value, list) and value and isinstance(value[0], (str, Path, tuple)):
        return tuple(value)
    return () if isinstance(value, tuple) and not value else (value,)


def _merged(named: Any, read: Any, path: Path) -> Any:
    if not named:
        return read
    if isinstance(read, dict) and isinstance(named, dict):
        return {**named, **read}
    raise InputError(
        "a picture or text can only be joined by tensors that have names",
        where=str(path),
        expected="a dict of tensors",
        found=type(read).__name__,
    )
