"""Attention in one kernel: its map and gradient, rebuilt from queries, keys and values a block at a time.

What no query can see is left out: keys beyond a causal block's last row, and those that a mask hides from
all its rows. Heads that share keys and values read them where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from fxplain.labels.call import literal
from fxplain.labels.flows import Kernel, Site
from fxplain.maps.blocks import Block, Where, cuts
from fxplain.ops.kernels import flex_scores, is_flex, masked_softmax
from fxplain.run.replay import Replay


def kernel_map(
    map: Kernel, site: Site, replay: Replay, gradient: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """A = softmax(query keyᵀ · scale + mask), and ∇A = dO valueᵀ from the gradient dO of the output.

    Returns both as [..., head, query, key] in float32 or better. Rows that may attend to nothing are 0, as in
    the kernel.
    """
    query, _, value = _operands(site, replay)
    dtype = torch.promote_types(query.dtype, torch.float32)
    maps = torch.zeros(site.shape, dtype=dtype, device=query.device)
    for block in kernel_blocks(site, replay, [None], {}):
        maps[block.where] = block.maps
    if gradient is None:
        return maps, None
    return maps, _times(gradient.to(dtype), value.to(dtype), _shared(query, value))


def kernel_blocks(
    site: Site,
    replay: Replay,
    gradients: Sequence[Tensor | None],
    live: Mapping[int, range],
    whole: Sequence[int] = (),
) -> Iterator[Block]:
    """The blocks of a kernel's map; see :func:`fxplain.maps.attentions.blocks`."""
    query, key, value = _operands(site, replay)
    dtype = torch.promote_types(query.dtype, torch.float32)
    shared = _shared(query, key)
    for where in cuts(site.shape, [query.ndim - 1, *whole], None, live, {query.ndim - 3: shared}):
        lead, rows = where[:-2], where[-2]
        theirs = _of_keys(lead, shared)
        if is_flex(site.node):
            columns = where[-1]
            maps = masked_softmax(_flex_block(site.node, replay, where))
        else:
            mask = None if site.node.name in replay.causal else _mask(site, replay, where)
            columns = _columns(site, replay, where, mask)
            ours = _taken(query, (*lead, rows)).to(dtype) * _scale(site, replay, query)
            scores = _times(ours, _taken(key, (*theirs, columns)).to(dtype), shared)
            scores = _masked(scores, site, replay, mask, rows, columns)
            maps = torch.softmax(scores, -1) if mask is None else masked_softmax(scores)
        seen = _taken(value, (*theirs, columns)).to(dtype)
        yield Block((*lead, rows, columns), maps, _grown(gradients, (*lead, rows), seen, shared))


def rebuilt_outputs(
    site: Site, replay: Replay, changed: Callable[[Where, Tensor], Tensor] | None = None
) -> Iterator[tuple[Where, Tensor]]:
    """A fused attention's output from its rebuilt map, block by block, and which of its rows they are.

    Args:
        changed: from where a block lies and the block to the one that is taken; None: as it is.
    """
    query, _, value = _operands(site, replay)
    shared = _shared(query, value)
    for block in kernel_blocks(site, replay, [None], {}):
        *lead, rows, columns = block.where
        seen = _taken(value, (*_of_keys(tuple(lead), shared), columns)).to(block.maps.dtype)
        maps = block.maps if changed is None else changed(block.where, block.maps)
        yield (*lead, rows), _times(maps, seen.transpose(-1, -2), shared)


def largest_score(site: Site, replay: Replay) -> float:
    """A bound on the scores of a fused attention: the longest query times the longest key, scaled."""
    query, key, _ = (replay.kept[node.name].detach().double() for node in site.map.operands)
    if not query.numel() or not key.numel():
        return 0.0
    return float(query.norm(dim=-1).max() * key.norm(dim=-1).max()) * abs(_scale(site, replay, query))


def _scale(site: Site, replay: Replay, query: Tensor) -> float:
    scale = _argument(site.node, replay, "scale", None)
    return float(query.shape[-1] ** -0.5 if scale is None else scale)


def own_output(site: Site, replay: Replay) -> Tensor:
    """What the kernel itself gives for the operands of the replay."""
    if not is_flex(site.node):
        whole = replay.kept[site.node.name]
        first: Tensor = whole[0] if isinstance(whole, tuple | list) else whole
        return first.detach()
    args, kwargs = _arguments(site.node, replay)
    with torch.no_grad():
        output: Tensor = site.node.target(*args, **kwargs)[0]  # type: ignore[operator]
    return output


