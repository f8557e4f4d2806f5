"""Features of several tokens at one place, of every pair of tokens along one axis, and of raw data that other
data scale before any token is born."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxplain

WIDTH = 8


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def data(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def ids(*shape: int) -> Tensor:
    return torch.randint(0, 20, shape, generator=torch.Generator().manual_seed(1))


def streams(model: nn.Module, *inputs: Tensor) -> list[tuple[str, str, str]]:
    found = fxplain.trace(model.eval(), inputs)
    assert found.captured.verified <= 1e-5
    assert not found.lost
    return [(str(a.kind), a.queries.name, a.keys.name) for a in found.attentions]


Score = Callable[["Pairs", Tensor, Tensor], Tensor]


class Pairs(nn.Module):
    """Attention whose scores are made of all pairs of rows, laid out one after the other."""

    def __init__(self, score: Score, width: int) -> None:
        super().__init__()
        self.score_of, self.made = score, nn.Linear(width, 1)
        self.one, self.other, self.head = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.map = nn.Identity()

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        rows = self.one(x)
        columns = rows if y is None else self.other(y)
        scores = self.score_of(self, rows, columns)
        weights = self.map(scores.view(x.shape[0], rows.shape[1], columns.shape[1]).softmax(-1))
        return self.head((weights @ columns)[:, 0])


def repeated(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Each row beside each column: [batch, rows * columns, width] of both."""
    return rows.repeat_interleave(columns.shape[1], 1), columns.repeat(1, rows.shape[1], 1)


def laid_out_first(model: Pairs, rows: Tensor, columns: Tensor) -> Tensor:
    both = torch.cat(repeated(rows, columns), -1)
    return model.made(both.view(rows.shape[0], rows.shape[1], columns.shape[1], -1))


def scored_first(model: Pairs, rows: Tensor, columns: Tensor) -> Tensor:
    return nn.functional.leaky_relu(model.made(torch.cat(repeated(rows, columns), -1)))


def added(model: Pairs, rows: Tensor, columns: Tensor) -> Tensor:
    row, column = repeated(rows, columns)
    return model.made((column + row).tanh())


def multiplied(model: Pairs, rows: Tensor, columns: Tensor) -> Tensor:
    row, column = repeated(rows, columns)
    return model.made(column * row)


@pytest.mark.parametrize("score", [laid_out_first, scored_first, added, multiplied])
def test_scores_of_pairs_that_were_repeated_have_rows_and_columns(score: Score) -> None:
    wide = 2 * WIDTH if score in (laid_out_first, scored_first) else WIDTH
    assert streams(Pairs(score, wide), data(2, 5, WIDTH)) == [("self", "x", "x")]
    model, inputs = Pairs(score, wide).eval(), (data(2, 5, WIDTH), data(2, 4, WIDTH))
    assert streams(model, *inputs) == [("encoder_decoder", "x", "y")]
    seen: list[Tensor] = []
    model.map.register_forward_hook(lambda _, given, made: seen.append(made))
    model(*inputs)
    traced = fxplain.trace(model, inputs)
    torch.testing.assert_close(traced.maps(inputs)[0][:, 0], seen[0])
    together = traced.explain(inputs, target=1).relevance["y"]
    alone = fxplain.explain(model, tuple(part[1:] for part in inputs), target=1).relevance["y"]
    torch.testing.assert_close(together[1:], alone)


