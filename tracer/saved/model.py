"""What stands for the model where only its captured graph is left: weights by their paths, and one graph."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fxplain.saved.program import run_flat
from fxplain.tasks import UNKNOWN, Task

if TYPE_CHECKING:
    from fxplain.attention.labelled import Labelled

Parameter = Sequence[Any]
"""Name, kind and whether there is a default, of one parameter of ``forward``."""


class SavedModel(nn.Module):
    """A traced model from a file. It takes inputs of the layout that it was traced with, and no others.

    Args:
        state: the parameters and buffers by path, as the model had them.
        parameters: those of the model's ``forward``, so that inputs have the names they had.
    """

    def __init__(self, state: Mapping[str, Tensor], parameters: Sequence[Parameter]) -> None:
        super().__init__()
        self.eval()
        for path, tensor in state.items():
            self._put(path.split("."), tensor)
        self.fxplain_task: Task = UNKNOWN
        self.labelled: Labelled | None = None
        """What was found in the graph; set once, after both are made."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._run(args, kwargs)

        known = [
            inspect.Parameter(name, _KINDS[kind], default=_default(given)) for name, kind, given in parameters
        ]
        forward.__signature__ = inspect.Signature(known)  # type: ignore[attr-defined]
        self.__dict__["forward"] = forward

    def _put(self, path: Sequence[str], tensor: Tensor) -> None:
        home: nn.Module = self
        for name in path[:-1]:
            if name not in home._modules:
                home.add_module(name, nn.Module())
            home = home.get_submodule(name)
        if isinstance(tensor, nn.Parameter):
            home.register_parameter(path[-1], tensor)
        else:
            home.register_buffer(path[-1], tensor)

    def _run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        assert self.labelled is not None
        captured = self.labelled.captured
        values = captured.bind(args, kwargs)
        return captured.rebuild(run_flat(captured.graph, list(values.values())))


def parameters_of(model: Any) -> list[list[Any]]:
    """The parameters of ``forward``; none where there is no signature to read."""
    try:
        found = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError, AttributeError):
        return []
    return [[p.name, p.kind.name, p.default is not p.empty] for p in found]


_KINDS = {
    kind.name: kind
    for kind in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.VAR_KEYWORD,
    )
}


def _default(given: bool) -> Any:
    return None if given else inspect.Parameter.empty
