"""Parts of a tensor that are read where they were written: what was written is read, and nothing around it.

Code that fills a tensor block by block (an attention in tiles, with running sums) writes into views. Made
functional, each write is a whole new tensor, and what a block holds would be hidden behind all others.
How a view is spelled (a slice, a narrowed part, one of the parts of a split, one place) makes no difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import getitem
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Graph, Node

aten = torch.ops.aten
Span = tuple[int, int, int]
"""Axis, first place, and the one after the last."""


def read_as_written(graph: Graph) -> None:
    """Take every part from the tensor that was written there; a write of everything is what was written."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if (span := _written(node)) is not None:
            if _is_whole(node, span) and _alike(node, node.args[1]):
                _replace(graph, node, node.args[1])
        elif (span := _read(node)) is not None:
            _take(graph, node, span)


def _take(graph: Graph, node: Node, span: Span) -> None:
    """Look past writes to other places, up to the one to this very place, if it is the next."""
    source = first = _source(node)
    if _is_whole(source, span) and _alike(node, source):
        _replace(graph, node, source)  # all of it
        return
    while (written := _written(source)) is not None and written[0] == span[0]:
        if written == span and _alike(node, source.args[1]):
            _replace(graph, node, source.args[1])
            return
        if written[1] < span[2] and span[1] < written[2]:
            break
        source = _source(source)
    if source is not first:
        _read_from(graph, node, source, span)


def _read_from(graph: Graph, node: Node, source: Node, span: Span) -> None:
    """Read the same part of an earlier tensor."""
    if node.target is not getitem:
        node.args = (source, *node.args[1:])
        return
    with graph.inserting_before(node):  # the other parts of the split may have been written to in between
        part = graph.call_function(aten.slice.Tensor, (source, *span))
    part.meta.update(node.meta)
    _replace(graph, node, part)


def _source(node: Node) -> Node:
    """The tensor that a part is read from, or written into."""
    source = node.args[0]
    assert isinstance(source, Node)
    return _source(source) if node.target is getitem else source


def _read(node: Node) -> Span | None:
    """What part of its source a node reads; None if it is no view of all that lies between two places."""
    if node.target is getitem:
        return _part_of_split(*node.args)
    return _SPANS[node.target](node, 1) if node.target in _READS else None


def _written(node: Node) -> Span | None:
    """What part of its first argument a node writes the second into."""
    return _SPANS[node.target](node, 2) if node.target in _WRITES else None


def _sliced(node: Node, first: int) -> Span | None:
    """The span of a slice; its arguments from ``first`` on say which."""
    dim, start, end, step = _given(node, first, (0, None, None, 1))
    size = _size(node.args[0], dim)
    if node.kwargs or size is None or step != 1:
        return None
    if not all(isinstance(bound, int | None) for bound in (start, end)):
        return None
    return size[0], *slice(start, end).indices(size[1])[:2]


def _narrowed(node: Node, first: int) -> Span | None:
    dim, start, length = _given(node, first, (None, None, None))
    size = _size(node.args[0], dim)
    if node.kwargs or size is None or not (isinstance(start, int) and isinstance(length, int)):
        return None
    start %= max(size[1], 1)
    return size[0], start, start + length


def _selected(node: Node, first: int) -> Span | None:
    dim, index = _given(node, first, (None, None))
    size = _size(node.args[0], dim)
    if node.kwargs or size is None or not isinstance(index, int):
        return None
    index %= size[1]
    return size[0], index, index + 1


def _part_of_split(split: Any, index: Any) -> Span | None:
    """The parts of a split lie one after the other: its place is what comes before it."""
    parts = split.meta.get("val") if isinstance(split, Node) and split.target in _SPLITS else None
    if parts is None or split.kwargs or not isinstance(index, int):
        return None
    dim = split.args[2] if len(split.args) > 2 else 0
    size = _size(split.args[0], dim)
    sizes = [part.shape[size[0]] for part in parts] if size is not None else []
    if size is None or not all(isinstance(n, int) for n in sizes) or sum(sizes) != size[1]:
        return None
    index %= len(sizes)
    return size[0], sum(sizes[:index]), sum(sizes[: index + 1])


_SPANS: dict[Any, Callable[[Node, int], Span | None]] = {
    aten.slice.Tensor: _sliced,
    aten.slice_scatter.default: _sliced,
    aten.narrow.default: _narrowed,
    aten.select.int: _selected,
    aten.select_scatter.default: _selected,
}
_WRITES = frozenset((aten.slice_scatter.default, aten.select_scatter.default))
_READS = frozenset(_SPANS) - _WRITES
_SPLITS: frozenset[Any] = frozenset(
    getattr(packet, overload)
    for packet in (aten.split, aten.split_with_sizes, aten.chunk, aten.tensor_split)
    for overload in cast(Any, packet).overloads()
)


def _given(node: Node, first: int, defaults: Sequence[Any]) -> list[Any]:
    return [*node.args[first:], *defaults[len(node.args) - first :]]


def _size(tensor: object, dim: object) -> tuple[int, int] | None:
    """An axis, counted from the front, and its size; None if one is not known."""
    value = _value(tensor)
    if value is None or not isinstance(dim, int) or not value.ndim:
        return None
    size = value.shape[dim]
    return (dim % value.ndim, size) if isinstance(size, int) else None


def _is_whole(tensor: object, span: Span) -> bool:
    return span[1:] == (0, (_size(tensor, span[0]) or (0, -1))[1])


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
