"""Who sees whom: windows, grids, neighbours, hashes, gathered and dropped tokens, on a 4 x 4 grid."""

from __future__ import annotations

import math

import torch
from spellings.base import HEAD, HEADS, WIDTH
from torch import Tensor
from torch.nn import functional

from variants.base import SCALE, Expected, Variant, whole

SIDE, GRID = 4, 16
ROW, COL = torch.arange(GRID) // SIDE, torch.arange(GRID) % SIDE


class Seen(Variant):
    """Queries see the keys that ``seen`` says [query, key]."""

    def seen(self) -> Tensor:
        return torch.ones(GRID, GRID, dtype=torch.bool)

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        return self.scores(q, k).masked_fill(~self.seen(), -math.inf).softmax(-1)


def window_ids(step: int = 1, size: int = 2) -> Tensor:
    return (ROW // size) * 2 + COL // size


class Windows(Seen):
    """2 x 2 windows next to the batch axis, by view and permute."""

    def seen(self) -> Tensor:
        return window_ids()[:, None] == window_ids()

    def cut(self, t: Tensor) -> Tensor:
        """[batch, head, token, dim] -> [batch * window, head, 4, dim]."""
        t = t.view(-1, HEADS, 2, 2, 2, 2, HEAD).permute(0, 2, 4, 1, 3, 5, 6)
        return t.reshape(-1, HEADS, 4, HEAD)

    def join(self, t: Tensor) -> Tensor:
        t = t.view(-1, 2, 2, HEADS, 2, 2, HEAD).permute(0, 3, 1, 4, 2, 5, 6)
        return t.reshape(-1, HEADS, GRID, HEAD)

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (self.cut(t) for t in (q, k, v))
        return self.join(self.scores(q, k).softmax(-1) @ v)


class WindowsFused(Windows):
    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (self.cut(t) for t in (q, k, v))
        return self.join(functional.scaled_dot_product_attention(q, k, v, scale=SCALE))


class WindowsUnfolded(Windows):
    """Windows by F.unfold, and back by F.fold."""

    def cut(self, t: Tensor) -> Tensor:
        image = t.transpose(-1, -2).reshape(-1, WIDTH, SIDE, SIDE)
        parts = functional.unfold(image, 2, stride=2).view(-1, HEADS, HEAD, 4, 4)
        return parts.permute(0, 4, 1, 3, 2).reshape(-1, HEADS, 4, HEAD)

    def join(self, t: Tensor) -> Tensor:
        parts = t.view(-1, 4, HEADS, 4, HEAD).permute(0, 2, 4, 3, 1).reshape(-1, WIDTH * 4, 4)
        return functional.fold(parts, SIDE, 2, stride=2).view(-1, HEADS, HEAD, GRID).transpose(-1, -2)


class WindowsLooped(Windows):
    """A Python loop over the windows, written back by slices."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.unflatten(2, (SIDE, SIDE)) for t in (q, k, v))
        out = torch.zeros_like(q)
        for i in range(0, SIDE, 2):
            for j in range(0, SIDE, 2):
                a, b, c = (t[:, :, i : i + 2, j : j + 2].flatten(2, 3) for t in (q, k, v))
                out[:, :, i : i + 2, j : j + 2] = (self.scores(a, b).softmax(-1) @ c).unflatten(2, (2, 2))
        return out.flatten(2, 3)


class WindowsStrided(Windows):
    """Windows as a strided view of the memory."""

    def cut(self, t: Tensor) -> Tensor:
        t = t.contiguous()
        b, h, n, d = t.stride()
        sizes = (t.shape[0], 2, 2, HEADS, 2, 2, HEAD)
        return t.as_strided(sizes, (b, 2 * SIDE * n, 2 * n, h, SIDE * n, n, d)).reshape(-1, HEADS, 4, HEAD)


class Grid(Windows):
    """MaxViT's grid: tokens two apart see one another."""

    def seen(self) -> Tensor:
        ids = (ROW % 2) * 2 + COL % 2
        return ids[:, None] == ids

    def cut(self, t: Tensor) -> Tensor:
        t = t.view(-1, HEADS, 2, 2, 2, 2, HEAD).permute(0, 3, 5, 1, 2, 4, 6)
        return t.reshape(-1, HEADS, 4, HEAD)

    def join(self, t: Tensor) -> Tensor:
        t = t.view(-1, 2, 2, HEADS, 2, 2, HEAD).permute(0, 3, 4, 1, 5, 2, 6)
        return t.reshape(-1, HEADS, GRID, HEAD)


class GridSliced(Grid):
    """The same by strided slices."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.unflatten(2, (SIDE, SIDE)) for t in (q, k, v))
        out = torch.empty_like(q)
        for i in (0, 1):
            for j in (0, 1):
                a, b, c = (t[:, :, i::2, j::2].flatten(2, 3) for t in (q, k, v))
                out[:, :, i::2, j::2] = (self.scores(a, b).softmax(-1) @ c).unflatten(2, (2, 2))
        return out.flatten(2, 3)


class GridShuffled(Grid):
    """The same by pixel_unshuffle."""

    def cut(self, t: Tensor) -> Tensor:
        image = t.transpose(-1, -2).reshape(-1, WIDTH, SIDE, SIDE)
        parts = functional.pixel_unshuffle(image, 2).view(-1, HEADS, HEAD, 4, 4)  # phase, place
        return parts.permute(0, 3, 1, 4, 2).reshape(-1, HEADS, 4, HEAD)

    def join(self, t: Tensor) -> Tensor:
        parts = t.view(-1, 4, HEADS, 4, HEAD).permute(0, 2, 4, 1, 3).reshape(-1, WIDTH * 4, 2, 2)
        image = functional.pixel_shuffle(parts, 2)
        return image.view(-1, HEADS, HEAD, GRID).transpose(-1, -2)


class Shifted(Windows):
    """Rolled by one, masked where the roll joins strangers."""

    def zones(self) -> Tensor:
        zone = torch.tensor([0, 0, 1, 2])
        return zone[ROW] * 3 + zone[COL]

    def seen(self) -> Tensor:
        rolled = window_ids().view(SIDE, SIDE)
        zones = self.zones().view(SIDE, SIDE)
        window, zone = (t.roll((1, 1), (0, 1)).flatten() for t in (rolled, zones))
        return (window[:, None] == window) & (zone[:, None] == zone)

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (self.cut(t.unflatten(2, (SIDE, SIDE)).roll((-1, -1), (2, 3))) for t in (q, k, v))
        zone = self.zones().view(2, 2, 2, 2).transpose(1, 2).reshape(4, 4)
        mask = torch.zeros(4, 4, 4).masked_fill(zone[:, :, None] != zone[:, None], -math.inf)
        scores = self.scores(q, k).view(-1, 4, HEADS, 4, 4) + mask[:, None]
        out = self.join(scores.softmax(-1).view(-1, HEADS, 4, 4) @ v)
        return out.unflatten(2, (SIDE, SIDE)).roll((1, 1), (2, 3)).flatten(2, 3)


class ShiftedByCat(Shifted):
    """The roll by two cats; bool mask of SDPA."""

    @staticmethod
    def turn(t: Tensor, by: int) -> Tensor:
        t = torch.cat([t[:, :, by:], t[:, :, :by]], 2)
        return torch.cat([t[:, :, :, by:], t[:, :, :, :by]], 3)

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch = q.shape[0]
        q, k, v = (self.cut(self.turn(t.unflatten(2, (SIDE, SIDE)), 1)) for t in (q, k, v))
        zone = self.zones().view(2, 2, 2, 2).transpose(1, 2).reshape(4, 4)
        mask = (zone[:, :, None] == zone[:, None])[:, None].repeat(batch, 1, 1, 1)
        out = self.join(functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=SCALE))
        return self.turn(out.unflatten(2, (SIDE, SIDE)), -1).flatten(2, 3)


class Axial(Seen):
    """Along rows alone."""

    def seen(self) -> Tensor:
        return ROW[:, None] == ROW

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.unflatten(2, (SIDE, SIDE)) for t in (q, k, v))
        weights = torch.einsum("bhrid,bhrjd->bhrij", q, k).mul(SCALE).softmax(-1)
        return torch.einsum("bhrij,bhrjd->bhrid", weights, v).flatten(2, 3)


class AxialColumns(Seen):
    """Along columns alone, by einsum with the columns' letter in the middle."""

    def seen(self) -> Tensor:
        return COL[:, None] == COL

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.unflatten(2, (SIDE, SIDE)) for t in (q, k, v))
        weights = torch.einsum("bhicd,bhjcd->bhcij", q, k).mul(SCALE).softmax(-1)
        return torch.einsum("bhcij,bhjcd->bhicd", weights, v).flatten(2, 3)


