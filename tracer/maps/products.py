"""Products of vectors with Ā, the map of a step without heads: what row mode asks of a map.

One map A serves several scores, each with its own ∇A and so its own Ā: their vectors come side by side along
the batch, [score * sample, vector, token], and each block of A is rebuilt once for all of them.

Ā is never laid out over tokens here. A vector over tokens is laid out as the rows (or columns) of the map
itself, multiplied with a block of it, and what comes out is added up by token: windows, heads and samples
folded into each other need nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fxplain.attention.plan import Plan
from fxplain.maps.attentions import blocks
from fxplain.maps.blocks import Where
from fxplain.maps.weights import HeadMean, every_head
from fxplain.rules.adjoint import Weights
from fxplain.rules.net_relevancy import centred_gradients, net
from fxplain.run.replay import Gradients, Replay


@dataclass(eq=False)
class MapProducts:
    """Ā of one attention for some scores, rebuilt block by block whenever a product asks for it."""

    plan: Plan
    replay: Replay
    gradients: Sequence[Gradients | None]
    """One for each score; asked for that of the site's tapped tensor when a product is."""
    head_mean: HeadMean
    again: bool
    """Whether several products will be asked for: a map that is no larger than twice what it is rebuilt
    from is kept then."""
    net: bool = False
    """Whether heads may cancel: ``head_mean`` is signed, and what is negative in the mean of all heads counts
    for nothing. For maps that hold each pair of tokens once."""
    centred: bool = False
    """Whether gradients are taken beside the mean of their row. (A block holds whole rows.)"""
    _kept: list[tuple[Where, list[Tensor]]] | None = field(default=None, repr=False)

    def left(self, rows: Tensor) -> Tensor:
        """[batch, vector, query] -> [batch, vector, key]: ``rows · Ā``."""
        return self._product(rows, self.plan.rows, self.plan.cols, len(self.plan.keys), False)

    def right(self, columns: Tensor) -> Tensor:
        """[batch, vector, key] -> [batch, vector, query]: ``Ā · columns``."""
        return self._product(columns, self.plan.cols, self.plan.rows, len(self.plan.queries), True)

    def _product(self, vectors: Tensor, taken: Tensor, given: Tensor, size: int, right: bool) -> Tensor:
        """Vectors at the places ``taken``, times the map, added up at the places ``given``."""
        scores, count = len(self.gradients), vectors.shape[1]
        batch = vectors.shape[0] // scores
        taken, given = taken.to(vectors.device), given.to(vectors.device)
        lines = vectors.reshape(scores, batch, count, -1).transpose(1, 2).reshape(scores, count, -1)
        # place -1 is the last: a zero, as is what lies in a row of no known sample and in no column
        taken = torch.where(taken < lines.shape[-1], taken, -1)
        on_map = torch.nn.functional.pad(lines, (0, 1))[..., taken]
        live = {} if right else _live(on_map.flatten(0, 1), self.plan)
        total = vectors.new_zeros(scores, count, *given.shape)
        if live is not None:
            for where, every in self._weights(live):
                for own, sums, weights in zip(on_map, total, every, strict=True):
                    part = _contracted(_part(own, where), weights.to(vectors.dtype), given.shape, right)
                    _part(sums, where).add_(part)
        out = vectors.new_zeros(scores * count, batch * size + 1)
        given = torch.where((given >= 0) & (given < batch * size), given, batch * size)
        out.index_add_(1, given.reshape(-1), total.reshape(scores * count, -1))
        found = out[:, :-1].view(scores, count, batch, size).transpose(1, 2)
        return found.reshape(scores * batch, count, size) / self.plan.folded

    def _weights(self, live: Mapping[int, range]) -> Iterator[tuple[Where, Iterable[Tensor]]]:
        """The blocks of Ā, one for each score, heads at size 1; and where they lie."""
        if self._kept is None:
            self._own()  # where a slice is run again for them, it leaves what the map is rebuilt from
            if not self._keeps:
                yield from self._formed(live)
                return
            self._kept = self._summed()
        yield from self._kept

    def _summed(self) -> list[tuple[Where, list[Tensor]]]:
        """All blocks, each with those of other heads added: no larger together than the map of one head."""
        found: dict[tuple[tuple[int, int], ...], tuple[Where, list[Tensor]]] = {}
        for where, every in self._formed({}):
            lies = tuple((s.start, s.stop) for axis, s in enumerate(where) if axis not in self.plan.heads)
            if lies in found:
                for total, part in zip(found[lies][1], every, strict=True):
                    total += part
            else:
                found[lies] = where, list(every)
        return list(found.values())

    @property
    def _keeps(self) -> bool:
        """By then the backward pass has let go of far more than that."""
        if not self.again:
            return False
        operands, kept = self.plan.site.map.operands, self.replay.kept
        most = 2 * sum(kept[node.name].numel() for node in operands if node.name in kept)
        return bool(torch.Size(self.plan.shape).numel() <= most)

    def _own(self) -> list[Tensor | None]:
        """The gradients of the site's tapped tensor."""
        name = self.plan.site.tap.name
        return [None if of_score is None else of_score.get(name) for of_score in self.gradients]

    def _formed(self, live: Mapping[int, range]) -> Iterator[tuple[Where, Iterator[Tensor]]]:
        whole = self.plan.heads if self.net else ()
        for block in blocks(self.plan.site, self.replay, self._own(), live, whole):
            yield block.where, (self._mean(maps, gradient) for maps, gradient in block.pairs())

    def _mean(self, maps: Tensor, gradient: Tensor | None) -> Tensor:
        """A block without heads; where it holds only some of them, their share of the mean."""
        plan, heads = self.plan, self.plan.heads
        if self.centred and gradient is not None:
            gradient = centred_gradients(maps, gradient, plan.site.axes.columns)
        shape = [1 if axis in heads else size for axis, size in enumerate(maps.shape)]
        if not heads:
            return self._clamped(every_head(maps, gradient, self.head_mean)).reshape(shape)
        mean = self._clamped(self.head_mean(maps, gradient, heads)).reshape(shape)
        own, whole = (torch.Size([s[axis] for axis in heads]).numel() for s in (maps.shape, plan.full))
        return mean if own == whole else mean * (own / whole)

    def _clamped(self, mean: Tensor) -> Tensor:
        return net(mean) if self.net else mean


