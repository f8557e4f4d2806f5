"""Methods where samples and maps do not match one to one: packed, shared by all, or not floating."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxplain
from fxplain.method_table import METHODS

WITH_GRADIENTS = [name for name, method in METHODS.items() if method.gradients]


class Attend(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)
        mixed: Tensor = (q @ k.mT).softmax(-1) @ v
        return x + mixed


class Classes(nn.Module):
    """Each picture is compared with two classes that are texts of the model's own: as many as samples."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.pictures, self.texts = nn.Linear(6, 8), Attend(), Attend()
        self.words = nn.Parameter(torch.randn(2, 3, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.pictures(self.patch(x))[:, 0] @ self.texts(self.words)[:, -1].T


class Packed(nn.Module):
    """The pictures of a batch are one sequence: the output is of one sample."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.first, self.last = nn.Linear(6, 8), Attend(), Attend()

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.first(self.patch(x)))
        return x.flatten(0, 1)[None]


class Whole(nn.Module):
    """Numbers that are no floating ones beside those that are."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attend = nn.Linear(4, 8), Attend()

    def forward(self, series: Tensor, missing: Tensor) -> Tensor:
        return self.attend(self.embed(torch.cat([series, missing], -1)))[:, -1]


class Counts(nn.Module):
    """Whole numbers alone, projected as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attend = nn.Linear(4, 8), Attend()

    def forward(self, counts: Tensor) -> Tensor:
        return self.attend(self.embed(counts.float()))[:, -1]


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...], object, int]] = {
    "texts of the model": (Classes, (drawn(2, 5, 6),), 1, 2),
    "packed": (Packed, (drawn(2, 5, 6),), (0, 7, 3), 1),
    "beside whole numbers": (Whole, (drawn(2, 5, 2), torch.ones(2, 5, 2, dtype=torch.int64)), 3, 2),
    "whole numbers": (Counts, ((9 * drawn(2, 5, 4)).long(),), 3, 2),
}


@pytest.mark.parametrize("name", CASES)
def test_every_method_with_gradients_has_a_number_for_every_token(name: str) -> None:
    build, inputs, target, batch = CASES[name]
    torch.manual_seed(0)
    found = fxplain.compare(build().eval(), inputs, WITH_GRADIENTS, target)
    assert not found.refused
    for method, result in found.items():
        for space in result.spaces:
            assert result.relevance[space.name].shape == (batch, space.size), method
    assert all(bool(row.any()) for row in _rows(found["gradient_x_input"]))


def _rows(result: fxplain.result.Result) -> Tensor:
    return torch.cat([result.relevance[space.name] for space in result.spaces], 1)


def test_a_packed_score_reads_its_own_picture_alone() -> None:
    torch.manual_seed(0)
    model, x = Packed().eval(), drawn(2, 5, 6)
    packed = fxplain.explain(model, x, (0, 7, 3), "gradient_x_input")
    alone = fxplain.explain(model, x[1:], (2, 3), "gradient_x_input")
    torch.testing.assert_close(packed.relevance["x"], alone.relevance["x"])
