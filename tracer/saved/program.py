"""A captured graph as an exported program that ``torch.export.save`` writes, and back, node by node."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.utils._pytree import tree_structure

from fxplain.capture.captured import Captured
from fxplain.capture.placeholder import Placeholder


def exported(captured: Captured, bound: Mapping[str, Tensor]) -> ExportedProgram:
    """The graph with the weights it has now, its inputs flat tensors; raises whatever torch raises."""
    graph = captured.graph
    if any("val" not in node.meta for node in graph.graph.nodes if node.op == "call_function"):
        _propagate(graph, list(bound.values()))
    state: dict[str, Tensor] = {}
    constants: dict[str, Any] = {}
    inputs = [_spec(placeholder, bound, state, constants) for placeholder in captured.placeholders]
    results: Sequence[fx.Node] = next(n for n in graph.graph.nodes if n.op == "output").args[0]
    outputs = [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(node.name), None) for node in results]
    own = [p for p in captured.placeholders if p.kind == "input"]
    signature = ModuleCallSignature(
        [TensorArgument(p.node) for p in own],
        [output.arg for output in outputs],
        tree_structure((tuple(0 for _ in own), {})),
        tree_structure(tuple(0 for _ in outputs)),
        [p.node for p in own],
    )
    return ExportedProgram(
        root=graph,
        graph=graph.graph,
        graph_signature=ExportGraphSignature(inputs, outputs),
        state_dict=state,
        range_constraints={},
        module_call_graph=[ModuleCallEntry("", signature)],
        example_inputs=None,  # torch would pickle them
        constants=constants,
    )


def _propagate(graph: fx.GraphModule, values: Sequence[Tensor]) -> None:
    """What every node gives, as tensors without data: the file says shapes and types with each."""
    mode = FakeTensorMode()
    fakes = [mode.from_tensor(value) for value in values]
    FakeTensorProp(graph, mode).propagate_dont_convert_inputs(*fakes)


def _spec(
    placeholder: Placeholder,
    bound: Mapping[str, Tensor],
    state: dict[str, Tensor],
    constants: dict[str, Any],
) -> InputSpec:
    argument, tensor, path = TensorArgument(placeholder.node), bound[placeholder.node], placeholder.path
    if placeholder.kind == "input":
        return InputSpec(InputKind.USER_INPUT, argument, None)
    if placeholder.kind == "constant":
        constants[placeholder.node] = tensor
        return InputSpec(InputKind.CONSTANT_TENSOR, argument, placeholder.node)
    if placeholder.kind == "parameter":
        state[path] = nn.Parameter(tensor, requires_grad=False)
        return InputSpec(InputKind.PARAMETER, argument, path)
    state[path] = tensor
    return InputSpec(InputKind.BUFFER, argument, path, persistent=True)


def listed(graph: fx.Graph) -> list[list[str]]:
    """Name and operation of every node, in order."""
    return [[node.name, f"{node.op} {node.target}"] for node in graph.nodes]


def restored(program: ExportedProgram, nodes: Sequence[Sequence[str]]) -> fx.GraphModule:
    """The program's graph with the nodes that were written, under their names.

    Raises:
        ValueError: the program's nodes are others.
    """
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    left = iter(nodes)
    for node in program.graph.nodes:
        if node.target is operator.getitem and not node.users:
            continue  # torch lists all results of an operation, read or not
        name, operation = next(left, ("", ""))
        if operation != f"{node.op} {node.target}":
            raise ValueError(f"node {node.name} is {node.op} {node.target}, not {operation or 'there'}")
        copied[node] = graph.node_copy(node, copied.__getitem__)
        copied[node]._rename(name)
        if copied[node].name != name:
            raise ValueError(f"two nodes are called {name!r}")
    if next(left, None) is not None:
        raise ValueError("the program ends before what was found in it")
    return fx.GraphModule(program.graph_module, graph)


def placeholders_of(
    program: ExportedProgram, graph: fx.Graph, paths: Sequence[str]
) -> tuple[Placeholder, ...]:
    """What each placeholder stands for; ``paths`` are the names of the inputs."""
    kinds: dict[InputKind, Any] = {
        InputKind.USER_INPUT: "input",
        InputKind.PARAMETER: "parameter",
        InputKind.BUFFER: "buffer",
        InputKind.CONSTANT_TENSOR: "constant",
    }
    names, inputs = [node.name for node in graph.nodes if node.op == "placeholder"], iter(paths)
    found = [
        Placeholder(
            name, kinds[spec.kind], next(inputs) if spec.kind is InputKind.USER_INPUT else str(spec.target)
        )
        for name, spec in zip(names, program.graph_signature.input_specs, strict=True)
    ]
    if next(inputs, None) is not None:
        raise ValueError("the program has fewer inputs than what was found in it")
    return tuple(found)


def constants_of(program: ExportedProgram, placeholders: Sequence[Placeholder]) -> dict[str, Tensor]:
    """The constants by name of their placeholder."""
    found = {p.node: program.constants[p.path] for p in placeholders if p.kind == "constant"}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def run_flat(graph: fx.GraphModule, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The graph's outputs, without gradient."""
    with torch.no_grad():
        outputs: tuple[Tensor, ...] = fx.Interpreter(graph).run(*values)
    return outputs
