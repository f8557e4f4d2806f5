"""The second strategy of capture: run the model once, really, and write down every operation it calls.

Where control flow or shapes depend on data (``.item()``, ``nonzero``, dispatch to experts) no symbolic trace
exists; a recording does, and holds for the very input it was made with.  Composite operations stay whole,
because the recording happens above the dispatcher's decompositions (``make_fx`` with ``pre_dispatch``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule, Node
from torch.fx import traceback as fx_traceback
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from fxplain.capture.captured import Draft
from fxplain.capture.export import Flat
from fxplain.capture.guard import quiet, same_random_numbers, values_kept
from fxplain.capture.inputs import Layout
from fxplain.capture.passes.clean import (
    draws_random_numbers,
    functional,
    needs_work,
    origins,
    restore_origins,
    tidy,
    tidy_graph,
)
from fxplain.capture.passes.inplace import make_recording_out_of_place
from fxplain.capture.passes.specialise import Lifted, specialise
from fxplain.capture.path import path_of
from fxplain.capture.placeholder import Placeholder

_SWITCHES = (torch._C._set_grad_enabled,)
_TRANSFORMS = "torch._functorch.predispatch"


def record(model: nn.Module, tensors: list[Tensor], layout: Layout) -> Draft:
    """The graph of one real run; raises whatever the run or the tracer raises."""
    recorded = _first_traced(model, tensors, layout)
    placeholders, values = _lift(recorded, model, tensors, layout)
    path = path_of(recorded, placeholders, values)
    for node in reversed(recorded.graph.nodes):
        if node.op == "call_function" and node.target is torch.ops.aten.item.default:
            recorded.graph.erase_node(node)
    drawn = draws_random_numbers(recorded)
    with values_kept(model, list(values.values())), same_random_numbers():
        for name, constant in specialise(recorded, list(values.values())).items():
            placeholders.append(Placeholder(name, "constant", name))
            values[name] = constant
    draft = replace(_functional(recorded, placeholders, values), path=path)
    if drawn is None or draws_random_numbers(draft.graph):
        return draft
    note = f"the model draws random numbers (first at node {drawn}): those of the recorded run are explained"
    return replace(draft, drew=True, notes=(*draft.notes, note))


def _first_traced(model: nn.Module, tensors: list[Tensor], layout: Layout) -> GraphModule:
    """The raw recording, by the first way that goes through.

    The tracer is seen by models that ask for overrides of functions (``has_torch_function``) and call
    themselves anew: the second way hides it. Transforms such as ``vmap`` are only known below the
    decompositions: the third way.
    """
    for flat in (Flat(model, layout), _Unseen(model, layout)):
        with suppress(Exception):
            return _traced(flat, tensors, whole=True)
    return _traced(Flat(model, layout), tensors, whole=False)


class _Unseen(Flat):
    """The model, run as if no mode for functions were there."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        with torch._C.DisableTorchFunction():
            return super().forward(*tensors)


def _traced(flat: Flat, tensors: list[Tensor], whole: bool) -> GraphModule:
    """The raw recording; ``whole`` keeps composite operations, else they are decomposed."""
    with ExitStack() as stack:
        kept = values_kept(flat.model, tensors), same_random_numbers()
        for context in (*kept, _module_stack(flat.model), _branches_taken()):
            stack.enter_context(context)
        if not whole:  # fused kernels made for inference have no derivative
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        traced: GraphModule = make_fx(
            flat.forward,
            tracing_mode="real",
            pre_dispatch=whole,
            record_stack_traces=True,
            _error_on_data_dependent_ops=False,
        )(*tensors)
    if any(_inside_transform(node, traced) for node in traced.graph.nodes):
        raise RuntimeError("the recording holds what lives only while a transform such as vmap runs")
    return traced


@contextmanager
def _branches_taken() -> Iterator[None]:
    """While the model runs, ``torch.cond`` is the branch that it takes."""

    def taken(pred: Any, true_fn: Any, false_fn: Any, operands: Any = ()) -> Any:
        return (true_fn if bool(pred) else false_fn)(*operands)

    own = torch.cond
    torch.cond = taken
    try:
        yield
    finally:
        torch.cond = own


