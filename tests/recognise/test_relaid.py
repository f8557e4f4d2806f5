"""What attends comes back to a picture by a view that lacks its permutation (MAnet's position attention)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxplain


class Position(nn.Module):
    """Places of a picture attend to each other; ``[place, channel]`` is seen as ``[channel, grid]``."""

    def __init__(self, channels: int, wrongly: bool = True) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, channels, 2, 2), nn.Conv2d(channels, 3, 1)
        self.top, self.center, self.bottom = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.map, self.branch, self.sum, self.wrongly = nn.Identity(), nn.Identity(), nn.Identity(), wrongly

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.stem(pixels)
        top, center, bottom = (layer(x).flatten(2) for layer in (self.top, self.center, self.bottom))
        y = self.map((center.mT @ top).softmax(-1)) @ bottom.mT
        y = y.reshape(x.shape) if self.wrongly else y.mT.reshape(x.shape)
        return self.head(self.sum(x + self.branch(y)))


@pytest.mark.parametrize("channels", [8, 5])
def test_a_view_without_its_permutation_is_a_linear_mixing_by_an_index(channels: int) -> None:
    torch.manual_seed(0)
    model, pixels = Position(channels).double().eval(), torch.randn(1, 3, 6, 8, dtype=torch.float64)
    made: dict[str, Tensor] = {}
    hooks = [
        getattr(model, name).register_forward_hook(lambda _m, _i, out, name=name: made.update({name: out}))
        for name in ("map", "branch", "sum")
    ]
    score = model(pixels)[0, 1, 1, 2]
    for hook in hooks:
        hook.remove()
    of_map, of_sum = torch.autograd.grad(score, [made["map"], made["sum"]])
    attended = torch.eye(12, dtype=pixels.dtype) + (made["map"] * of_map).clamp(min=0)[0].detach()
    given = (made["branch"] * of_sum)[0].detach().reshape(-1)
    sources = torch.arange(12 * channels) // channels  # of which token each element of the branch is
    weights = torch.zeros(12, 12, dtype=pixels.dtype)
    weights.index_put_((torch.arange(12).repeat(channels), sources), given, accumulate=True)
    matrix = torch.eye(12, dtype=pixels.dtype) + weights.clamp(min=0) @ attended
    traced = fxplain.trace(model, pixels)
    assert [attention.kind for attention in traced.attentions] == ["self"]
    assert [(m.op, m.queries.size, m.keys.size) for m in traced.mixings] == [("add", 12, 12)]
    result = traced.explain(pixels, target=(1, 1, 2))
    row = matrix[6]  # place (1, 2) of the 3 x 4
    row[6] = 0
    torch.testing.assert_close(result.relevance["pixels"][0], row)
    assert bool((result.relevance["pixels"] > 0).any())


def test_the_right_view_needs_no_mixing() -> None:
    torch.manual_seed(0)
    traced = fxplain.trace(Position(8, wrongly=False).eval(), torch.randn(2, 3, 6, 8))
    assert not traced.mixings


class Expanded(nn.Module):
    """Scores are the sum of a number for each row and one for each column, both expanded beforehand."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.row, self.column = nn.Linear(3, 8), nn.Linear(8, 1), nn.Linear(8, 1)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        size = x.shape[1]
        rows, columns = self.row(x).repeat(1, 1, size), self.column(x).repeat(1, 1, size).mT
        return self.head(((rows + columns).tanh().softmax(-1) @ x)[:, 0])


def test_rows_and_columns_that_were_expanded_are_scores() -> None:
    torch.manual_seed(0)
    traced = fxplain.trace(Expanded().eval(), torch.randn(2, 5, 3))
    (attention,) = traced.attentions
    assert (attention.kind, attention.queries.size, attention.keys.size) == ("self", 5, 5)
    assert not traced.mixings
