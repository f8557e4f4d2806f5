"""The first strategy of capture: ``torch.export``, the symbolic tracer, on a wrapper with flat tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Graph

from fxplain.capture.captured import Draft
from fxplain.capture.guard import quiet
from fxplain.capture.inputs import Layout
from fxplain.capture.outputs import flatten
from fxplain.capture.passes.clean import functional, restore_origins, tidy
from fxplain.capture.placeholder import Placeholder, PlaceholderKind
from fxplain.capture.program import origins_of

_KINDS: dict[InputKind, PlaceholderKind] = {
    InputKind.USER_INPUT: "input",
    InputKind.PARAMETER: "parameter",
    InputKind.BUFFER: "buffer",
    InputKind.CONSTANT_TENSOR: "constant",
}


class Flat(nn.Module):
    """The model with flat tensors in and out: no caches, mappings or constants cross its border."""

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.model = model
        self.layout = layout

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        args, kwargs = self.layout.fill(tensors)
        return tuple(tensor for _, tensor in flatten(self.model(*args, **kwargs)))


def export(model: nn.Module, tensors: list[Tensor], layout: Layout) -> Draft:
    """The model's graph by ``torch.export.export(..., strict=False)``; raises whatever that raises."""
    return drafted(program_of(model, tensors, layout), layout, prefix="model")


def program_of(
    model: nn.Module, tensors: list[Tensor], layout: Layout, sizes: tuple[Any, ...] | None = None
) -> ExportedProgram:
    """The model exported without in-place operations; ``sizes``: for each tensor, its axes of any size."""
    with quiet():
        flat, shapes = Flat(model, layout), None if sizes is None else (sizes,)
        program = torch.export.export(flat, tuple(tensors), dynamic_shapes=shapes, strict=False)
        if any(node.target is torch.ops.higher_order.cond for node in program.graph.nodes):
            raise RuntimeError("which branch of a condition is taken depends on data")
        restore_origins(program.graph_module, origins_of(model, "model"))
        return functional(program)


def drafted(program: ExportedProgram, layout: Layout, prefix: str, graph: Graph | None = None) -> Draft:
    """The program's graph (or another for the same program) as a draft; ``prefix`` is the path of the user's
    model inside the program."""

    def rename(path: str) -> str:
        return "" if path == prefix else path.removeprefix(f"{prefix}.")

    inputs = iter(layout.tensors)
    placeholders: list[Placeholder] = []
    constants: dict[str, Tensor] = {}
    for spec in program.graph_signature.input_specs:
        kind = _KINDS[spec.kind]
        path = next(inputs).path if kind == "input" else rename(str(spec.target))
        placeholders.append(Placeholder(spec.arg.name, kind, path))
        if kind == "constant":
            constants[spec.arg.name] = _constant(program, str(spec.target))
    return Draft(tidy(program, rename, graph), tuple(placeholders), constants)


def _constant(program: ExportedProgram, name: str) -> Tensor:
    value: Any = program.constants[name]
    assert isinstance(value, Tensor)
    return value