class CrissCross(Seen):
    """CCNet: scores along row and column in one softmax, then two products added up."""

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        scores = self.scores(q, k)
        along = torch.where(ROW[:, None] == ROW, scores.exp(), 0) + torch.where(
            COL[:, None] == COL, scores.exp(), 0
        )
        return along / along.sum(-1, keepdim=True)

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.unflatten(2, (SIDE, SIDE)) for t in (q, k, v))
        on_rows = torch.einsum("bhrid,bhrjd->bhrij", q, k)
        on_cols = torch.einsum("bhicd,bhjcd->bhicj", q, k)
        weights = torch.cat([on_rows, on_cols], -1).mul(SCALE).softmax(-1)
        of_rows = torch.einsum("bhrij,bhrjd->bhrid", weights[..., :SIDE], v)
        of_cols = torch.einsum("bhicj,bhjcd->bhicd", weights[..., SIDE:], v)
        return (of_rows + of_cols).flatten(2, 3)


class Neighbourhood(Seen):
    """NAT by unfold: each token sees the 3 x 3 around it; beyond the edge nothing."""

    def seen(self) -> Tensor:
        return ((ROW[:, None] - ROW).abs() <= 1) & ((COL[:, None] - COL).abs() <= 1)

    def around(self, t: Tensor) -> Tensor:
        """[batch, head, token, dim] -> [batch, head, token, 9, dim]."""
        image = t.transpose(-1, -2).reshape(-1, WIDTH, SIDE, SIDE)
        parts = functional.unfold(image, 3, padding=1)
        return parts.view(-1, HEADS, HEAD, 9, GRID).permute(0, 1, 4, 3, 2)

    def inside(self) -> Tensor:
        parts = functional.unfold(torch.ones(1, 1, SIDE, SIDE), 3, padding=1)
        return parts.view(9, GRID).T > 0

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = self.around(k), self.around(v)
        scores = (q[..., None, :] @ k.mT).squeeze(-2) * SCALE
        weights = scores.masked_fill(~self.inside(), -math.inf).softmax(-1)
        return (weights[..., None, :] @ v).squeeze(-2)


