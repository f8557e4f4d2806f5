"""Attention in one kernel, taken apart: so that its map has a relevance too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxplain.attribution.lrp.table import Call, Part, Shares, relevance_rule
from fxplain.labels.call import aten
from fxplain.ops.kernels import KERNELS, flex_scores, is_flex, masked_softmax
from fxplain.rules.lrp_products import Product, bilinear_rule, epsilon_rule
from fxplain.rules.lrp_sums import epsilon_split


def scored(query: Tensor, key: Tensor) -> Tensor:
    return query @ key.transpose(-1, -2)


@relevance_rule(*aten(KERNELS), "flex_attention")
def fused_attention(call: Call) -> Shares:
    """``softmax(query keyᵀ · scale + mask) value``, step by step: map times values, softmax, scores."""
    query = call.argument("query")
    key, value = (_grouped(call.argument(name), query) for name in ("key", "value"))
    scores, allowed, bias = _scores(call, query, key)
    maps = masked_softmax(scores)
    looks = call.carries("query") or call.carries("key") or call.carries("attn_mask")
    weighing = looks, call.carries("value")
    to_maps, to_value = _product(call, torch.matmul, (maps, value), call.relevance, weighing, "attention")
    call.maps[call.node.name] = torch.zeros_like(maps) if to_maps is None else to_maps
    shares: list[Part] = [] if to_value is None else [_ungrouped(call, "value", to_value)]
    if to_maps is None or (call.rules.attention == "values" and to_value is not None):
        return shares
    to_scores = to_maps if call.rules.softmax is None else call.rules.softmax(scores, maps, to_maps, -1)
    to_scores = to_scores.masked_fill(~allowed, 0.0)
    if bias is not None:
        to_scores = _past_bias(call, scored(query, key) * _scale(call, query), bias, to_scores, shares)
    carrying = call.carries("query"), call.carries("key")
    to_query, to_key = _product(call, scored, (query, key), to_scores, carrying, "scores")
    if to_query is not None:
        shares.append(_ungrouped(call, "query", to_query))
    if to_key is not None:
        shares.append(_ungrouped(call, "key", to_key))
    return shares


def _product(
    call: Call,
    product: Product,
    sides: tuple[Tensor, Tensor],
    relevance: Tensor,
    carrying: tuple[bool, bool],
    role: str,
) -> tuple[Tensor | None, Tensor | None]:
    """The relevance of both sides of a product; None for one that carries none."""
    left, right = sides
    swapped: Product = lambda one, other: product(other, one)  # noqa: E731
    values_only = role == "attention" and call.rules.attention == "values"
    if all(carrying) and not values_only:
        return bilinear_rule(product, left, right, relevance, call.rules.epsilon)
    output = product(left, right)
    if carrying[1]:
        return None, epsilon_rule(swapped, right, left, output, relevance, call.rules.epsilon)
    if not carrying[0]:
        return None, None
    return epsilon_rule(product, left, right, output, relevance, call.rules.epsilon), None


def _scale(call: Call, query: Tensor) -> float:
    scale = call.argument("scale")
    return float(query.shape[-1] ** -0.5 if scale is None else scale)


def _scores(call: Call, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """The scores, -inf where masked; where they are not; and what is added to them, if anything."""
    if is_flex(call.node):
        scores = flex_scores(*call.args, **call.kwargs)
        return scores, torch.isfinite(scores), None
    scores, bias = scored(query, key) * _scale(call, query), None
    allowed = torch.ones_like(scores, dtype=torch.bool)
    if call.argument("is_causal", False):
        allowed = allowed.tril()
    for name in ("attn_mask", "attn_bias"):
        mask: Any = call.argument(name)
        if isinstance(mask, Tensor):
            allowed = allowed & (mask if mask.dtype == torch.bool else torch.isfinite(mask))
            bias = None if mask.dtype == torch.bool else mask.to(scores.dtype)
    scores = scores if bias is None else scores + bias
    return scores.masked_fill(~allowed, -torch.inf), allowed, bias


def _past_bias(call: Call, raw: Tensor, bias: Tensor, relevance: Tensor, shares: list[Part]) -> Tensor:
    """What the product of query and key keeps of the scores' relevance, beside a float mask or bias."""
    name = "attn_mask" if call.source("attn_mask") is not None else "attn_bias"
    node = call.source(name)
    terms = [raw, bias.expand_as(raw)]
    if node in call.sides.carriers and node is not None:
        kept, apart = call.rules.addition(terms, relevance, call.total)
        shares.append((node, apart.sum_to_size(bias.shape)))
        return kept
    if not call.rules.absorbing and node not in call.sides.parameters:
        return relevance
    split = epsilon_split(terms, relevance, call.rules.epsilon) if call.rules.absorbing else None
    kept, apart = split or call.rules.addition(terms, relevance, call.total)
    shares.append((None, apart))
    return kept


def _grouped(tensor: Tensor, like: Tensor) -> Tensor:
    """Keys or values [..., head, key, dim] of grouped heads, repeated for the heads of ``like``."""
    if tensor.ndim > 2 and tensor.shape[-3] not in (1, like.shape[-3]):
        tensor = tensor.repeat_interleave(like.shape[-3] // tensor.shape[-3], -3)
    return tensor


def _ungrouped(call: Call, name: str, relevance: Tensor) -> tuple[Any, Tensor]:
    """Relevance of keys or values as they were before grouped heads were repeated."""
    real = call.argument(name)
    if real.ndim > 2 and relevance.shape[-3] != real.shape[-3]:
        relevance = relevance.reshape(*real.shape[:-2], -1, *real.shape[-2:]).sum(-3)
    return call.source(name), relevance
