"""Masks that are the same for every input and say no more than a flag of the kernel does: the flag instead.

Libraries write causal masks out where a model is traced, as a tensor of tokens times tokens. With the flag no
such tensor is made, and the kernel skips what nobody sees.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fxplain.capture.captured import Draft

KERNEL = torch.ops.aten.scaled_dot_product_attention.default
NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


def as_flags(draft: Draft) -> Draft:
    """The draft with such masks taken out; the graph is changed in place."""
    graph = draft.graph.graph
    known: dict[fx.Node, Tensor | None] = {}
    gone: list[fx.Node] = []
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not KERNEL:
            continue
        given = dict(zip(NAMES, node.args, strict=False)) | node.kwargs
        mask, shapes = given.get("attn_mask"), [_shape(given[name]) for name in ("query", "key")]
        if not isinstance(mask, fx.Node) or given.get("is_causal") or None in shapes:
            continue
        if mask not in known:
            known[mask] = _constant(mask)
        value = known[mask]
        causal = None if value is None else is_causal(value, *shapes)  # type: ignore[arg-type]
        if causal is not None:
            node.args = tuple(given.pop(name) for name in NAMES[:3])
            node.kwargs = given | {"attn_mask": None, "is_causal": causal}
            gone.append(mask)
    while gone:
        node = gone.pop()
        if not node.users and node.op == "call_function" and not node._erased:
            gone += node.all_input_nodes
            graph.erase_node(node)
    return draft


def is_causal(mask: Tensor, query: torch.Size, key: torch.Size) -> bool | None:
    """True for a causal mask, False for one that hides nothing, None for any other.

    Args:
        mask: [..., query, key]; True where a key is seen.
        query, key: shapes of the kernel's operands.

    Example:
        >>> is_causal(torch.ones(3, 3).tril().bool(), torch.Size([3, 1]), torch.Size([3, 1]))
        True
    """
    if mask.dtype != torch.bool or any(
        size > 1 and stride for size, stride in zip(mask.shape[:-2], mask.stride()[:-2], strict=True)
    ):
        return None
    while mask.ndim > 2:
        mask = mask[0]
    if bool(mask.all()):
        return False
    if not mask.shape[-1] == query[-2] == key[-2] == mask.shape[0]:
        return None
    return True if torch.equal(mask, torch.ones_like(mask).tril()) else None


def _shape(node: Any) -> torch.Size | None:
    """The shape of a node's value, where it is known and the same for all inputs of the graph."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    known = isinstance(value, Tensor) and all(isinstance(size, int) for size in value.shape)
    return value.shape if known else None  # type: ignore[union-attr]


def _constant(mask: fx.Node) -> Tensor | None:
    """The value of a node that depends on no input, weight or draw of numbers; None if it does."""
    behind, ahead = {mask}, [mask]
    while ahead:
        node = ahead.pop()
        if node.op != "call_function" or not _repeatable(node):
            return None
        fresh = [used for used in node.all_input_nodes if used not in behind]
        behind.update(fresh)
        ahead += fresh
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in mask.graph.nodes:
            if node in behind:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda used: values[used])
                values[node] = node.target(*args, **kwargs)
                if node is mask:
                    break
    found = values[mask]
    return found if isinstance(found, Tensor) else None


def _repeatable(node: fx.Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    return torch.Tag.nondeterministic_seeded not in target.tags and not target._schema.is_mutable