class NeighbourhoodElementwise(Neighbourhood):
    """Products and sums written out, as in stand-alone self-attention."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = self.around(k), self.around(v)
        scores = (q[..., None, :] * k).sum(-1) * SCALE
        weights = scores.masked_fill(~self.inside(), -math.inf).softmax(dim=-1)
        return (weights[..., None] * v).sum(dim=-2)


class NeighbourhoodShifted(Neighbourhood):
    """Nine shifted copies instead of an unfold, stacked."""

    def around(self, t: Tensor) -> Tensor:
        wide = functional.pad(t.unflatten(2, (SIDE, SIDE)), (0, 0, 1, 1, 1, 1))
        parts = [wide[:, :, i : i + SIDE, j : j + SIDE] for i in range(3) for j in range(3)]
        return torch.stack(parts, 4).flatten(2, 3)


class NeighbourhoodView(Neighbourhood):
    """Tensor.unfold twice."""

    def around(self, t: Tensor) -> Tensor:
        wide = functional.pad(t.unflatten(2, (SIDE, SIDE)), (0, 0, 1, 1, 1, 1))
        parts = wide.unfold(2, 3, 1).unfold(3, 3, 1)  # [b, h, 4, 4, d, 3, 3]
        return parts.flatten(-2).transpose(-1, -2).flatten(2, 3)


class NeighbourhoodIndexed(Neighbourhood):
    """A table of neighbours indexes the keys; the kernel moves inwards at the edges, as NAT's does."""

    def table(self) -> Tensor:
        start = (torch.arange(SIDE) - 1).clamp(0, SIDE - 3)
        near = start[:, None] + torch.arange(3)  # [4, 3]
        return (near[ROW][:, :, None] * SIDE + near[COL][:, None]).flatten(1)  # [16, 9]

    def seen(self) -> Tensor:
        return functional.one_hot(self.table(), GRID).sum(1) > 0

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = k[:, :, self.table()], v[:, :, self.table()]
        weights = torch.einsum("bhqd,bhqnd->bhqn", q, k).mul(SCALE).softmax(-1)
        return torch.einsum("bhqn,bhqnd->bhqd", weights, v)


