"""What a registry of models gives the atlas.

A registry is a module of this package with two functions and no list of what is inside the models::

    def names() -> list[str]: ...
    def build(name: str, attention: str | None) -> Case: ...

``names`` may import the library but builds nothing. ``build`` makes one model at toy size, with random
weights that are the same at every call, in evaluation mode, and inputs it can be called with. ``attention``
asks for one implementation. A registry whose models have no such choice has ``IMPLEMENTATIONS = (None,)``,
one that has it ``IMPLEMENTATIONS = ("eager", "sdpa")``: the first is judged, and the relevance of the others
must equal it. A model that cannot be built raises ``NotBuiltError``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol, cast

from torch import Tensor, nn

REGISTRIES: Mapping[str, str] = {
    "transformers": "transformers_models",
    "timm": "timm_models",
    "torchvision": "torchvision_models",
    "torch": "torch_models",
    "diffusers": "diffusers_models",
}
"""Name for the command line -> module of this package."""


UNUSED = "unused: "
"""How the name of a reported map begins that no output of the model depends on."""


@dataclass(frozen=True)
class Case:
    """One model, ready to be judged."""

    model: nn.Module
    inputs: Any
    """A tensor, a tuple or a dict, just as the model is called."""
    target: Any = None
    """What to explain, if the arg max of the output will not do."""
    reported: Callable[[], Mapping[str, Tensor]] | None = None
    """Runs the model again and returns the attention maps it reports itself; None: it has none to report."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """What the results should tell of how this was built, such as the class of the model."""


class NotBuiltError(Exception):
    """A model that the registry lists and that cannot be built or called here.

    Args:
        kind: the class of the reason, in few words, such as "needs a package" or "inputs unknown".
        message: the reason in full.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Registry(Protocol):
    """What a module of models offers."""

    IMPLEMENTATIONS: tuple[str | None, ...]

    def names(self) -> list[str]: ...

    def build(self, name: str, attention: str | None) -> Case: ...


def registry(name: str) -> Registry:
    """The module of one registry: one of :data:`REGISTRIES`, or any other by its full name.

    Raises:
        ImportError: the library is not installed.
    """
    return cast(Registry, import_module(f"atlas.{REGISTRIES[name]}" if name in REGISTRIES else name))


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested outputs."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inside in value.values():
            yield from tensors(inside)
    elif isinstance(value, (list, tuple)):
        for inside in value:
            yield from tensors(inside)
