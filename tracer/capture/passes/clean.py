"""From an exported program's graph to one that runs under autograd, changes nothing and is easy to read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.fx import Graph, GraphModule, Node

from fxplain.capture.passes.inplace import make_out_of_place
from fxplain.capture.passes.loops import body_in_place, replace_region, unroll_loops
from fxplain.capture.passes.pairwise import take_in_pairs
from fxplain.capture.passes.written_slices import read_as_written

# Checks that a replay on other values must not trip over; they compute nothing.
_ASSERTIONS = {
    "_assert_tensor_metadata",
    "_assert_async",
    "_assert_scalar",
    "_functional_assert_async",
    "_functional_assert_scalar",
    "sym_constrain_range",
    "sym_constrain_range_for_size",
}
Origins = dict[str, dict[str, Any]]
_REPLAYED = re.compile(r'File "<eval_with_key>[^"]*", line \d+, in \w+\s*\n\s*(\w+) = ')


def functional(program: ExportedProgram) -> ExportedProgram:
    """The program without in-place operations and without regions, every operation otherwise as it was.

    Decomposing with an empty table functionalises (a write into a view becomes a scatter, a write into a
    buffer an extra output), applies autocast as explicit casts and keeps linear, softmax, attention and
    all other composite operations whole.  It costs a second trace, so it runs only where it is needed.
    """
    inline_grad_regions(program.graph_module)
    unroll_loops(program.graph_module)
    make_out_of_place(program)
    if not needs_work(program.graph):
        return program
    program.graph_module.recompile()
    inner = origins(
        module
        for module in program.graph_module.modules()
        if isinstance(module, GraphModule) and module is not program.graph_module
    )
    program = program.run_decompositions({})
    restore_origins(program.graph_module, inner)
    return program


def origins(modules: Iterable[GraphModule]) -> Origins:
    """Where the nodes of these graphs come from, by name."""
    return {node.name: dict(node.meta) for module in modules for node in module.graph.nodes}


def restore_origins(root: GraphModule, known: Origins) -> None:
    """Nodes that were replayed from generated code get back the module and line of the replayed node."""
    for module in root.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            replayed = _REPLAYED.findall(node.meta.get("stack_trace") or "")
            if replayed and (meta := known.get(replayed[-1])):
                for key in ("stack_trace", "nn_module_stack"):
                    node.meta.pop(key, None)
                    if key in meta:
                        node.meta[key] = meta[key]


def needs_work(graph: Graph) -> bool:
    """Whether the graph holds an in-place operation or a region (autocast) to be made explicit."""
    return any(_needs_decomposition(node) for node in graph.nodes)


def _needs_decomposition(node: Node) -> bool:
    if node.op != "call_function":
        return False
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return _name(node) in ("wrap_with_autocast", "wrap_with_set_grad_enabled")
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable and not _fresh_detach(node)


def _fresh_detach(node: Node) -> bool:
    """``torch.tensor(...)`` in forward leaves ``detach_`` of a fresh copy, which is no change to anything."""
    source = node.args[0] if node.args else None
    return (
        node.target is torch.ops.aten.detach_.default
        and isinstance(source, Node)
        and source.target is torch.ops.aten.lift_fresh_copy.default
    )


def inline_grad_regions(root: GraphModule) -> None:
    """Put the body of each ``with torch.no_grad()`` (or ``enable_grad``) region in the region's place.

    The explanation's gradients flow through such a region: it tells training what to skip, not what the
    prediction depends on.
    """
    for module in list(root.modules()):
        if not isinstance(module, GraphModule):
            continue
        inlined = False
        while regions := [n for n in module.graph.nodes if _name(n) == "wrap_with_set_grad_enabled"]:
            _inline(module, regions[0])
            inlined = True
        if inlined:
            module.recompile()


def _inline(module: GraphModule, region: Node) -> None:
    body_node = region.args[1]
    assert isinstance(body_node, Node)
    results = body_in_place(module, region, body_node, region.args[2:])
    replace_region(module, region, body_node, results)


def tidy(program: ExportedProgram, rename: Callable[[str], str], own: Graph | None = None) -> GraphModule:
    """The program's graph (or its ``own`` for some sizes) with its user outputs alone, tidy, and module paths
    through ``rename``."""
    graph = Graph()
    copied: dict[Node, Node] = {}
    results = graph.graph_copy(own or program.graph, copied)
    specs = program.graph_signature.output_specs
    wanted = [
        value
        for value, spec in zip(results, specs, strict=True)  # type: ignore[arg-type]
        if spec.kind is OutputKind.USER_OUTPUT
    ]
    graph.output(tuple(wanted))
    rename_modules(graph, rename)
    return tidy_graph(GraphModule(program.graph_module, graph))


def tidy_graph(module: GraphModule) -> GraphModule:
    """The module's graph, changed in place: no assertions, no operation that has no derivative.

    The module is not compiled again: the last pass does that, for all.
    """
    graph = module.graph
    for node in reversed(list(graph.nodes)):
        if node.op == "call_module" or (node.op == "call_function" and _name(node) in _ASSERTIONS):
            graph.erase_node(node)
        elif node.op == "call_function" and _fresh_detach(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.op == "call_function":
            _differentiable(graph, node)
    read_as_written(graph)
    graph.eliminate_dead_code(_has_effects)
    graph.lint()
    return module


def _has_effects(node: Node) -> bool:
    """Whether an operation does something beside its result: it draws random numbers, say.

    Kernels of attention may, and so PyTorch keeps them all; those without dropout draw none.
    """
    schema = getattr(node.target, "_schema", None)
    if schema is None or torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return node.is_impure()
    names = [argument.name for argument in schema.arguments]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    dropout = given.get("dropout_p", 0.0) if "dropout_p" in names else given.get("p")
    quiet = dropout == 0 or given.get("train") is False
    return not quiet and node.is_impure()


def _differentiable(graph: Graph, node: Node) -> None:
    """Put an operation that runs under autograd in the place of one that does not."""
    aten = torch.ops.aten
    if node.target in (aten.view.default, aten._unsafe_view.default):
        node.target = aten.reshape.default  # strides may differ when kernels that keep gradients are chosen
    elif node.target is aten.lift_fresh_copy.default:
        node.target = aten.clone.default
    elif node.target is aten.zero.default:
        node.target = aten.zeros_like.default
    elif node.target is aten.einsum.default:
        take_in_pairs(graph, node)
    elif node.target is aten.copy.default:
        _expand_source(graph, node)


def _expand_source(graph: Graph, node: Node) -> None:
    """``copy(into, source)`` as a cast (where the dtypes differ) and an expansion of the source."""
    into, source = node.args[0], node.args[1]
    assert isinstance(into, Node)
    assert isinstance(source, Node)
    wanted, given = into.meta["val"], source.meta["val"]
    with graph.inserting_before(node):
        if given.dtype != wanted.dtype:
            source = graph.call_function(torch.ops.aten.to.dtype, (source, wanted.dtype))
            source.meta.update({**node.meta, "val": given.to(wanted.dtype)})
        if given.shape != wanted.shape:
            source = graph.call_function(torch.ops.aten.expand.default, (source, list(wanted.shape)))
            source.meta.update(node.meta)
    node.replace_all_uses_with(source)
    graph.erase_node(node)


def rename_modules(graph: Graph, rename: Callable[[str], str]) -> None:
    for node in graph.nodes:
        if stack := node.meta.get("nn_module_stack"):
            node.meta["nn_module_stack"] = {
                key: (rename(path.partition("@")[0]), kind) for key, (path, kind) in stack.items()
            }


def draws_random_numbers(module: GraphModule) -> str | None:
    """Name of the first node that draws random numbers: dropout that is on, ``rand``, ``normal``, ..."""
    return next((str(node.name) for node in module.graph.nodes if draws(node)), None)


def draws(node: Node) -> bool:
    """Whether an operation draws random numbers."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    schema = node.target._schema.arguments
    values = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    values.update({argument.name: value for argument, value in zip(schema, node.args, strict=False)})
    values.update(node.kwargs)
    return all(values.get(switch, True) for switch in ("train", "training", "dropout_p", "p"))


def _name(node: Node) -> str:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.partition("::")[2]
    return str(getattr(target, "__name__", target))
