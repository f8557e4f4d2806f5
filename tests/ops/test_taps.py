"""Windows of convolutions and poolings: for each place of the window, the element that is read there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxplain
from fxplain.ops.taps import tap_views

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "padded": {"padding": 1},
    "every second": {"stride": 2},
    "dilated": {"dilation": 2},
    "same": {"padding": "same"},
    "same, dilated": {"padding": "same", "dilation": 2},
    "valid": {"padding": "valid"},
}


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_convolution_is_the_sum_over_its_taps(dims: int, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = (nn.Conv1d, nn.Conv2d)[dims - 1](2, 3, 3, bias=False, **options).double()
    x = torch.randn(2, 2, *(9, 8)[:dims], dtype=torch.float64)
    graph = torch.export.export(model, (x,), strict=False).graph
    node = next(n for n in graph.nodes if "conv" in str(n.target))
    expected = model(x)
    views = tap_views(x, node, expected.shape, (3,) * dims, 1)
    weights = model.weight.flatten(2).unbind(-1)
    found = sum(torch.einsum("oi,bi...->bo...", w, view) for w, view in zip(weights, views, strict=True))
    torch.testing.assert_close(found, expected)


def test_a_pooling_reads_every_element_once() -> None:
    pool, x = nn.AvgPool1d(3), torch.randn(2, 2, 9)
    graph = torch.export.export(pool, (x,), strict=False).graph
    node = next(n for n in graph.nodes if "pool" in str(n.target))
    views = tap_views(x, node, (2, 2, 3), (3,), 1)
    torch.testing.assert_close(torch.stack(views).mean(0), pool(x))


class Slid(nn.Module):
    """Attention, then a window of three tokens at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.slide, self.head = nn.Linear(5, 8), nn.Conv1d(8, 8, 3), nn.Linear(8, 2)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.attend(x, x, x)[0]
        out: Tensor = self.head(self.slide(x.mT).mT)
        return out


def test_windows_without_padding_overlap() -> None:
    torch.manual_seed(0)
    traced, x = fxplain.trace(Slid().eval(), torch.randn(1, 8, 5)), torch.randn(1, 8, 5)
    for place in range(6):
        matrix = traced.explain(x, (place, 1), method="rollout", mode="matrix").matrix("slide", "x")[0, place]
        assert matrix.topk(3).indices.sort().values.tolist() == [place, place + 1, place + 2]


class OverFeatures(nn.Module):
    """Attention, what goes over the features of each token alone, and attention again."""

    def __init__(self, over: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head, self.over = nn.Linear(5, 8), nn.Linear(8, 2), over
        self.first, self.second = (nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.first(x, x, x)[0]
        x = self.over(x)
        out: Tensor = self.head((x + self.second(x, x, x)[0])[:, 0])
        return out


KERNEL = torch.tensor([[[0.5, -1.0, 0.7]]])


def _in_rows(x: Tensor) -> Tensor:
    return torch.conv1d(x.reshape(-1, 1, 8), KERNEL, padding=1).reshape(x.shape)


def _in_columns(x: Tensor) -> Tensor:
    return torch.conv2d(x.mT[:, None], KERNEL[..., None], padding=(1, 0))[:, 0].mT


def _as_a_matrix(x: Tensor) -> Tensor:
    return x @ torch.conv1d(torch.eye(8)[:, None], KERNEL, padding=1)[:, 0]


def _pooled(x: Tensor) -> Tensor:
    return torch.avg_pool1d(x, 3, 1, 1)


def _pooled_as_a_matrix(x: Tensor) -> Tensor:
    return x @ torch.avg_pool1d(torch.eye(8), 3, 1, 1)


@pytest.mark.parametrize(
    ("over", "matrix"),
    [(_in_rows, _as_a_matrix), (_in_columns, _as_a_matrix), (_pooled, _pooled_as_a_matrix)],
)
def test_a_window_over_features_mixes_no_tokens(over: Any, matrix: Any) -> None:
    x = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1))
    traced = fxplain.trace(OverFeatures(over).eval(), x)
    assert not traced.mixings
    wanted = fxplain.explain(OverFeatures(matrix).eval(), x, target=1)
    torch.testing.assert_close(traced.explain(x, target=1).relevance["x"], wanted.relevance["x"])
