"""Activation checkpointing: the graph is run without gradients, and again in slices as backward needs it.

Of the forward pass only what crosses from one slice to another is held. The gradient goes back over the
slices, last to first: each is run again with gradients, and forgotten with all that was made in it, but for
the gradients of its attentions. Row mode asks for these in that very order, so that each can be forgotten as
soon as the rows have passed its attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

from fxplain.capture.captured import Captured
from fxplain.capture.guard import drawing_from, random_state
from fxplain.errors import MethodError
from fxplain.labels.call import op_name
from fxplain.labels.flows import Site
from fxplain.run.mask_flags import PlainMasks
from fxplain.run.replay import (
    NO_SURROGATES,
    Check,
    Replay,
    Surrogates,
    gradients_of,
    run_node,
    tap,
)
from fxplain.run.slices import Slice, slices_of
from fxplain.where import place_of


def checkpointed(
    captured: Captured,
    bound: Mapping[str, Tensor],
    sites: Iterable[Site],
    shapes: Mapping[str, tuple[int, ...]],
    gradients: bool,
    surrogates: Surrogates = NO_SURROGATES,
) -> Replay:
    """As :func:`fxplain.run.replay.replay`, with slices in place of all that backward would keep.

    Raises:
        MethodError: an operation writes into a tensor, which would be written into twice.
    """
    run = Sliced(captured, bound, tuple(sites), shapes, surrogates)
    outputs = run.forward(gradients)
    return Replay(outputs, run.tapped, Kept(run), run.causal, backward=run.backward)


class Sliced:
    """One run of a graph in slices."""

    def __init__(
        self,
        captured: Captured,
        bound: Mapping[str, Tensor],
        sites: tuple[Site, ...],
        shapes: Mapping[str, tuple[int, ...]],
        surrogates: Surrogates,
    ) -> None:
        graph = captured.graph.graph
        _refuse_writing(graph)
        self.captured, self.bound = captured, bound
        self.slices = slices_of(graph, sites, shapes)
        self.number = {n.name: at for at, own in enumerate(self.slices) for n in own.nodes}
        """By node, the slice that makes it."""
        masks = PlainMasks(sites)
        self.surrogates = {**dict.fromkeys(masks.nodes, masks.run), **surrogates}
        self.causal = masks.causal
        self.taps = {site.tap for site in sites}
        self.wanted = {node for site in sites for node in site.keeps}
        self.carriers: set[fx.Node] = set()
        """What a gradient goes back from to something that is tapped."""
        self.outputs = [n for n in next(iter(reversed(graph.nodes))).args[0] if isinstance(n, fx.Node)]
        self.leaves: dict[fx.Node, Tensor] = {}
        """The outputs, as gradients are taken of the scores to them."""
        self.crossing: dict[fx.Node, Any] = {n: bound[n.name] for n in graph.nodes if n.op == "placeholder"}
        """Inputs, parameters, and results that later slices use."""
        self.tapped: dict[str, Tensor] = {}
        """Nothing of the shape, but of the type and on the device of what is tapped."""
        self.random: dict[int, Callable[[], None]] = {}
        """By slice, what sets the random numbers to those that it drew."""
        self.kept: dict[str, Any] = {}
        """What is kept of the slice that was run last."""

    def forward(self, gradients: bool) -> tuple[Tensor, ...]:
        """Run all slices without gradients; the outputs, from which gradients start if they are wanted."""
        crossing = {node for own in self.slices for node in own.taken} | set(self.outputs)
        for node in self.taps:
            if node in self.crossing:
                self._note(node, self.crossing[node])
        for at, own in enumerate(self.slices):
            if own.draws:
                self.random[at] = random_state()

            def change(node: fx.Node, value: Any) -> Any:
                if node in self.taps:
                    self._note(node, value)
                if _passes(node, value) and self.carriers.intersection(node.all_input_nodes):
                    self.carriers.add(node)
                if node in crossing:
                    self.crossing[node] = value
                return value

            with torch.no_grad():
                self._run(own, {node: self.crossing[node] for node in own.taken}, change)
        for node in self.outputs:
            value = self.crossing[node].detach()
            self.leaves[node] = value.requires_grad_() if gradients and node in self.carriers else value
        return tuple(self.leaves[node] for node in self.outputs)

    def _note(self, node: fx.Node, value: Any) -> None:
        tensor = value[0] if isinstance(value, tuple | list) else value
        self.tapped[node.name] = tensor.new_empty(0)
        self.carriers.add(node)

    def _run(
        self, own: Slice, known: Mapping[fx.Node, Any], change: Callable[[fx.Node, Any], Any]
    ) -> dict[fx.Node, Any]:
        """Run one slice; the values that outlive it. What it takes of others is ``known``."""
        last = {used: node for node in own.nodes for used in node.all_input_nodes}
        real = {**self.crossing, **known}
        for node in own.nodes:
            real[node] = change(node, run_node(self.captured, self.bound, node, real, self.surrogates))
            for used in node.all_input_nodes:
                if last[used] is node:
                    real.pop(used, None)
        return real

    def load(self, at: int) -> None:
        """Run a slice again for what its attentions are rebuilt from."""
        own = self.slices[at]
        with torch.no_grad(), self._as_it_was(at):
            self.kept = {}
            self._run(own, {node: self.crossing[node] for node in own.taken}, self._keep)

    def _keep(self, node: fx.Node, value: Any) -> Any:
        if node in self.wanted:
            self.kept[node.name] = tree_map_only(Tensor, torch.Tensor.detach, value)
        return value

    def _as_it_was(self, at: int) -> AbstractContextManager[None]:
        """A region in which a slice draws the random numbers that it drew before."""
        return drawing_from(self.random[at]) if at in self.random else nullcontext()

    def backward(self, score: Tensor, check: Check) -> PassingGradients:
        """The gradients of a score to all that is tapped, worked out as they are asked for."""
        return PassingGradients(self, score, check)

    def begin(self, score: Tensor) -> dict[fx.Node, Tensor]:
        """The gradients of a score to the outputs."""
        leaves = {node.name: leaf for node, leaf in self.leaves.items()}
        found = gradients_of(score, leaves, retain=True)
        return {node: g for node in self.leaves if (g := found.get(node.name)) is not None}

    def back(self, at: int, pending: dict[fx.Node, Tensor]) -> dict[str, Tensor | None]:
        """Run a slice again, and take the gradients of what is tapped in it.

        ``pending``: gradients of results, by node; those of the slice's are taken out, and those of what it
        took of others are added.
        """
        own = self.slices[at]
        taps: dict[fx.Node, Tensor] = {}
        ends: dict[fx.Node, Tensor] = {}

        def change(node: fx.Node, value: Any) -> Any:
            if node in self.taps:
                value, taps[node] = tap(value, True)
            self._keep(node, value)
            if node in pending:
                ends[node] = value
            return value

        known = {node: self.crossing[node] for node in (*own.taken, *self._tapped_inputs(own))}
        begun = {n: v.detach().requires_grad_() for n, v in known.items() if n in self.carriers}
        with torch.enable_grad(), self._as_it_was(at):
            self.kept = {}
            self._run(own, {**known, **begun}, change)
        ends = {node: value for node, value in ends.items() if value.requires_grad}
        wanted = {**begun, **taps}
        found: list[Tensor | None] = [None] * len(wanted)
        if ends and wanted:
            seeds = [pending[node] for node in ends]
            found = list(torch.autograd.grad([*ends.values()], [*wanted.values()], seeds, allow_unused=True))
        for node in own.nodes:
            pending.pop(node, None)
        for node, gradient in zip(begun, found, strict=False):
            if gradient is not None:
                pending[node] = gradient if node not in pending else pending[node] + gradient
        return {node.name: gradient for node, gradient in zip(taps, found[len(begun) :], strict=True)}

    def _tapped_inputs(self, own: Slice) -> list[fx.Node]:
        """Maps that are parameters or inputs themselves."""
        used = {used for node in own.nodes for used in node.all_input_nodes}
        return [node for node in self.taps if node.op == "placeholder" and node in used]


class Kept(Mapping[str, Any]):
    """What attentions are rebuilt from: of one slice at a time, which is run again if it was not the last."""

    def __init__(self, run: Sliced) -> None:
        self._run = run
        self._nodes = {node.name: node for node in run.wanted}

    def __getitem__(self, name: str) -> Any:
        node = self._nodes[name]
        if name not in self._run.kept:
            if node in self._run.crossing:
                return self._run.crossing[node]
            self._run.load(self._run.number[name])
        return self._run.kept[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)


class PassingGradients(Mapping[str, "Tensor | None"]):
    """Node -> gradient of a score to its tapped tensor: had slice by slice, and forgotten with the next."""

    def __init__(self, run: Sliced, score: Tensor, check: Check) -> None:
        self.hold = False
        """Whether none is forgotten, for somebody who asks for them several times."""
        self._run, self._score, self._check = run, score, check
        self._start()

    def _start(self) -> None:
        self._next = len(self._run.slices)
        self._pending = self._run.begin(self._score)
        self._found: dict[str, Tensor | None] = {}

    def __getitem__(self, name: str) -> Tensor | None:
        if name not in self._run.tapped:
            raise KeyError(name)
        if name not in self._found and self._run.number.get(name, -1) >= self._next:
            self.hold = True  # it was asked for before
            self._start()
        while name not in self._found:
            self._go_back()
        return self._found[name]

    def _go_back(self) -> None:
        self._next -= 1
        if not self.hold:
            self._found = {}
        if self._next < 0:
            found = {
                node.name: self._pending.get(node) for node in self._run.taps if node.op == "placeholder"
            }
        else:
            found = self._run.back(self._next, self._pending)
        for name, gradient in found.items():
            self._check(name, gradient)
        self._found |= found

    def __iter__(self) -> Iterator[str]:
        return iter(self._run.tapped)

    def __len__(self) -> int:
        return len(self._run.tapped)


def _passes(node: fx.Node, value: Any) -> bool:
    """Whether gradients pass an operation, by its result."""
    parts = value if isinstance(value, tuple | list) else (value,)
    floating = any(isinstance(v, Tensor) and (v.is_floating_point() or v.is_complex()) for v in parts)
    return floating and op_name(node) != "aten::detach"


def _refuse_writing(graph: fx.Graph) -> None:
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is not None and schema.is_mutable:
            raise MethodError(
                f"the graph cannot be run again in slices: an operation writes into a tensor: {node.target}",
                where=place_of(node),
                expected="operations that leave what they are given as it is",
                found="one that would write into it twice",
                hint='leave mode="checkpoint" out',
            )
