"""Stages of fewer tokens: merged, pooled, subsampled, in many spellings of one and the same computation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fxplain

WIDTH, SIDE = 8, 4
Layout = Callable[["Stages", Tensor], Tensor]


class Attend(nn.Module):
    """Self attention in two heads; with ``few`` the keys and values come from fewer tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor, few: Tensor | None = None) -> Tensor:
        few = x if few is None else few
        layers = ((self.q, x), (self.k, few), (self.v, few))
        q, k, v = (f(t).unflatten(-1, (2, 4)).transpose(1, 2) for f, t in layers)
        return self.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))


class Stages(nn.Module):
    """16 patches attend, become 4 by ``merge`` and attend again; the mean is classified."""

    def __init__(self, merge: Layout) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 2, 2)
        self.reduce = nn.Linear(4 * WIDTH, WIDTH)
        self.fine, self.coarse = Attend(), Attend()
        self.head = nn.Linear(WIDTH, 3)
        self.merge = merge

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patches(pixels).flatten(2).transpose(1, 2)
        x = x + self.fine(x)
        x = self.merge(self, x)
        x = x + self.coarse(x)
        logits: Tensor = self.head(x.mean(1))
        return logits


def image(x: Tensor) -> Tensor:
    return x.transpose(1, 2).unflatten(2, (SIDE, SIDE))


def by_slices(m: Stages, x: Tensor) -> Tensor:
    x = x.unflatten(1, (SIDE, SIDE))
    parts = [x[:, 0::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 0::2], x[:, 1::2, 1::2]]
    return m.reduce(torch.cat(parts, -1)).flatten(1, 2)


def by_view(m: Stages, x: Tensor) -> Tensor:
    x = x.view(len(x), 2, 2, 2, 2, WIDTH).permute(0, 1, 3, 2, 4, 5)
    return m.reduce(x.reshape(len(x), 4, 4 * WIDTH))


def by_convolution(m: Stages, x: Tensor) -> Tensor:
    weight = m.reduce.weight.view(WIDTH, 4, WIDTH).transpose(1, 2).reshape(WIDTH, WIDTH, 2, 2)
    return functional.conv2d(image(x), weight, m.reduce.bias, stride=2).flatten(2).mT


def by_unfold(m: Stages, x: Tensor) -> Tensor:
    parts = functional.unfold(image(x), 2, stride=2)  # [batch, width * 4, 4]
    return m.reduce(parts.view(len(x), WIDTH, 4, 4).permute(0, 3, 2, 1).flatten(2))


def by_tensor_unfold(m: Stages, x: Tensor) -> Tensor:
    parts = x.unflatten(1, (SIDE, SIDE)).unfold(1, 2, 2).unfold(2, 2, 2)  # [batch, 2, 2, width, 2, 2]
    return m.reduce(parts.permute(0, 1, 2, 4, 5, 3).reshape(len(x), 4, 4 * WIDTH))


def by_unshuffle(m: Stages, x: Tensor) -> Tensor:
    deep = functional.pixel_unshuffle(image(x), 2).unflatten(1, (WIDTH, 4)).transpose(1, 2).flatten(1, 2)
    return functional.conv2d(deep, m.reduce.weight[..., None, None], m.reduce.bias).flatten(2).mT


def by_einsum(m: Stages, x: Tensor) -> Tensor:
    x = x.view(len(x), 2, 2, 2, 2, WIDTH)
    weight = m.reduce.weight.view(WIDTH, 2, 2, WIDTH)
    return (
        torch.einsum("bripjc,oijc->brpo", x.transpose(2, 3).transpose(2, 3), weight) + m.reduce.bias
    ).flatten(1, 2)


def pool_view(m: Stages, x: Tensor) -> Tensor:
    return x.view(len(x), 2, 2, 2, 2, WIDTH).mean((2, 4)).flatten(1, 2)


def pool_average(m: Stages, x: Tensor) -> Tensor:
    return functional.avg_pool2d(image(x), 2).flatten(2).mT


def pool_adaptive(m: Stages, x: Tensor) -> Tensor:
    return functional.adaptive_avg_pool2d(image(x), 2).flatten(2).transpose(1, 2)


def pool_area(m: Stages, x: Tensor) -> Tensor:
    return functional.interpolate(image(x), scale_factor=0.5, mode="area").flatten(2).mT


