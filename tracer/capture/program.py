"""An exported program (``.pt2``) as a model: its graph is captured again, and no user's code runs."""

from __future__ import annotations

from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from fxplain.capture.passes.clean import Origins, origins


def as_module(program: ExportedProgram) -> nn.Module:
    """The program as a module with the parameters and buffers of the exported model, under their own paths.

    Tracing it again brings programs of every origin (training or inference graphs, dynamic shapes, in-place
    operations) into one form; :func:`origins_of` keeps the modules and source lines of the first export.
    """
    module = program.module()
    assert isinstance(module, GraphModule)
    for part in module.modules():
        part.training = False  # how it was exported decides; the flag means nothing here
    known = {node.name: node.meta for node in program.graph.nodes}
    for node in module.graph.nodes:
        for key in ("nn_module_stack", "stack_trace"):
            if key in known.get(node.name, {}):
                node.meta.setdefault(key, known[node.name][key])
    return module


def origins_of(model: nn.Module, prefix: str) -> Origins:
    """Where the nodes of a model that is a graph itself come from, its paths below ``prefix``."""
    if not isinstance(model, GraphModule):
        return {}
    known = origins([model])
    for meta in known.values():
        if stack := meta.get("nn_module_stack"):
            entries = {key: (path.partition("@")[0], kind) for key, (path, kind) in stack.items()}
            meta["nn_module_stack"] = {
                key: (f"{prefix}.{path}" if path else prefix, kind) for key, (path, kind) in entries.items()
            }
    return known
