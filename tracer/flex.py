"""Flex attention written out: its kernels do not give their map away, nor a derivative on every device.

The arguments are those of ``torch.ops.higher_order.flex_attention``, the operation that a captured graph
holds for :func:`torch.nn.attention.flex_attention.flex_attention`, whose documentation defines what it
computes: softmax(mask(score_mod(query keyᵀ · scale))) value, where ``score_mod`` and ``mask_mod`` are
functions of one score and of its indices (batch, head, query, key).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

NAME = "flex_attention"


def is_flex(node: fx.Node) -> bool:
    """Whether a node calls flex attention."""
    return str(node.target) == NAME  # an operation of higher order has no schema


def compute(node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """A node's result, by operations that have a derivative."""
    function: Callable[..., Any] = flex_attention if is_flex(node) else node.target  # type: ignore[assignment]
    return function(*args, **kwargs)


def flex_scores(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Callable[..., Tensor],
    block_mask: tuple[Any, ...],
    scale: float,
    kernel_options: Mapping[str, Any],
    score_mod_other_buffers: tuple[Any, ...] = (),
    mask_mod_other_buffers: tuple[Any, ...] = (),
    where: tuple[slice, ...] | None = None,
) -> Tensor:
    """The scores [batch, head, query, key] that the softmax gets, in float32 or better; -inf where masked.

    ``where``: the block of them that is wanted.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    batch, head, rows, columns = where or (slice(None),) * 4
    query, key = query[batch, head, rows], key[batch if len(key) > 1 else slice(None), head, columns]
    scores = query.to(dtype) @ key.to(dtype).transpose(-1, -2) * scale
    starts = [0 if part.start is None else part.start for part in (batch, head, rows, columns)]
    places = [
        torch.arange(start, start + size, device=scores.device)
        for start, size in zip(starts, scores.shape, strict=True)
    ]
    changed = _everywhere(score_mod, (0,), len(score_mod_other_buffers))
    visible = _everywhere(block_mask[-1], (), len(mask_mod_other_buffers))
    allowed = visible(*places, *mask_mod_other_buffers)
    return changed(scores, *places, *score_mod_other_buffers).to(dtype).masked_fill(~allowed, -torch.inf)


def _everywhere(
    function: Callable[..., Tensor], scores: tuple[int, ...], buffers: int
) -> Callable[..., Tensor]:
    """A function of one element and its four indices, for all elements at once."""
    for axis in (3, 2, 1, 0):  # the outermost map is that over the batch
        indices = [0 if place == axis else None for place in range(4)]
        function = torch.vmap(function, in_dims=(*scores, *indices, *[None] * buffers))
    return function


def masked_softmax(scores: Tensor) -> Tensor:
    """The softmax of scores; a row that may attend to nothing is 0."""
    dead = scores.detach().amax(-1, keepdim=True) == -torch.inf
    if not bool(dead.any()):
        return torch.softmax(scores, -1)
    return torch.softmax(scores.masked_fill(dead, 0.0), -1).masked_fill(dead, 0.0)  # no NaN, nor in gradients


def flex_attention(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The output [batch, head, query, dim], and of every row log2 of the sum and the largest of its scores.

    The last two are what ``return_lse`` and ``return_aux`` are made of: the kernels work with powers of two.
    """
    scores = flex_scores(query, key, value, *rest)
    value = value.repeat_interleave(query.shape[1] // value.shape[1], 1)
    output = masked_softmax(scores).to(query.dtype) @ value.to(query.dtype)
    return output, scores.logsumexp(-1) / math.log(2), scores.amax(-1) / math.log(2)
