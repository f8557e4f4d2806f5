"""What names a token: numbers become vectors in many ways and stay tokens of their input; positions,
noise and bags beside them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxplain

COLUMNS, WIDTH = 5, 8


class Table(nn.Module):
    """One self-attention over a class token and the columns."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.vectors, self.bias = (nn.Parameter(torch.randn(COLUMNS, WIDTH)) for _ in range(2))
        self.one = nn.Parameter(torch.randn(WIDTH))
        self.each = nn.ModuleList(nn.Linear(1, WIDTH) for _ in range(COLUMNS))
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, 3)

    def embed(self, numbers: Tensor) -> Tensor:
        return numbers.unsqueeze(-1) * self.vectors + self.bias

    def forward(self, numbers: Tensor) -> Tensor:
        x = torch.cat([self.first.expand(len(numbers), -1, -1), self.embed(numbers)], 1)
        x = x + (self.query(x) @ self.key(x).mT).softmax(-1) @ self.value(x)
        logits: Tensor = self.head(x[:, 0])
        return logits


class VectorFirst(Table):
    def embed(self, numbers: Tensor) -> Tensor:
        return self.one * numbers[..., None] + self.bias


class Einsum(Table):
    def embed(self, numbers: Tensor) -> Tensor:
        return torch.einsum("bn,nd->bnd", numbers, self.vectors)


class Periodic(Table):
    def embed(self, numbers: Tensor) -> Tensor:
        waves = torch.cat([(f := numbers[..., None] * self.bias[:, :4]).cos(), f.sin()], -1)
        return waves * self.vectors


class Slices(Table):
    def embed(self, numbers: Tensor) -> Tensor:
        return torch.stack([layer(numbers[:, i : i + 1]) for i, layer in enumerate(self.each)], 1)


class Selected(Table):
    def embed(self, numbers: Tensor) -> Tensor:
        return torch.stack([layer(numbers[:, i].unsqueeze(-1)) for i, layer in enumerate(self.each)], 1)


class Unbound(Table):
    def embed(self, numbers: Tensor) -> Tensor:
        pairs = zip(self.each, numbers.split(1, -1), strict=True)
        return torch.stack([layer(column) for layer, column in pairs], 1)


