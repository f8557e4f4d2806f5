"""Signs of life for what takes longer than a person likes to wait, in a terminal and in a notebook."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

DELAY = 2.0
"""Seconds before anything is shown."""
_COUNTED = "{desc} {bar} {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"
_TIMED = "{desc} ... {elapsed}"

Advance = Callable[[int], None]
_BAR: ContextVar[Any] = ContextVar("bar", default=None)


def watched() -> bool:
    """Whether a person sees what is written on stderr, or reads a notebook."""
    return "ipykernel" in sys.modules or bool(getattr(sys.stderr, "isatty", lambda: False)())


@contextmanager
def working(what: str, total: int = 0, delay: float = DELAY) -> Iterator[Advance]:
    """A line with the time that has passed, and the part that is done, while the body runs.

    Nothing is shown where nobody looks, nor before ``delay`` seconds. What works inside of something shown
    already is named on its line.

    Args:
        what: is done.
        total: steps of it; 0 if they are not known. The body calls what it is given with how many are done.
        delay: seconds before it is shown.

    Example:
        >>> with working("explaining", total=3) as advance:
        ...     advance(1)
    """
    outer = _BAR.get()
    if not watched():
        yield _unseen
    elif outer is not None:
        with _named(outer, what, total):
            yield outer.update
    else:
        with _shown(what, total, delay) as bar:
            yield bar.update


def _unseen(count: int) -> None:
    """Nobody looks."""


@contextmanager
def _named(bar: Any, what: str, total: int) -> Iterator[None]:
    """The line of what works outside, with what is done inside."""
    before = (bar.desc, bar.total, bar.bar_format, bar.n)
    bar.desc, bar.total, bar.n = what, total or bar.total, 0 if total else bar.n
    bar.bar_format = _COUNTED if total else bar.bar_format
    try:
        yield
    finally:
        bar.desc, bar.total, bar.bar_format, bar.n = before


@contextmanager
def _shown(what: str, total: int, delay: float) -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of notebooks without widgets: a plain line does
        from tqdm.auto import tqdm
    form = _COUNTED if total else _TIMED
    own: dict[str, Any] = {} if "ipykernel" in sys.modules else {"bar_format": form, "file": sys.stderr}
    done = threading.Event()
    with tqdm(total=total, desc=what, leave=False, delay=delay, **own) as bar:

        def tick() -> None:
            wait = delay or 0.5
            while not done.wait(wait):
                wait = 0.5
                bar.refresh()

        ticker = threading.Thread(target=tick, daemon=True)
        token = _BAR.set(bar)
        ticker.start()
        try:
            yield bar
        finally:
            _BAR.reset(token)
            done.set()
            ticker.join()
