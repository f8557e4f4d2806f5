"""Where a node of the graph comes from: the module that ran it and the source line that called it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch
from torch.fx import Node

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_TORCH = str(Path(torch.__file__).parent) + os.sep
_OWN = str(Path(__file__).parent) + os.sep


def module_path(node: Node) -> str:
    """Path of the innermost module that ran the node: ``encoder.layer.0.attention``; ``""`` for the model.

    Example:
        >>> graph = torch.fx.Graph()
        >>> node = graph.placeholder("x")
        >>> node.meta["nn_module_stack"] = {"a": ("encoder.layer.0", torch.nn.Linear)}
        >>> module_path(node)
        'encoder.layer.0'
    """
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    last = list(stack.values())[-1] if isinstance(stack, dict) else stack[-1]
    return str(last[0] if isinstance(last, (tuple, list)) else last)


def source_line(node: Node) -> str:
    """``file.py:line`` of the innermost frame outside torch that ran the node; torch's own if there is none.

    Files of installed packages are given from the package's name on, others relative to the working folder.
    """
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    frames = [(file, line) for file, line in frames if not file.startswith(("<", _OWN))]
    users = [frame for frame in frames if not frame[0].startswith(_TORCH)]
    if not frames:
        return ""
    file, line = (users or frames)[-1]
    return f"{_short(file)}:{line}"


def place_of(node: Node) -> str:
    """Node, operation, module and source line, as errors name them.

    Example:
        >>> graph = torch.fx.Graph()
        >>> x = graph.placeholder("x")
        >>> place_of(graph.call_function(torch.ops.aten.exp.default, (x,)))
        'node exp_default (aten.exp.default), module (the model itself)'
    """
    module = module_path(node) or "(the model itself)"
    parts = f"node {node.name} ({node.target})", f"module {module}", source_line(node)
    return ", ".join(part for part in parts if part)


def _short(file: str) -> str:
    parts = Path(file).parts
    for folder in ("site-packages", "dist-packages"):
        if folder in parts:
            return "/".join(parts[len(parts) - parts[::-1].index(folder) :])
    try:
        return Path(file).relative_to(Path.cwd()).as_posix()
    except ValueError:
        return Path(file).as_posix()
