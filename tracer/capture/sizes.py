"""One export for inputs of several sizes: made once their axes are known, then cut to each layout's numbers.

Labels and maps are about concrete tokens, so each layout has a graph of its own with numbers in the place of
symbols. That costs a run of the graph where a capture would cost a trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_map_only

from fxplain.capture.capture import Strategy
from fxplain.capture.captured import Captured, Draft, owned
from fxplain.capture.export import drafted, program_of
from fxplain.capture.inputs import Layout

ENOUGH = 2
"""How many layouts that differ in sizes alone are captured one by one before they are exported together: an
export with open sizes takes about twice as long as one with numbers."""

Axes = tuple[frozenset[int], ...]
"""For each tensor of the inputs, the axes whose size is open."""


@dataclass(frozen=True)
class Family:
    """A program for inputs of any size along some axes, and of the sizes of ``layout`` along the others."""

    program: ExportedProgram
    axes: Axes
    layout: Layout

    def takes(self, layout: Layout) -> bool:
        """Whether inputs of this layout differ from its own along the open axes alone."""
        return _differ_in_sizes(self.layout, layout) and _within(_axes(self.layout, layout), self.axes)

    def draft(self, model: nn.Module, tensors: list[Tensor], layout: Layout) -> Draft:
        """As a strategy of capture."""
        return cut(self.program, tensors, layout)


class FixedSizeError(ValueError):
    """The model holds for one size along these axes."""

    def __init__(self, axes: Axes, where: str) -> None:
        super().__init__(f"the model fixes the size of {where}")
        self.axes = axes


@dataclass
class Sizes:
    """What is known of a model and inputs of other sizes; it is asked before a new layout is captured."""

    families: list[Family] = field(default_factory=list)
    fixed: Axes = ()
    """The axes whose size the model fixes, as far as that was seen."""
    refused: dict[Axes, str] = field(default_factory=dict)
    """Axes that torch could not export with open sizes, and why."""

    def strategies(self, known: Iterable[Captured], layout: Layout) -> tuple[tuple[str, Strategy], ...]:
        """What to try for a new layout before it is captured by itself."""
        for family in self.families:
            if family.takes(layout):
                return (("sizes", family.draft),)
        alike = [c for c in known if not c.specialised and _differ_in_sizes(c.layout, layout)]
        moving = [c for c in alike if _apart(_axes(c.layout, layout), self.fixed)]
        if len(moving) < ENOUGH:
            return (("sizes", self._refuse),) if len(alike) >= ENOUGH else ()
        alike = moving
        axes = _union([_axes(captured.layout, layout) for captured in alike])
        examples = [c.example for c in alike if _plural([t.shape for t in c.example], axes)]
        own = _plural([t.shape for t in layout.tensors], axes)
        if not own and not examples:
            return ()

        def export(model: nn.Module, tensors: list[Tensor], layout: Layout) -> Draft:
            if axes in self.refused:
                raise ValueError(self.refused[axes])
            try:
                program = _exported(model, layout, axes, tensors if own else examples[0])
            except Exception as error:  # torch raises whatever it likes; it need not be asked again
                self.refused[axes] = f"{type(error).__name__}: {str(error).strip()[:200]}"
                if isinstance(error, FixedSizeError):
                    self.fixed = _union([error.axes, *([self.fixed] if self.fixed else [])])
                raise
            self.families.append(Family(program, axes, layout))
            return cut(program, tensors, layout)

        return (("sizes", export),)

    def _refuse(self, model: nn.Module, tensors: list[Tensor], layout: Layout) -> Draft:
        raise ValueError("; ".join(self.refused.values()))


def _differ_in_sizes(one: Layout, other: Layout) -> bool:
    """Whether two layouts are the same but for the sizes of tensors."""
    if repr((one.args, dict(one.kwargs))) != repr((other.args, dict(other.kwargs))):
        return False
    facts = [[(t.path, len(t.shape), t.dtype, t.device) for t in layout.tensors] for layout in (one, other)]
    return facts[0] == facts[1]


def _axes(one: Layout, other: Layout) -> Axes:
    """The axes along which the tensors of two layouts have other sizes."""
    return tuple(
        frozenset(axis for axis, (a, b) in enumerate(zip(x.shape, y.shape, strict=True)) if a != b)
        for x, y in zip(one.tensors, other.tensors, strict=True)
    )


def _within(some: Axes, all_: Axes) -> bool:
    return all(own <= every for own, every in zip(some, all_, strict=True))


def _apart(some: Axes, others: Axes) -> bool:
    return not others or not any(own & other for own, other in zip(some, others, strict=True))


def _union(found: Sequence[Axes]) -> Axes:
    return tuple(frozenset().union(*each) for each in zip(*found, strict=True))


def _plural(shapes: Sequence[Sequence[int]], axes: Axes) -> bool:
    """Whether every open axis has several places: torch takes a size of 1 for a number that stays."""
    return all(shape[axis] > 1 for shape, own in zip(shapes, axes, strict=True) for axis in own)


def _exported(model: nn.Module, layout: Layout, axes: Axes, tensors: Sequence[Tensor]) -> ExportedProgram:
    """The model with open sizes.

    Raises:
        FixedSizeError: the model fixes one of these sizes.
    """
    shapes = tuple(dict.fromkeys(own, Dim.AUTO) for own in axes)
    program = program_of(model, [owned(tensor) for tensor in tensors], layout, shapes)
    names = set(program.graph_signature.user_inputs)
    given = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    fixed = tuple(
        frozenset(axis for axis in own if _fixed(node.meta["val"].shape[axis]))
        for node, own in zip(given, axes, strict=True)
    )
    if any(fixed):
        where = [
            f"axis {min(own)} of {t.path!r}" for t, own in zip(layout.tensors, fixed, strict=True) if own
        ]
        raise FixedSizeError(fixed, ", ".join(where))
    return program


def _fixed(size: Any) -> bool:
    return isinstance(size, int) or size.node.maybe_as_int() is not None


def cut(program: ExportedProgram, tensors: Sequence[Tensor], layout: Layout) -> Draft:
    """The program's graph for inputs of these sizes alone: numbers where it works something out of sizes."""
    given = iter(tensors)
    values = [
        next(given) if spec.kind is InputKind.USER_INPUT else _held(program, str(spec.target))
        for spec in program.graph_signature.input_specs
    ]
    run = _Watched(program.graph_module)
    with torch.no_grad():
        run.run(*values)
    graph = fx.Graph()
    copied: dict[fx.Node, Any] = {}
    for node in program.graph.nodes:
        if node in run.numbers:
            copied[node] = run.numbers[node]
            continue
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), copied.__getitem__)
        copied[node] = graph.create_node(node.op, node.target, args, kwargs, node.name)
        copied[node].meta = node.meta | ({"val": run.forms[node]} if node in run.forms else {})
    return drafted(program, layout, "model", graph)


def _held(program: ExportedProgram, name: str) -> Tensor:
    held: Any = program.state_dict.get(name, program.constants.get(name))
    assert isinstance(held, Tensor)
    return held.detach()


_SIZES = ("sym_size", "sym_stride", "sym_numel", "sym_storage_offset")


class _Watched(fx.Interpreter):
    """Runs a graph and notes what comes of sizes, and the form of every other result.

    A number that is read from a tensor's *values* is none of these, and stays an operation.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.numbers: dict[fx.Node, Any] = {}
        self.forms: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "call_function" and isinstance(result, (int, float, bool)):
            of_sizes = (
                getattr(n.target, "_schema", None) is not None and str(n.target).split(".")[-2] in _SIZES
            )
            if of_sizes or all(used in self.numbers for used in n.all_input_nodes):
                self.numbers[n] = result
        elif n.op != "output":
            self.forms[n] = tree_map_only(Tensor, _form, result)
        return result


def _form(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta")