def _live(on_map: Tensor, plan: Plan) -> dict[int, range] | None:
    """The only rows of the map that count, by axis; None if there is none."""
    found = {}
    for axis in range(on_map.ndim - 1):
        if plan.rows.shape[axis] > 1 and axis not in plan.site.axes.columns:
            others = [other for other in range(on_map.ndim) if other != axis + 1]
            places = (on_map != 0).any(others).nonzero().flatten() if others else on_map.nonzero().flatten()
            if not places.numel():
                return None
            found[axis] = range(int(places[0]), int(places[-1]) + 1)
    return found if found or bool(on_map.any()) else None


def _part(tensor: Tensor, where: Where) -> Tensor:
    """The block of a tensor [vector, axes of the map...], which has size 1 where it does not vary."""
    own = tuple(
        place if size > 1 else slice(None) for place, size in zip(where, tensor.shape[1:], strict=True)
    )
    return tensor[(slice(None), *own)]


def _contracted(vectors: Tensor, weights: Tensor, given: Sequence[int], right: bool) -> Tensor:
    """[vector, ...]: vectors times weights, summed along the axes where what is given does not vary."""
    gone = [axis for axis, size in enumerate(given) if size == 1 and weights.shape[axis] > 1]
    if weights.ndim > 1 and not right and -2 % weights.ndim in gone and vectors.shape[-1] == 1:
        part = (vectors.squeeze(-1).movedim(0, -2) @ weights).movedim(-2, 0).unsqueeze(-2)
        rest = [axis for axis in gone if axis != weights.ndim - 2]
    elif weights.ndim > 1 and right and -1 % weights.ndim in gone and vectors.shape[-2] == 1:
        part = (weights @ vectors.squeeze(-2).movedim(0, -1)).movedim(-1, 0).unsqueeze(-1)
        rest = [axis for axis in gone if axis != weights.ndim - 1]
    else:
        part = torch.stack(
            [(vector * weights).sum(gone, keepdim=True) if gone else vector * weights for vector in vectors]
        )
        rest = []
    return part.sum([axis + 1 for axis in rest], keepdim=True) if rest else part


@dataclass(eq=False)
class Formed:
    """Maps that are formed whole when a product asks for them, and forgotten if no other will."""

    forms: Sequence[Callable[[], Weights]]
    """One for each score."""
    again: bool
    _kept: list[Weights] | None = field(default=None, repr=False)

    def left(self, rows: Tensor) -> Tensor:
        parts = rows.chunk(len(self.forms))
        return torch.cat([own.left(part) for own, part in zip(self._maps(), parts, strict=True)])

    def right(self, columns: Tensor) -> Tensor:
        parts = columns.chunk(len(self.forms))
        return torch.cat([own.right(part) for own, part in zip(self._maps(), parts, strict=True)])

    def _maps(self) -> Iterable[Weights]:
        if not self.again:
            return (form() for form in self.forms)
        if self._kept is None:
            self._kept = [form() for form in self.forms]
        return self._kept


@dataclass(frozen=True, eq=False)
class Elsewhere:
    """A map that lies on another device than the vectors: they go there, and what comes out goes back."""

    map: Weights
    device: torch.device

    def left(self, rows: Tensor) -> Tensor:
        return self.map.left(rows.to(self.device)).to(rows.device)

    def right(self, columns: Tensor) -> Tensor:
        return self.map.right(columns.to(self.device)).to(columns.device)


@dataclass(frozen=True, eq=False)
class Summed:
    """Several maps of the same tokens as one, each with its share; and of its columns some alone."""

    members: Sequence[tuple[Weights, float]]
    columns: Tensor | None = None
    """``[key]``, int64: which columns of the members' keys; None for all."""
    keys: int = 0
    """How many keys the members have."""

    def left(self, rows: Tensor) -> Tensor:
        total = sum(share * member.left(rows) for member, share in self.members)
        assert isinstance(total, Tensor)
        return total if self.columns is None else total.index_select(-1, self.columns.to(total.device))

    def right(self, columns: Tensor) -> Tensor:
        if self.columns is not None:
            whole = columns.new_zeros(*columns.shape[:-1], self.keys)
            columns = whole.index_copy_(-1, self.columns.to(columns.device), columns)
        total = sum(share * member.right(columns) for member, share in self.members)
        assert isinstance(total, Tensor)
        return total