class Halo(Seen):
    """HaloNet: 2 x 2 blocks see themselves and a rim of one."""

    def seen(self) -> Tensor:
        low_r, low_c = (ROW // 2) * 2 - 1, (COL // 2) * 2 - 1
        rows = (low_r[:, None] <= ROW) & (low_r[:, None] + 4 > ROW)
        return rows & (low_c[:, None] <= COL) & (low_c[:, None] + 4 > COL)

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch = q.shape[0]
        q = q.view(batch, HEADS, 2, 2, 2, 2, HEAD).transpose(3, 4).reshape(batch, HEADS, 4, 4, HEAD)

        def rim(t: Tensor) -> Tensor:
            image = t.transpose(-1, -2).reshape(batch, -1, SIDE, SIDE)
            parts = functional.unfold(image, 4, stride=2, padding=1)
            return parts.view(batch, HEADS, -1, 16, 4).permute(0, 1, 4, 3, 2)

        inside = functional.unfold(torch.ones(1, 1, SIDE, SIDE), 4, stride=2, padding=1)[0].T > 0  # [4, 16]
        scores = (q @ rim(k).mT * SCALE).masked_fill(~inside[:, None], torch.finfo(q.dtype).min)
        out = scores.softmax(-1) @ rim(v)
        return out.view(batch, HEADS, 2, 2, 2, 2, HEAD).transpose(3, 4).reshape(batch, HEADS, GRID, HEAD)


class Sliding(Seen):
    """Longformer's window by a mask on dense scores."""

    def seen(self) -> Tensor:
        place = torch.arange(GRID)
        return (place[:, None] - place).abs() <= 2

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=self.seen(), scale=SCALE)


class SlidingDiagonals(Sliding):
    """Diagonal by diagonal: rolled keys, stacked scores."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        place = torch.arange(GRID)
        scores, moved = [], []
        for gap in range(-2, 3):
            inside = (place + gap >= 0) & (place + gap < GRID)
            score = (q * k.roll(-gap, 2)).sum(-1) * SCALE
            scores.append(score.masked_fill(~inside, -math.inf))
            moved.append(v.roll(-gap, 2))
        weights = torch.stack(scores, -1).softmax(-1)
        return (weights[..., None] * torch.stack(moved, -2)).sum(-2)


class GlobalLocal(Sliding):
    """BigBird: one softmax over a global column and a window, two products added up."""

    def seen(self) -> Tensor:
        seen = super().seen()
        seen[:, 0] = True
        return seen

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        place = torch.arange(GRID)
        near = place[:, None] + torch.arange(-2, 3)
        outside = (near < 1) | (near >= GRID)
        near = near.clamp(0, GRID - 1)
        local = torch.einsum("bhqd,bhqnd->bhqn", q, k[:, :, near]).masked_fill(outside, -1e30)
        glob = torch.einsum("bhqd,bhgd->bhqg", q, k[:, :, :1])
        weights = (torch.cat([glob, local], -1) * SCALE).softmax(-1)
        out = weights[..., :1] @ v[:, :, :1]
        return out + torch.einsum("bhqn,bhqnd->bhqd", weights[..., 1:], v[:, :, near])


class Dilated(Seen):
    """LongNet: every second token of a segment of eight."""

    def seen(self) -> Tensor:
        place = torch.arange(GRID)
        return (place[:, None] // 8 == place // 8) & (place[:, None] % 2 == place % 2)

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.zeros_like(q)
        for segment in range(2):
            for offset in range(2):
                at = torch.arange(segment * 8 + offset, segment * 8 + 8, 2)
                part = self.scores(q[:, :, at], k[:, :, at]).softmax(-1) @ v.index_select(2, at)
                out.index_copy_(2, at, part)
        return out


class Hashed(Seen):
    """Reformer in short: tokens sorted by a hash, chunks of the sorted attend, unsorted by argsort."""

    def order(self, x: Tensor) -> Tensor:
        return x.sum(-1).argsort(-1)  # [batch, head, token]

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        rank = self.order(q).argsort(-1) // 4
        same = rank[..., :, None] == rank[..., None, :]
        return self.scores(q, k).masked_fill(~same, -math.inf).softmax(-1)

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        order = self.order(q)
        back = order.argsort(-1)
        index = order[..., None].expand(-1, -1, -1, HEAD)
        a, b, c = (t.gather(2, index).unflatten(2, (4, 4)) for t in (q, k, v))
        out = ((a @ b.mT * SCALE).softmax(-1) @ c).flatten(2, 3)
        return out.gather(2, back[..., None].expand(-1, -1, -1, HEAD))


class HashedScattered(Hashed):
    """Put back by a scatter."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        index = self.order(q)[..., None].expand(-1, -1, -1, HEAD)
        a, b, c = (torch.take_along_dim(t, index, 2).view(-1, HEADS, 4, 4, HEAD) for t in (q, k, v))
        out = (torch.matmul(a, b.mT) * SCALE).softmax(-1).matmul(c).view(-1, HEADS, GRID, HEAD)
        return torch.zeros_like(out).scatter_(2, index, out)