def _inside_transform(node: Node, module: GraphModule) -> bool:
    """Whether the node enters a transform (``vmap``, at a level that is gone when the graph runs again), or
    reads a tensor that wraps another one, as those inside of it do."""
    if node.op == "call_function":
        return getattr(node.target, "__module__", None) == _TRANSFORMS
    value = getattr(module, str(node.target), None) if node.op == "get_attr" else None
    return isinstance(value, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(value)


@contextmanager
def _module_stack(model: nn.Module) -> Iterator[None]:
    """While the model runs, tell the tracer which modules it is in; no hook is put on the model itself."""
    paths = {id(module): path for path, module in model.named_modules()}
    stack: list[tuple[str, type]] = []

    def publish() -> None:
        meta = fx_traceback.get_current_meta()
        meta["nn_module_stack"] = {str(depth): entry for depth, entry in enumerate(stack)}

    def enter(module: nn.Module, args: Any) -> None:
        if id(module) in paths:
            stack.append((paths[id(module)], type(module)))
            publish()

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if id(module) in paths and stack:
            stack.pop()
            publish()

    handles = [
        register_module_forward_pre_hook(enter),
        register_module_forward_hook(leave, always_call=True),
    ]
    try:
        with fx_traceback.preserve_node_meta():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _lift(
    recorded: GraphModule, model: nn.Module, tensors: list[Tensor], layout: Layout
) -> tuple[list[Placeholder], dict[str, Tensor]]:
    """Make placeholders of the tensors that the recording holds; also the value of each placeholder node."""
    graph = recorded.graph
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    placeholders = [Placeholder(n.name, "input", t.path) for n, t in zip(inputs, layout.tensors, strict=True)]
    values = {node.name: tensor for node, tensor in zip(inputs, tensors, strict=True)}
    known = _Known(model)
    lifted = Lifted(recorded)
    # what a model makes of an array that it was handed lies in the array's own memory
    arrays = zip(inputs, tensors, strict=True) if layout.holds_arrays else ()
    nodes: dict[Any, Node] = {memory(tensor): node for node, tensor in arrays}
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in _SWITCHES:
            graph.erase_node(node)
        if node.op != "get_attr" or not isinstance(getattr(recorded, node.target, None), Tensor):
            continue
        tensor = getattr(recorded, node.target)
        key = memory(tensor) if tensor.numel() else node.target
        if key not in nodes:
            nodes[key] = lifted.add(str(node.target).strip("_"), tensor.detach())
            placeholders.append(known.placeholder(nodes[key].name, tensor))
        node.replace_all_uses_with(nodes[key])
        graph.erase_node(node)
    for name in [name for name in _attributes(recorded) if isinstance(getattr(recorded, name), Tensor)]:
        delattr(recorded, name)
    recorded.recompile()
    return placeholders, values | lifted.tensors


def _attributes(module: nn.Module) -> list[str]:
    return [*module._parameters, *module._buffers, *vars(module)]


def memory(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for two tensor objects that are one and the same numbers in memory."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


class _Known:
    """Recognises a model's parameters and buffers, also through ``detach`` and ``.data``."""

    def __init__(self, model: nn.Module) -> None:
        self._exact: dict[int, Placeholder] = {}
        self._memory: dict[tuple[Any, ...], Placeholder] = {}
        for path, buffer in model.named_buffers():
            self._add(buffer, Placeholder("", "buffer", path))
        for path, parameter in model.named_parameters():
            self._add(parameter, Placeholder("", "parameter", path))

    def _add(self, tensor: Tensor, placeholder: Placeholder) -> None:
        self._exact[id(tensor)] = placeholder
        if tensor.numel():
            self._memory[memory(tensor)] = placeholder

    def placeholder(self, node: str, tensor: Tensor) -> Placeholder:
        found = self._exact.get(id(tensor)) or self._memory.get(memory(tensor))
        if found is None:
            return Placeholder(node, "constant", node)
        return Placeholder(node, found.kind, found.path)


class _Recorded(nn.Module):
    """The recording as a module for ``torch.export``, which functionalises it."""

    def __init__(self, recorded: GraphModule) -> None:
        super().__init__()
        self.recorded = recorded

    def forward(self, *values: Tensor) -> Any:
        return self.recorded(*values)


def _functional(recorded: GraphModule, placeholders: list[Placeholder], values: dict[str, Tensor]) -> Draft:
    """The draft; in-place operations become functional in the same way as those of an exported program."""
    if needs_work(recorded.graph):
        with values_kept(recorded, list(values.values())), same_random_numbers():
            make_recording_out_of_place(recorded, list(values.values()))
    notes: tuple[str, ...] = (
        "captured by recording one run: the graph holds for this input only, "
        "and for others seen to take its path",
    )
    graph, names = recorded, [placeholder.node for placeholder in placeholders]
    if needs_work(recorded.graph):
        try:
            graph, names = _exported(recorded, values)
        except Exception as error:  # the recording itself holds, if not as easy to read
            notes += (f"in-place operations were left in the recording: {type(error).__name__}",)
            _protect(recorded, placeholders)
    renamed = [replace(p, node=name) for p, name in zip(placeholders, names, strict=True)]
    constants = {
        new.node: values[old.node]
        for old, new in zip(placeholders, renamed, strict=True)
        if new.kind == "constant"
    }
    return Draft(tidy_graph(graph), tuple(renamed), constants, specialised=True, notes=notes)


def _exported(recorded: GraphModule, values: dict[str, Tensor]) -> tuple[GraphModule, list[str]]:
    """The recording made functional, and the new names of its placeholders."""
    with quiet():
        program = torch.export.export(_Recorded(recorded), tuple(values.values()), strict=False)
        restore_origins(program.graph_module, origins([recorded]))
        program = functional(program)
    specs = program.graph_signature.input_specs
    return tidy(program, str), [spec.arg.name for spec in specs if spec.kind is InputKind.USER_INPUT]


def _protect(recorded: GraphModule, placeholders: list[Placeholder]) -> None:
    """Let the graph write into copies, never into the tensors that are bound to its placeholders."""
    graph = recorded.graph
    nodes = {node.name: node for node in graph.nodes}
    with graph.inserting_after(nodes[placeholders[-1].node]):
        for placeholder in placeholders:
            if placeholder.kind != "parameter":
                node = nodes[placeholder.node]
                copy = graph.call_function(torch.ops.aten.clone.default, (node,))
                copy.meta.update(node.meta)
                node.replace_all_uses_with(copy, delete_user_cb=lambda user, copy=copy: user is not copy)
    recorded.recompile()
