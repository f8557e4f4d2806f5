"""Maps a block at a time: a block of A and of ∇A is rebuilt when it is asked for, and forgotten.

What no query can see is left out: keys beyond a causal block's last row, and those that a mask hides from
all its rows. Heads that share keys and values read them where they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from fxplain.labels.flows import Site
from fxplain.maps.attentions import argument, flex_block, grouped, map_of
from fxplain.ops.kernels import is_flex, masked_softmax
from fxplain.run.replay import Replay

MOST = 1 << 19
"""Elements of a map that are held at a time, if a block can be cut so small."""

Where = tuple[slice, ...]
"""A slice for each axis of a map."""


@dataclass(frozen=True, eq=False)
class Block:
    """A part of a map A and of its gradient ∇A, in float32 or better."""

    where: Where
    maps: Tensor
    gradients: Iterable[Tensor | None]
    """One for each score; each is formed when it is asked for, once."""


def blocks(
    site: Site,
    replay: Replay,
    gradients: Sequence[Tensor | None],
    live: Mapping[int, range],
    whole: Sequence[int] = (),
) -> Iterator[Block]:
    """The blocks of an attention's map; elements that are 0 for sure may be left out.

    Args:
        gradients: those of the site's tapped tensor, one for each score; None where there is none.
        live: by axis of the map, the only places that are asked for.
        whole: axes that no block may be cut along, beside those of the columns.
    """
    if site.form == "fused" and len({replay.kept[node.name].ndim for node in site.operands}) == 1:
        yield from _fused(site, replay, gradients, live, whole)
        return
    maps, first = map_of(site, replay, gradients[0])
    grown = [first, *(map_of(site, replay, gradient)[1] for gradient in gradients[1:])]
    for where in cuts(maps.shape, (*site.column_axes, *whole), MOST, live):
        yield Block(where, maps[where], [None if own is None else own[where] for own in grown])


def rebuilt_outputs(site: Site, replay: Replay) -> Iterator[tuple[Where, Tensor]]:
    """A fused attention's output from its rebuilt map, block by block, and which of its rows they are."""
    query, _, value = (replay.kept[node.name].detach() for node in site.operands)
    shared = _shared(query, value)
    for block in blocks(site, replay, [None], {}):
        *lead, rows, columns = block.where
        if value.ndim == block.maps.ndim == query.ndim:
            seen = _taken(value, (*_of_keys(tuple(lead), shared), columns)).to(block.maps.dtype)
            found = _times(block.maps, seen.transpose(-1, -2), shared)
        else:
            own = grouped(value, block.maps)
            found = block.maps @ _taken(own, (*lead, columns, slice(None))).to(block.maps.dtype)
        yield (*lead, rows), found


def largest_score(site: Site, replay: Replay) -> float:
    """A bound on the scores of a fused attention: the longest query times the longest key, scaled."""
    query, key, _ = (replay.kept[node.name].detach().double() for node in site.operands)
    if not query.numel() or not key.numel():
        return 0.0
    return float(query.norm(dim=-1).max() * key.norm(dim=-1).max()) * abs(_scale(site, replay, query))


def _scale(site: Site, replay: Replay, query: Tensor) -> float:
    scale = argument(site.node, replay, "scale", None)
    return float(query.shape[-1] ** -0.5 if scale is None else scale)


def cuts(
    shape: Sequence[int],
    whole: Sequence[int],
    most: int,
    live: Mapping[int, range],
    grains: Mapping[int, int] | None = None,
) -> Iterator[Where]:
    """Cut an array of that shape into blocks, along its first axes first, never along those in ``whole``.

    ``grains``: by axis, what the size of its pieces must be a multiple of.

    Example:
        >>> [[s.start for s in where[:2]] for where in cuts((2, 4, 8), [2], 16, {})]
        [[0, 0], [0, 2], [1, 0], [1, 2]]
    """
    spans = [live.get(axis, range(size)) for axis, size in enumerate(shape)]
    count = torch.Size([len(span) for span in spans]).numel()
    pieces = []
    for axis, span in enumerate(spans):
        step = max(len(span), 1)
        if count > most and axis not in whole and step > 1:
            grain = (grains or {}).get(axis, 1)
            rest = count // step
            step = min(step, max(most // rest // grain, 1) * grain)
            count = rest * step
        pieces.append([slice(at, min(at + step, span.stop)) for at in range(span.start, span.stop, step)])
    yield from product(*pieces)


def _fused(
    site: Site,
    replay: Replay,
    gradients: Sequence[Tensor | None],
    live: Mapping[int, range],
    whole: Sequence[int],
) -> Iterator[Block]:
    query, key, value = (replay.kept[node.name].detach() for node in site.operands)
    dtype = torch.promote_types(query.dtype, torch.float32)
    shared = _shared(query, key)
    heads = {query.ndim - 3: shared}
    for where in cuts(site.shape, [query.ndim - 1, *whole], MOST, live, heads):
        lead, rows = where[:-2], where[-2]
        ours = _taken(query, (*lead, rows)).to(dtype)
        theirs = _of_keys(lead, shared)
        if is_flex(site.node):
            columns = where[-1]
            maps = masked_softmax(flex_block(site.node, replay, where))
        else:
            mask = None if site.node.name in replay.causal else _mask(site, replay, where)
            columns = _columns(site, replay, where, mask)
            scores = _times(
                ours * _scale(site, replay, query), _taken(key, (*theirs, columns)).to(dtype), shared
            )
            scores = _masked(scores, site, replay, mask, rows, columns)
            maps = torch.softmax(scores, -1) if mask is None else masked_softmax(scores)
        seen = _taken(value, (*theirs, columns)).to(dtype)
        yield Block((*lead, rows, columns), maps, _grown(gradients, (*lead, rows), seen, shared))


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
        found = argument(site.node, replay, name, None)
        if isinstance(found, Tensor):
            return _taken(found.detach(), where)
    return None


def _is_causal(site: Site, replay: Replay) -> bool:
    return replay.causal.get(site.node.name, bool(argument(site.node, replay, "is_causal", False)))


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