def pool_matrix(m: Stages, x: Tensor) -> Tensor:
    place = torch.arange(16)
    window = (place // 8) * 2 + (place % 4) // 2
    return (window[None] == torch.arange(4)[:, None]).float() / 4 @ x


def pool_reduce(m: Stages, x: Tensor) -> Tensor:
    place = torch.arange(16)
    window = (place // 8) * 2 + (place % 4) // 2
    index = window[None, :, None].expand(len(x), -1, WIDTH)
    return torch.zeros(len(x), 4, WIDTH).scatter_reduce(1, index, x, "mean", include_self=False)


def pool_index_add(m: Stages, x: Tensor) -> Tensor:
    place = torch.arange(16)
    window = (place // 8) * 2 + (place % 4) // 2
    return torch.zeros(len(x), 4, WIDTH).index_add(1, window, x) / 4


def pool_slices(m: Stages, x: Tensor) -> Tensor:
    x = x.unflatten(1, (SIDE, SIDE))
    parts = (x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2])
    return torch.stack(parts).mean(0).flatten(1, 2)


def max_pool(m: Stages, x: Tensor) -> Tensor:
    return functional.max_pool2d(image(x), 2).flatten(2).mT


def max_view(m: Stages, x: Tensor) -> Tensor:
    return x.view(len(x), 2, 2, 2, 2, WIDTH).amax((2, 4)).flatten(1, 2)


def max_twice(m: Stages, x: Tensor) -> Tensor:
    parts = x.view(len(x), 2, 2, 2, 2, WIDTH).transpose(2, 3).flatten(3, 4)
    return parts.max(dim=3).values.flatten(1, 2)


def pixels() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(4))


def built(merge: Layout) -> Stages:
    torch.manual_seed(0)
    model = Stages(merge).eval()
    with torch.no_grad():
        for layer in (model.fine, model.coarse):
            layer.q.weight.mul_(3)
            layer.k.weight.mul_(3)
    return model


def explained(merge: Layout) -> tuple[Any, Any]:
    traced = fxplain.trace(built(merge), pixels())
    assert not [entry for entry in traced.census if entry.role == "unknown"]
    return traced, traced.explain(pixels(), target=1)


MERGES = (
    by_slices,
    by_view,
    by_convolution,
    by_unfold,
    by_tensor_unfold,
    by_unshuffle,
    by_einsum,
)
POOLS = (
    pool_view,
    pool_average,
    pool_adaptive,
    pool_area,
    pool_matrix,
    pool_reduce,
    pool_index_add,
    pool_slices,
)
MAXIMA = (max_view, max_pool, max_twice)


@pytest.mark.parametrize(
    ("first", "other"),
    [(group[0], other) for group in (MERGES, POOLS, MAXIMA) for other in group],
    ids=lambda f: f.__name__,
)
def test_merging_is_one_thing_however_spelled(first: Layout, other: Layout) -> None:
    """First-stage patches get the same relevance at the end of the hierarchy, on their grid."""
    torch.testing.assert_close(built(first)(pixels()), built(other)(pixels()))
    traced, result = explained(other)
    assert [(a.kind, a.queries.size, a.keys.size, a.heads) for a in traced.attentions] == [
        ("self", 16, 16, 2),
        ("self", 4, 4, 2),
    ]
    assert result.grid("pixels").shape == (2, 4, 4)
    _, wanted = explained(first)
    torch.testing.assert_close(result.relevance["pixels"], wanted.relevance["pixels"], rtol=1e-4, atol=1e-7)


def test_patches_cut_by_layout_lie_on_the_pictures_grid() -> None:
    class Patches(nn.Module):
        def __init__(self, turned: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.head = nn.Linear(12, 8), nn.Linear(8, 3)
            self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
            self.turned = turned

        def forward(self, pixels: Tensor) -> Tensor:
            cut = pixels.unflatten(-1, (3, 2)).unflatten(-3, (4, 2))  # [batch, 3, row, 2, column, 2]
            cut = cut.flip(2) if self.turned else cut
            x = self.embed(cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2))
            return self.head((x + self.attend(x, x, x)[0]).mean(1))

    pixels = torch.randn(2, 3, 8, 6)
    plain, turned = (fxplain.explain(Patches(t).eval(), pixels, 1).grid("pixels") for t in (False, True))
    assert plain.shape == (2, 4, 3)
    torch.testing.assert_close(plain, turned)


class Frames(nn.Module):
    """A video [frame, row, column] whose places are flattened one way or another; then its frames are pooled,
    or the places of each, or pairs of neighbours merged."""

    def __init__(self, pooled: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.merge = nn.Conv2d(3, 8, 2, 2), nn.Linear(16, 8)
        self.attend = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True)
        self.head, self.pooled = nn.Linear(8, 3), pooled

    def forward(self, video: Tensor) -> Tensor:
        x = self.patches(video.flatten(0, 1)).flatten(2).mT
        x = self.attend(x).unflatten(0, (len(video), -1)).flatten(1, 2)
        x = self.attend(x)
        if self.pooled == "merged":
            x = self.merge(x.reshape(len(x), -1, 16))
        else:
            x = x.unflatten(1, (4, 8)).mean(1 if self.pooled == "frames" else 2)
        return self.head(self.attend(x)[:, 0])


@pytest.mark.parametrize(
    ("pooled", "name", "grid"),
    [("frames", "mean", (2, 4)), ("places", "mean", (4,)), ("merged", "merge", (4, 2, 2))],
)
def test_tokens_made_of_a_flat_video_lie_as_its_places_do(
    pooled: str, name: str, grid: tuple[int, ...]
) -> None:
    traced = fxplain.trace(Frames(pooled).eval(), torch.randn(2, 4, 3, 4, 8))
    assert {space.name: space.grid for space in traced.spaces} == {"video": (4, 2, 4), name: grid}