class Looked(Table):
    """Each column's vector is looked up; the numbers come in as the second factor."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("places", torch.arange(COLUMNS))

    def embed(self, numbers: Tensor) -> Tensor:
        vectors = nn.functional.embedding(self.places, self.vectors)  # type: ignore[arg-type]
        return torch.einsum("nd,bn->bnd", vectors, numbers)


class LookedPointwise(Looked):
    def embed(self, numbers: Tensor) -> Tensor:
        vectors = nn.functional.embedding(self.places, self.vectors)  # type: ignore[arg-type]
        return vectors * numbers[..., None]


@pytest.mark.parametrize(
    "model", [Looked, LookedPointwise, Table, VectorFirst, Einsum, Periodic, Slices, Selected, Unbound]
)
def test_columns_are_tokens_of_the_input(model: type[Table]) -> None:
    numbers = torch.randn(2, COLUMNS)
    traced = fxplain.trace(model().eval(), numbers)
    (attention,) = traced.attentions
    assert (attention.kind, attention.queries.size) == ("self", COLUMNS + 1)
    result = traced.explain(numbers, target=0)
    assert {name: tuple(r.shape) for name, r in result.relevance.items()} == {
        "first": (2, 1),
        "numbers": (2, COLUMNS),
    }


class Cells(nn.Module):
    """Pixels with their positions among the features, read by learned latents."""

    def __init__(self, positions_first: bool) -> None:
        super().__init__()
        self.positions_first = positions_first
        self.latents = nn.Parameter(torch.randn(3, WIDTH))
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key, self.value = (nn.Linear(5, WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, pixels: Tensor) -> Tensor:
        rows, columns = (torch.linspace(-1, 1, size) for size in pixels.shape[1:3])
        positions = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)
        positions = positions.expand(len(pixels), -1, -1, -1)
        parts = [positions, pixels] if self.positions_first else [pixels, positions]
        cells = torch.cat(parts, -1).flatten(1, 2)
        latents = self.latents.expand(len(pixels), -1, -1)
        read = (self.query(latents) @ self.key(cells).mT).softmax(-1) @ self.value(cells)
        logits: Tensor = self.head(latents + read)[:, 0]
        return logits


@pytest.mark.parametrize("positions_first", [True, False])
def test_positions_among_the_features_name_no_tokens(positions_first: bool) -> None:
    pixels = torch.randn(2, 4, 3, 3)
    result = fxplain.explain(Cells(positions_first).eval(), pixels, target=0)
    assert result.relevance["pixels"].shape == (2, 12)


def test_bags_of_words_are_tokens() -> None:
    class Bags(Table):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag(10, WIDTH)

        def embed(self, numbers: Tensor) -> Tensor:
            bags: Tensor = self.bag(numbers.flatten(0, 1)).unflatten(0, numbers.shape[:2])
            return bags

    words = torch.randint(0, 10, (2, COLUMNS, 4))
    result = fxplain.explain(Bags().eval(), words, target=0)
    assert result.relevance["numbers"].shape == (2, COLUMNS)


def test_weighed_rows_of_a_memory_stay_of_the_token_that_reads_it() -> None:
    class Memory(Table):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.scores = nn.EmbeddingBag(10, WIDTH, mode="sum"), nn.Linear(WIDTH, 10)

        def forward(self, numbers: Tensor) -> Tensor:
            x = self.embed(numbers)
            x = x + (self.query(x) @ self.key(x).mT).softmax(-1) @ self.value(x)
            weights, places = self.scores(x).flatten(0, 1).topk(2)
            read: Tensor = self.bag(places, per_sample_weights=weights.softmax(-1))
            logits: Tensor = self.head((x + read.unflatten(0, x.shape[:2]))[:, -1])
            return logits

    traced = fxplain.trace(Memory().eval(), torch.randn(2, COLUMNS))
    assert [(a.kind, a.queries.size) for a in traced.attentions] == [("self", COLUMNS)]
    assert not traced.lost
    assert set(traced.explain(torch.randn(2, COLUMNS), target=0).relevance) == {"numbers"}


def test_slots_that_start_from_noise_are_tokens_of_their_own() -> None:
    class Slots(Cells):
        def forward(self, pixels: Tensor) -> Tensor:
            cells = torch.cat([pixels, pixels[..., :2]], -1).flatten(1, 2)
            start = self.latents[0].expand(len(pixels), 4, -1)
            slots = start + 0.1 * torch.randn_like(start)
            weights = (self.query(slots) @ self.key(cells).mT).softmax(1)
            logits: Tensor = self.head(slots + weights @ self.value(cells))[:, 0]
            return logits

    traced = fxplain.trace(Slots(positions_first=False).eval(), torch.randn(2, 4, 3, 3))
    (attention,) = traced.attentions
    assert (attention.kind, attention.heads, attention.queries.size, attention.keys.size) == (
        "encoder_decoder",
        1,
        4,
        12,
    )


def test_a_first_token_beside_shifted_features_is_of_all_samples() -> None:
    class Shifted(Table):
        def forward(self, numbers: Tensor) -> Tensor:
            x = torch.cat([self.first.expand(len(numbers), -1, -1), self.embed(numbers)], 1)
            here, before = x.chunk(2, -1)
            x = torch.cat([nn.functional.pad(before, (0, 0, 1, -1)), here], -1)
            x = x / x.norm(dim=-1, keepdim=True)
            x = x + (self.query(x) @ self.key(x).mT).softmax(-1) @ self.value(x)
            logits: Tensor = self.head(x[:, -1])
            return logits

    result = fxplain.explain(Shifted().eval(), torch.randn(2, COLUMNS), target=0)
    assert result.relevance["numbers"].shape == (2, COLUMNS)
