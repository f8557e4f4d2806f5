"""A captured model: a flat graph into which every tensor comes as a placeholder, and how to bind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fxplain.capture.inputs import Layout, check_layout, flatten
from fxplain.capture.outputs import rebuild
from fxplain.capture.path import Path
from fxplain.capture.placeholder import Placeholder
from fxplain.errors import VerificationError


@dataclass(frozen=True)
class Draft:
    """What a strategy of capture returns: a graph that has not been verified yet."""

    graph: torch.fx.GraphModule
    placeholders: tuple[Placeholder, ...]
    constants: Mapping[str, Tensor]
    """By name of the placeholder node; tensors that are neither inputs, parameters nor buffers."""
    specialised: bool = False
    notes: tuple[str, ...] = ()
    drew: bool = False
    """Random numbers were drawn, which the graph holds as constants."""
    path: Path | None = None
    """Of a recording: which other inputs it holds for."""


def pruned(draft: Draft) -> Draft:
    """The draft without placeholders that nothing reads; inputs stay, read or not. The last of the passes: it
    compiles the graph, which they have changed."""
    nodes = {node.name: node for node in draft.graph.graph.nodes}
    kept = []
    for placeholder in draft.placeholders:
        if placeholder.kind == "input" or nodes[placeholder.node].users:
            kept.append(placeholder)
        else:
            draft.graph.graph.erase_node(nodes[placeholder.node])
    draft.graph.recompile()
    constants = {p.node: draft.constants[p.node] for p in kept if p.node in draft.constants}
    return replace(draft, placeholders=tuple(kept), constants=constants)


@dataclass(frozen=True)
class Captured:
    """A model as a flat graph of ATen operations, verified against the model on the input of its capture."""

    graph: torch.fx.GraphModule
    """All tensors come in as placeholders; the output is a flat tuple of tensors."""
    placeholders: tuple[Placeholder, ...]
    """In the order of the graph."""
    outputs: tuple[str, ...]
    """Names of the output tensors: ``"logits"``, ``"hidden_states.0"``; ``"output"`` for a bare tensor."""
    strategy: str
    """``"export"``, ``"record"``, ``"program"``, or ``"sizes"`` (one export for inputs of several sizes)."""
    reasons: Mapping[str, str]
    """For each strategy that was tried before: why it failed."""
    specialised: bool
    """The graph holds for inputs that take the path of its capture only (values, not just shapes)."""
    verified: float
    """Largest relative difference between graph and model at capture."""
    notes: tuple[str, ...]
    model: nn.Module = field(repr=False)
    """The live model, whose weights :meth:`bind` reads; an exported program as a module."""
    layout: Layout = field(repr=False)
    """The structure of the inputs at capture."""
    structure: Any = field(repr=False)
    """The structure of the outputs."""
    constants: Mapping[str, Tensor] = field(repr=False)
    example: Sequence[Tensor] = field(default=(), repr=False)
    """The tensors of the inputs at capture, in the order of ``layout.tensors``."""
    drawn_from: Callable[[], None] | None = field(default=None, repr=False)
    """Puts back the random states that the graph's random constants were drawn from."""
    path: Path | None = field(default=None, repr=False)
    """Of a recording: which other inputs it holds for."""

    @property
    def output_nodes(self) -> tuple[torch.fx.Node | None, ...]:
        """For each output the node that makes it; None for one that is no node."""
        (returned,) = (node for node in self.graph.graph.nodes if node.op == "output")
        return tuple(made if isinstance(made, torch.fx.Node) else None for made in returned.args[0])

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """The tensor for each placeholder node: the model's as they are now, the inputs as given.

        Parameters and buffers are detached views of the live ones, so that updates are seen and no gradient
        reaches the model.

        Raises:
            InputError: the inputs differ from those of the capture in names, shapes, dtypes or structure.
        """
        tensors, layout = flatten(self.model, args, kwargs, self.layout)
        check_layout(self.layout, layout)
        return self.bind_tensors(tensors)

    def bind_tensors(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """:meth:`bind` for inputs that are flat already, in the order of ``layout.tensors``."""
        given = iter(tensors)
        bound: dict[str, Tensor] = {}
        for placeholder in self.placeholders:
            if placeholder.kind == "input":
                bound[placeholder.node] = usable(next(given))
            elif placeholder.node in self.constants:
                bound[placeholder.node] = usable(self.constants[placeholder.node]).detach()
            else:
                live = usable(self._live(placeholder.path)).detach()
                self._check_alike(placeholder, live)
                bound[placeholder.node] = live
        return bound

    def holds_for(self, tensors: Sequence[Tensor]) -> bool:
        """Whether the graph stands for the model on inputs of these values too, in the order of
        ``layout.tensors``. An output of the model is still to be compared: what it computes outside of torch
        leaves no trace."""
        if not self.specialised or self.path is None:
            return not self.specialised
        inputs = {spec.path: usable(t) for spec, t in zip(self.layout.tensors, tensors, strict=True)}
        live = {p: self._live(p.path).detach() for p in self.path.live}
        return self.path.taken_by(inputs, {placeholder.node: usable(t) for placeholder, t in live.items()})

    def _live(self, path: str) -> Tensor:
        tensor: Any = self.model
        for name in path.split("."):
            tensor = getattr(tensor, name, None)
        if not isinstance(tensor, Tensor):
            raise _changed(path, "the parameter or buffer that was there", "none of that name")
        return tensor

    def _check_alike(self, placeholder: Placeholder, live: Tensor) -> None:
        """Refuse a tensor of another shape or type than the graph was made for."""
        known = self._made_for.get(placeholder.node)
        if known is not None and known != (tuple(live.shape), live.dtype):
            raise _changed(placeholder.path, _said(*known), _said(tuple(live.shape), live.dtype))

    @cached_property
    def _made_for(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        values = {
            node.name: node.meta.get("val") for node in self.graph.graph.nodes if node.op == "placeholder"
        }
        known = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        return {
            name: (tuple(value.shape), value.dtype)
            for name, value in known.items()
            if all(isinstance(size, int) for size in value.shape)
        }

    def rebuild(self, tensors: Sequence[Tensor]) -> Any:
        """The model's own output structure around these tensors; caches and other objects become None."""
        return rebuild(self.structure, tensors)


def owned(tensor: Tensor) -> Tensor:
    """A copy that may be written into, and that autograd takes wherever the tensor was made."""
    with torch.inference_mode(False):
        return tensor.detach().clone()


def usable(tensor: Tensor) -> Tensor:
    """The tensor itself; a copy where it was made in inference mode and autograd would refuse it, or where it
    is sparse (:mod:`fxplain.capture.passes.dense`)."""
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if not tensor.is_inference():
        return tensor
    with torch.inference_mode(False):
        return tensor.clone()


def _said(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')}{list(shape)}"


def _changed(path: str, expected: str, found: str) -> VerificationError:
    return VerificationError(
        "the model has changed since it was traced",
        where=path,
        expected=expected,
        found=found,
        hint="trace it again; new values of the same weights need no new trace",
    )