def _operands(site: Site, replay: Replay) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, with the axes of the map in front of the features; each query has its own."""
    ndim = len(site.shape)
    query, key, value = (
        tensor[(None,) * (ndim - tensor.ndim)]
        for tensor in (replay.kept[node.name].detach() for node in site.map.operands)
    )
    return query.expand(*site.shape[:-1], -1), key, value


def _grown(
    gradients: Sequence[Tensor | None], where: Where, value: Tensor, shared: int
) -> Iterator[Tensor | None]:
    """∇A = dO valueᵀ for each gradient dO of the output."""
    for gradient in gradients:
        grown = None if gradient is None else _taken(gradient, where).to(value.dtype)
        yield None if grown is None else _times(grown, value, shared)


def _taken(tensor: Tensor, where: Where) -> Tensor:
    """The block of a tensor that broadcasts against the map's first axes."""
    missing = len(where) - tensor.ndim
    own = where if missing <= 0 else where[missing:]
    kept = tuple(place if size > 1 else slice(None) for place, size in zip(own, tensor.shape, strict=False))
    return tensor[kept]


def _shared(query: Tensor, key: Tensor) -> int:
    """How many heads of the queries each head of the keys serves."""
    return query.shape[-3] // key.shape[-3] if query.ndim > 2 and key.shape[-3] else 1


def _of_keys(lead: Where, shared: int) -> Where:
    """The batch and heads of keys for those of queries."""
    if shared == 1 or not lead:
        return lead
    heads = lead[-1]
    return (*lead[:-1], slice(heads.start // shared, -(-heads.stop // shared)))


def _times(queries: Tensor, keys: Tensor, shared: int) -> Tensor:
    """``queries keysᵀ``, [..., head, query, key]; each head of the keys serves several of the queries."""
    if shared == 1:
        return queries @ keys.transpose(-1, -2)
    *lead, heads, rows, width = queries.shape
    together = queries.reshape(*lead, heads // shared, shared * rows, width)
    return (together @ keys.transpose(-1, -2)).reshape(*lead, heads, rows, keys.shape[-2])


def _mask(site: Site, replay: Replay, where: Where) -> Tensor | None:
    """The block of the mask or bias, if the attention has one."""
    for name in ("attn_mask", "attn_bias"):
        found = _argument(site.node, replay, name, None)
        if isinstance(found, Tensor):
            return _taken(found.detach(), where)
    return None


def _is_causal(site: Site, replay: Replay) -> bool:
    return replay.causal.get(site.node.name, bool(_argument(site.node, replay, "is_causal", False)))


def _columns(site: Site, replay: Replay, where: Where, mask: Tensor | None) -> slice:
    """The keys that some row of the block can see."""
    columns = where[-1]
    if _is_causal(site, replay):
        columns = slice(columns.start, min(columns.stop, where[-2].stop))
    shown = None if mask is None else _shown(mask)
    if shown is None:
        return columns
    seen = shown.reshape(-1, shown.shape[-1]).any(0).nonzero().flatten()
    if shown.shape[-1] == 1 or not seen.numel():
        return columns
    return slice(int(seen[0]), min(columns.stop, int(seen[-1]) + 1))


def _shown(mask: Tensor) -> Tensor | None:
    """Which weights a mask leaves; None if it may not be read so: a row that is hidden by the lowest number
    alone, and not by -inf, is spread over all keys."""
    if mask.dtype == torch.bool:
        return mask
    hidden = mask <= torch.finfo(mask.dtype).min
    if not bool(hidden.any()) or bool((hidden.all(-1) & (mask != -torch.inf).any(-1)).any()):
        return None
    return ~hidden


def _masked(
    scores: Tensor, site: Site, replay: Replay, mask: Tensor | None, rows: slice, columns: slice
) -> Tensor:
    if _is_causal(site, replay):
        places = (torch.arange(part.start, part.stop, device=scores.device) for part in (rows, columns))
        row, column = places
        scores = scores.masked_fill_(column > row[:, None], -torch.inf)
    if mask is None:
        return scores
    mask = mask if mask.shape[-1] == 1 else mask[..., columns]
    if mask.dtype == torch.bool:
        return scores.masked_fill_(~mask, -torch.inf)
    return scores.add_(mask.to(scores.dtype))


def _flex_block(node: fx.Node, replay: Replay, where: tuple[slice, ...]) -> Tensor:
    """The scores of flex attention for a block of its map."""
    args, kwargs = _arguments(node, replay)
    return partial(flex_scores, where=where)(*args, **kwargs).detach()


def _arguments(node: fx.Node, replay: Replay) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return fx.node.map_arg((node.args, node.kwargs), lambda used: replay.kept[used.name])


def _argument(node: fx.Node, replay: Replay, name: str, default: Any) -> Any:
    """An argument of the fused call by its name in the schema, nodes replaced by their values."""
    found = literal(node, name)
    if isinstance(found, fx.Node):
        return replay.kept[found.name]
    return default if found is None else found