class Sorted(Seen):
    """Tokens in another order for a while, the same for all heads; boolean rows pick the first half."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        order = torch.tensor([3, 7, 1, 15, 0, 9, 4, 12, 2, 14, 8, 5, 11, 6, 13, 10])
        back = torch.empty_like(order)
        back[order] = torch.arange(GRID)
        out = self.scores(q[:, :, order], k[:, :, order]).softmax(-1) @ v[:, :, order]
        return out[:, :, back]


class KeysDropped(Seen):
    """Odd keys are dropped by a slice."""

    def seen(self) -> Tensor:
        return (torch.arange(GRID) % 2 == 0).expand(GRID, GRID)

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.scores(q, k[:, :, ::2]).softmax(-1) @ v[:, :, ::2]


class KeysChosen(Seen):
    """The eight keys with the largest norm in each sample and head."""

    def chosen(self, k: Tensor) -> Tensor:
        return k.norm(dim=-1).topk(8, dim=-1).indices

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        seen = torch.zeros(k.shape[:3], dtype=torch.bool).scatter(2, self.chosen(k), True)
        return self.scores(q, k).masked_fill(~seen[:, :, None], -math.inf).softmax(-1)

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        index = self.chosen(k)[..., None].expand(-1, -1, -1, HEAD)
        return self.scores(q, k.gather(2, index)).softmax(-1) @ v.gather(2, index)


class Padded(Windows):
    """Padded to 6 x 6 for windows of three, and cropped again."""

    def seen(self) -> Tensor:
        ids = (ROW // 3) * 2 + COL // 3
        return ids[:, None] == ids

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        def cut(t: Tensor) -> Tensor:
            t = functional.pad(t.unflatten(2, (SIDE, SIDE)), (0, 0, 0, 2, 0, 2))
            return t.view(-1, HEADS, 2, 3, 2, 3, t.shape[-1]).permute(0, 2, 4, 1, 3, 5, 6).flatten(4, 5)

        real = cut(torch.ones(1, HEADS, GRID, 1))[..., 0]  # [1, 2, 2, head, 9]
        q, k, v = cut(q), cut(k), cut(v)
        scores = (q @ k.mT * SCALE).masked_fill(real[..., None, :] == 0, -1e9)
        out = (scores.softmax(-1) @ v).unflatten(4, (3, 3)).permute(0, 3, 1, 4, 2, 5, 6)
        return out.reshape(-1, HEADS, 6, 6, HEAD)[:, :, :4, :4].flatten(2, 3)


PLACES: dict[str, Expected] = {
    name: Expected(build, kinds, size=GRID)
    for name, build, kinds in (
        ("windows", Windows, whole(size=GRID)),
        ("windows-fused", WindowsFused, whole(size=GRID)),
        ("windows-unfold", WindowsUnfolded, whole(size=GRID)),
        ("windows-loop", WindowsLooped, whole(4, 4)),
        ("windows-as_strided", WindowsStrided, whole(size=GRID)),
        ("windows-padded", Padded, whole(size=GRID)),
        ("grid", Grid, whole(size=GRID)),
        ("grid-slices", GridSliced, whole(4, 4)),
        ("grid-pixel_shuffle", GridShuffled, whole(size=GRID)),
        ("shifted", Shifted, whole(size=GRID)),
        ("shifted-cat", ShiftedByCat, whole(size=GRID)),
        ("axial-rows", Axial, whole(size=GRID)),
        ("axial-columns", AxialColumns, whole(size=GRID)),
        ("criss_cross", CrissCross, whole(size=GRID)),
        ("neighbourhood-unfold", Neighbourhood, whole(size=GRID)),
        ("neighbourhood-elementwise", NeighbourhoodElementwise, whole(size=GRID)),
        ("neighbourhood-stack", NeighbourhoodShifted, whole(size=GRID)),
        ("neighbourhood-view", NeighbourhoodView, whole(size=GRID)),
        ("neighbourhood-index", NeighbourhoodIndexed, whole(size=GRID)),
        ("halo", Halo, whole(size=GRID)),
        ("sliding", Sliding, whole(size=GRID)),
        ("sliding-diagonals", SlidingDiagonals, whole(size=GRID)),
        ("global_local", GlobalLocal, whole(size=GRID)),
        ("dilated", Dilated, whole(4, 4)),
        ("hashed", Hashed, whole(size=GRID)),
        ("hashed-scatter", HashedScattered, whole(size=GRID)),
        ("sorted", Sorted, whole(size=GRID)),
        ("keys-sliced", KeysDropped, [("self", GRID, 8, HEADS)]),
        ("keys-chosen", KeysChosen, [("self", GRID, 14, HEADS)]),
    )
}
