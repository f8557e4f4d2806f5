"""Parts of a tensor that are read where they were written: what was written is read, and nothing around it.

Code that fills a tensor block by block (an attention in tiles, with running sums) writes into views. Made
functional, each write is a whole new tensor, and what a block holds would be hidden behind all others.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Graph, Node

READ, WRITE = torch.ops.aten.slice.Tensor, torch.ops.aten.slice_scatter.default

Span = tuple[int, int, int]
"""Axis, first place, and the one after the last."""


def read_as_written(graph: Graph) -> None:
    """Take every slice from the tensor that was written there; a write of everything is what was written."""
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in (READ, WRITE):
            continue
        if node.target is WRITE and _is_whole(node):
            _replace(graph, node, node.args[1])
        elif node.target is READ and _alike(node, node.args[0]):
            _replace(graph, node, node.args[0])  # all of it
        elif node.target is READ:
            _read(graph, node)


def _read(graph: Graph, node: Node) -> None:
    """Look past writes to other places, up to the one to this very place, if it is the next."""
    span, source = _span(node, node.args[0]), node.args[0]
    while span is not None and isinstance(source, Node) and source.target is WRITE:
        written = _span(source, source, 2)
        if written is None or written[0] != span[0]:
            return
        if written == span and _alike(node, source.args[1]):
            _replace(graph, node, source.args[1])
            return
        if written[1] < span[2] and span[1] < written[2]:
            return
        source = source.args[0]
        node.args = (source, *node.args[1:])


def _span(node: Node, tensor: object, first: int = 1) -> Span | None:
    """What a slice of a tensor reads or writes, its arguments from ``first`` on; None if not all between."""
    value = _value(tensor)
    given = [*node.args[first:], *[0, None, None, 1][len(node.args) - first :]]
    dim, start, end, step = given[:4]
    if node.kwargs or value is None or not isinstance(dim, int) or step != 1:
        return None
    size = value.shape[dim]
    if not isinstance(size, int) or not all(isinstance(bound, int | None) for bound in (start, end)):
        return None
    bounds = slice(start, end).indices(size)
    return dim % value.ndim, bounds[0], bounds[1]


def _is_whole(node: Node) -> bool:
    span, value = _span(node, node, 2), _value(node)
    whole = span is not None and value is not None and span[1:] == (0, value.shape[span[0]])
    return whole and _alike(node, node.args[1])


def _alike(node: Node, other: object) -> bool:
    one, two = _value(node), _value(other)
    return one is not None and two is not None and (one.shape, one.dtype) == (two.shape, two.dtype)


def _value(node: object) -> Tensor | None:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value if isinstance(value, Tensor) else None


def _replace(graph: Graph, node: Node, other: object) -> None:
    assert isinstance(other, Node)
    node.replace_all_uses_with(other)
    graph.erase_node(node)
