"""An input that is cut into tokens in two ways makes two spaces, both named after it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from one_head import Attend
from torch import Tensor, nn

import fxplain

Cut = Callable[["Twice", Tensor], Tensor]


def patches(x: Tensor, n: int) -> Tensor:
    """Of pictures [b, c, h, w], cut by hand."""
    b, c, h, w = x.shape
    return x.view(b, c, h // n, n, w // n, n).permute(0, 2, 4, 3, 5, 1).reshape(b, -1, n * n * c)


SERIES, PICTURES = (2, 3, 12), (2, 3, 8, 8)
CUTS: dict[str, tuple[tuple[int, ...], Cut, Cut, int, int]] = {
    "patches and whole series": (
        SERIES,
        lambda m, x: m.by4(x.unfold(-1, 4, 4)).flatten(1, 2),
        lambda m, x: m.by12(x),
        9,
        3,
    ),
    "variables and times": (SERIES, lambda m, x: m.by12(x), lambda m, x: m.by3(x.mT), 3, 12),
    "short and long patches": (
        SERIES,
        lambda m, x: m.by2(x.unfold(-1, 2, 2)).flatten(1, 2),
        lambda m, x: m.by4(x.unfold(-1, 4, 4)).flatten(1, 2),
        18,
        9,
    ),
    "patches of two sizes": (
        PICTURES,
        lambda m, x: m.by12(patches(x, 2)),
        lambda m, x: m.by48(patches(x, 4)),
        16,
        4,
    ),
    "convolutions": (
        PICTURES,
        lambda m, x: m.small(x).flatten(2).mT,
        lambda m, x: m.large(x).flatten(2).mT,
        16,
        4,
    ),
}


class Twice(nn.Module):
    """Tokens of one cut attend to themselves; those of the other read them."""

    def __init__(self, fine: Cut, coarse: Cut) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.by2, self.by3, self.by4, self.by12, self.by48 = (nn.Linear(n, 8) for n in (2, 3, 4, 12, 48))
        self.small, self.large = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(3, 8, 4, 4)
        self.alone, self.read, self.head = Attend(), Attend(), nn.Linear(8, 3)
        self.fine, self.coarse = fine, coarse

    def forward(self, x: Tensor) -> Tensor:
        fine, coarse = self.fine(self, x), self.coarse(self, x)
        fine = fine + self.alone(fine, fine)
        return self.head((coarse + self.read(coarse, fine))[:, 0])


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("turned", [False, True])
def test_two_spaces(name: str, turned: bool) -> None:
    shape, fine, coarse, many, few = CUTS[name]
    first, second, sizes = (coarse, fine, [few, many]) if turned else (fine, coarse, [many, few])
    x = torch.randn(shape)
    traced = fxplain.trace(Twice(first, second).eval(), x)
    assert sorted(space.size for space in traced.spaces) == sorted(sizes)
    assert all(space.source == "x" and space.name.split(" cut by ")[0] == "x" for space in traced.spaces)
    kinds = [(a.kind, a.queries.size, a.keys.size) for a in traced.attentions]
    assert kinds == [("self", sizes[0], sizes[0]), ("encoder_decoder", sizes[1], sizes[0])]
    name = traced.attentions[0].keys.name
    assert any(traced.explain(x, target=target).relevance[name].any() for target in (0, 1, 2))


def test_parts_of_the_features_are_of_one_token() -> None:
    model = Twice(lambda m, x: m.by2(x.mT[..., :2]), lambda m, x: m.by2(x.mT[..., 1:]))
    (space,) = fxplain.trace(model.eval(), torch.randn(SERIES)).spaces
    assert (space.name, space.size) == ("x", 12)