class Layers(nn.Module):
    """Two layers over the nodes of a graph, each scoring all pairs of nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.width = nn.ModuleList([nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2)])
        self.score = nn.ParameterList([nn.Parameter(torch.randn(2 * WIDTH, 1)) for _ in range(2)])

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        for width, score in zip(self.width, self.score, strict=True):
            h, nodes = width(x), x.shape[0]
            both = torch.cat([h.repeat_interleave(nodes, 0), h.repeat(nodes, 1)], 1)
            scores = nn.functional.leaky_relu((both.view(nodes, nodes, -1) @ score).squeeze(2))
            x = nn.functional.elu(scores.masked_fill(edges == 0, -9e15).softmax(1) @ h)
        return x


def test_pairs_of_nodes_in_two_layers() -> None:
    edges = torch.eye(5) + torch.eye(5).roll(1, 0)
    model, inputs = Layers().eval(), (data(5, WIDTH), edges)
    assert streams(model, *inputs) == [("self", "x", "x")] * 2
    traced = fxplain.trace(model, inputs)
    relevance = sum(traced.explain(inputs, target=(0, c)).relevance["x"][0] for c in range(WIDTH))
    # two layers along edges from each node to itself and to the one before it
    assert (relevance[1:3] == 0).all()
    assert (relevance[3:] > 0).all()


class Beside(nn.Module):
    """Features of words and of tags side by side, read as they are."""

    def __init__(self, read: Callable[[Tensor], Tensor] | nn.Module, width: int = 2 * WIDTH) -> None:
        super().__init__()
        self.words, self.tags = nn.Embedding(20, WIDTH), nn.Embedding(20, WIDTH)
        self.read, self.head = read, nn.Linear(width, 3)

    def forward(self, words: Tensor, tags: Tensor) -> Tensor:
        return self.head(self.read(torch.cat([self.words(words), self.tags(tags)], -1))[:, 0])


def written_out(x: Tensor) -> Tensor:
    return (x @ x.transpose(1, 2) / 4).softmax(-1) @ x


def fused(x: Tensor) -> Tensor:
    return nn.functional.scaled_dot_product_attention(x, x, x, scale=0.25)


@pytest.mark.parametrize("read", [written_out, fused])
def test_features_of_two_inputs_at_one_place_are_one_token_made_of_both(read: Callable[..., Tensor]) -> None:
    model, inputs = Beside(read).eval(), (ids(2, 6), ids(2, 6).flip(1))
    traced = fxplain.trace(model, inputs)
    (attention,) = traced.attentions
    assert (attention.kind, attention.queries.size, attention.keys.size, attention.heads) == ("self", 6, 6, 1)
    assert attention.queries.tokens == attention.keys.tokens
    result = traced.explain(inputs, target=1)
    assert all(result.relevance[name].sum() > 0 for name in ("words", "tags"))


class Recurrent(nn.Module):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.cells = kind(2 * WIDTH, WIDTH, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cells(x)[0]
        return nn.functional.scaled_dot_product_attention(x, x, x)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_recurrence_over_features_of_two_inputs(kind: Any) -> None:
    model, inputs = Beside(Recurrent(kind)).eval(), (ids(2, 6), ids(2, 6).flip(1))
    ((found, queries, keys),) = streams(model, *inputs)
    assert (found, queries) == ("self", keys)
    result = fxplain.explain(model, inputs, target=1)
    assert sum(float(result.relevance[name].sum()) for name in ("words", "tags")) > 0


class Conditioned(nn.Module):
    """Raw rows are normalised, scaled and shifted by a condition, and only then projected."""

    def __init__(self) -> None:
        super().__init__()
        self.told, self.norm = nn.Linear(4, 2 * WIDTH), nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.qkv, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.told(nn.functional.silu(condition))[:, None].chunk(2, -1)
        q, k, v = self.qkv(self.norm(x) * (1 + scale) + shift).chunk(3, -1)
        return self.head((x + nn.functional.scaled_dot_product_attention(q, k, v))[:, 0])


def test_raw_rows_under_a_condition_are_the_tokens() -> None:
    model, inputs = Conditioned().eval(), (data(2, 6, WIDTH), data(2, 4))
    assert streams(model, *inputs) == [("self", "x", "x")]
    result = fxplain.explain(model, inputs, target=1)
    assert any("condition" in note for note in result.notes)


class Copies(nn.Module):
    """Raw rows in two copies, which weights that each row tells for itself mix before the attention."""

    def __init__(self) -> None:
        super().__init__()
        self.mixes, self.qkv, self.head = (
            nn.Linear(WIDTH, 3),
            nn.Linear(WIDTH, 3 * WIDTH),
            nn.Linear(WIDTH, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        copies = torch.stack([x, x], 2)
        mixed = torch.einsum("bnst,bnsd->bntd", self.mixes(copies).tanh(), copies)
        q, k, v = self.qkv(mixed[:, :, 0]).chunk(3, -1)
        return self.head((x + nn.functional.scaled_dot_product_attention(q, k, v))[:, 0])


def test_raw_rows_whose_copies_are_mixed_by_weights_of_their_own() -> None:
    assert streams(Copies(), data(2, 6, WIDTH)) == [("self", "x", "x")]


class Answers(nn.Module):
    """Questions ask questions, and read the answers that were given to them."""

    def __init__(self, kernel: bool) -> None:
        super().__init__()
        self.questions, self.answers = nn.Embedding(20, WIDTH), nn.Embedding(20, WIDTH)
        self.kernel, self.query, self.key, self.value = kernel, *(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, asked: Tensor, given: Tensor) -> Tensor:
        x, y = self.questions(asked), self.answers(given)
        q, k, v = self.query(x), self.key(x), self.value(y)
        if self.kernel:
            return self.head(nn.functional.scaled_dot_product_attention(q, k, v)[:, -1])
        return self.head(((q @ k.transpose(1, 2) / WIDTH**0.5).softmax(-1) @ v)[:, -1])


def test_values_of_another_input_than_the_keys_have_relevance() -> None:
    inputs, found = (ids(2, 6), ids(2, 6).flip(1)), []
    for kernel in (False, True):
        torch.manual_seed(0)
        model = Answers(kernel).eval()
        assert streams(model, *inputs) == [("self", "asked", "asked")]
        found.append(fxplain.explain(model, inputs, target=lambda out: out.square().sum(-1)).relevance)
        together = fxplain.explain(model, inputs, target=1).relevance["given"]
        alone = fxplain.explain(model, tuple(part[1:] for part in inputs), target=1).relevance["given"]
        torch.testing.assert_close(together[1:], alone)
    assert (found[0]["given"].sum(-1) > 0).all()
    torch.testing.assert_close(found[0]["given"], found[1]["given"])
