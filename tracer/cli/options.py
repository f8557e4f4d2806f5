"""What every command shares: what was asked for, how errors are told, and signs of life while it runs."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fxplain import progress
from fxplain.errors import FxplainError, InputError
from fxplain.progress import Advance

if TYPE_CHECKING:
    from fxplain.adapters import Loaded, LoadOptions


class Form(StrEnum):
    """How ``inspect`` shows what it found."""

    table = "table"
    json = "json"
    dot = "dot"
    graphml = "graphml"
    html = "html"


@dataclass(frozen=True)
class Ask:
    """The model and inputs named on the command line."""

    model: str
    images: tuple[Path, ...] = ()
    texts: tuple[str, ...] = ()
    input: Path | None = None
    decoder_text: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    pairs: tuple[str, ...] = ()
    chat: str | None = None
    audio: tuple[Path, ...] = ()
    video: tuple[Path, ...] = ()
    axis: str | None = None

    def with_options(
        self, allow_pickle: bool, allow_remote_code: bool, random_weights: bool, device: str | None
    ) -> Ask:
        """The same, with what is allowed while loading."""
        options = {
            "allow_pickle": allow_pickle,
            "allow_remote_code": allow_remote_code,
            "random_weights": random_weights,
            "device": device,
        }
        return replace(self, options=options)

    @property
    def has_inputs(self) -> bool:
        """Whether any input was given."""
        given = (self.images, self.texts, self.audio, self.video, self.chat)
        return any(given) or self.input is not None or self.decoder_text is not None

    def load(self) -> Loaded:
        """Load the model."""
        from fxplain.adapters import LoadOptions, load

        options: LoadOptions = LoadOptions(**self.options)
        with working(f"loading {self.model}"):
            return load(self.model, options)

    def prepare(self, loaded: Loaded) -> tuple[Any, Any]:
        """The inputs, and what to show for them."""
        more: dict[str, Any] = {"text_pair": self.pairs, "audio": list(self.audio)}
        more |= {"video": list(self.video)} if self.video else {}
        if self.chat is not None:
            more["chat"] = messages(self.chat)
        return loaded.prepare(
            image=self.images, text=self.texts, input=self.input, decoder_text=self.decoder_text, **more
        )

    def example(self, loaded: Loaded) -> tuple[Any, tuple[str, ...]]:
        """Inputs to trace with, those that were given or made-up ones, and notes on how they were made."""
        if not self.has_inputs:
            return loaded.example(), tuple(loaded.notes)
        inputs, display = self.prepare(loaded)
        return inputs, (*loaded.notes, *display.notes)


def tell(notes: Iterable[str], of: str = "") -> None:
    """Print notes on standard error, each once."""
    for note in dict.fromkeys(notes):
        typer.echo(f"note: {of}{note}", err=True)


def messages(text: str) -> list[dict[str, Any]]:
    """The messages of a conversation: those of a JSON file, else the text as a user's only message.

    Raises:
        InputError: the file holds no messages.
    """
    path = Path(text)
    if path.suffix.lower() != ".json":
        return [{"role": "user", "content": text}]
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("the conversation cannot be read", where=text, found=str(error)) from error
    if not isinstance(found, list) or not all(isinstance(m, dict) and "role" in m for m in found):
        raise InputError(
            "the file holds no conversation",
            where=text,
            expected='[{"role": "user", "content": "..."}, ...]',
            found=type(found).__name__,
        )
    return found


@contextmanager
def reported(debug: bool, code: int = 1) -> Iterator[None]:
    """Tell our own errors in plain words and exit with ``code``; others are bugs and keep their traceback."""
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter(
                    "ignore"
                )  # other libraries' warnings mean nothing to who runs a command
            yield
    except FxplainError as error:
        if debug:
            raise
        typer.echo(f"fxplain: {type(error).__name__}: {error}", err=True)
        raise typer.Exit(code) from error


def working(what: str) -> AbstractContextManager[Advance]:
    """A line with the time passed on stderr while the body runs, if a person sees it."""
    return progress.working(what, delay=0.0)
