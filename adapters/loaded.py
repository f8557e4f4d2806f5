"""What every loader returns: the model, and how files and texts become its inputs and what a person sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxplain.adapters.show import Show
from fxplain.adapters.tensors import on_device_of, read_tensors, tensor_items
from fxplain.errors import InputError

if TYPE_CHECKING:
    from fxplain.display import Display


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
    """What a person hands over to be explained: pictures, texts, and what the decoder has said so far.

    The encoder adds to ``notes`` what a person should know of how the request was read: a text was cut.
    """

    images: tuple[Path, ...] = ()
    texts: tuple[str, ...] = ()
    decoder_text: str | None = None
    notes: list[str] = field(default_factory=list)


Encode = Callable[[Request], Mapping[str, Any]]
"""Turns a request into the model's keyword inputs; raises InputError for what the model cannot take."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A loaded model with what its ecosystem knows about its inputs.

    Args:
        model: a module, or an exported program.
        name: how to call it in titles and file names.
        encode: pictures and texts -> keyword inputs.
        show: inputs -> pictures and token texts.
        inputs: inputs that came with the model (a factory's, a program's), or None.
        dummy: makes inputs of the right form when a person gives none, or None.
        labels: names of the targets, index -> name.
        notes: what a person should know about the loading.

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

    def prepare(
        self,
        *,
        image: Path | str | Sequence[Path | str] = (),
        text: str | Sequence[str] = (),
        input: Path | str | None = None,
        decoder_text: str | None = None,
    ) -> tuple[Any, Display]:
        """Inputs for the model, and what to show for them.

        Args:
            image: picture files, one per sample.
            text: texts, one per sample (or the candidate texts of a model that compares).
            input: a file of tensors; merged with the rest when it holds named ones.
            decoder_text: what the decoder of an encoder-decoder has said so far.

        Returns:
            The inputs, and a Display whose spaces are named as the *inputs* they come from.

        Raises:
            InputError: nothing was given and the model came with nothing, or it cannot take what was given.
        """
        images = tuple(Path(one) for one in _several(image))
        request = Request(images, tuple(_several(text)), decoder_text)
        named = self._encoded(request)
        if input is not None:
            inputs = _merged(named, read_tensors(Path(input)), Path(input))
        elif named:
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
        captions = [path.name for path in request.images] if request.images else []
        texts = {"input_ids": request.texts}
        if decoder_text is not None:
            texts["decoder_input_ids"] = (decoder_text,)
        shown = self.show.display(tensor_items(self.model, inputs), self.labels, self.name, captions, texts)
        return inputs, replace(shown, notes=tuple(dict.fromkeys(request.notes)))

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

    def _encoded(self, request: Request) -> dict[str, Any]:
        if not request.images and not request.texts and request.decoder_text is None:
            return {}
        if self.encode is None:
            raise InputError(
                f"{self.name} comes with nothing that turns pictures or texts into its inputs",
                expected="tensors, as the model is called with",
                hint="save them with torch.save and give --input FILE.pt",
            )
        return dict(self.encode(request))


def _several(value: Any) -> tuple[Any, ...]:
    return (value,) if isinstance(value, (str, Path)) else tuple(value)


def _merged(named: dict[str, Any], read: Any, path: Path) -> Any:
    if not named:
        return read
    if isinstance(read, dict):
        return {**named, **read}
    raise InputError(
        "a picture or text can only be joined by tensors that have names",
        where=str(path),
        expected="a dict of tensors",
        found=type(read).__name__,
    )
