"""Attention in tiles that are written into views of the output: what is read back is what was written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import fxplain
from fxplain.capture.passes.clean import tidy_graph

WIDTH, HEADS, TOKENS = 8, 2, 6


class Tiled(nn.Module):
    """Softmax by running sums, in tiles of rows and columns, in place; the score reads the last token."""

    def __init__(self, rows: int, columns: int, causal: bool) -> None:
        super().__init__()
        self.words, self.qkv = nn.Embedding(20, WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.rows, self.columns, self.causal = rows, columns, causal
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, ids: Tensor) -> Tensor:
        parts = self.qkv(self.words(ids)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.head(self.attend(*parts).transpose(1, 2).flatten(2)[:, -1])

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, sums = torch.zeros_like(q), torch.zeros(*q.shape[:-1], 1)
        tops = torch.full((*q.shape[:-1], 1), -1e9)
        tiles = [part.split(self.rows, -2) for part in (q, out, sums, tops)]
        for row, (query, kept, total, top) in enumerate(zip(*tiles, strict=True)):
            pairs = zip(k.split(self.columns, -2), v.split(self.columns, -2), strict=True)
            for column, (key, value) in enumerate(pairs):
                scores = query @ key.mT / 2
                if self.causal:
                    hidden = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool)
                    scores.masked_fill_(hidden.triu(row * self.rows - column * self.columns + 1), -1e9)
                new = torch.maximum(scores.amax(-1, keepdim=True), top)
                weights, fade = (scores - new).exp(), (top - new).exp()
                kept.mul_(fade).add_(weights @ value)
                total.copy_(fade * total + weights.sum(-1, keepdim=True))
                top.copy_(new)
            kept.div_(total)
        return out


def at_once(model: Tiled, ids: Tensor) -> Tensor:
    """[batch, head, query, key]"""
    parts = model.qkv(model.words(ids)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    scores = parts[0] @ parts[1].mT / 2
    if model.causal:
        scores = scores.masked_fill(torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1), -1e9)
    return scores.softmax(-1)


@pytest.mark.parametrize(
    ("rows", "columns", "causal"),
    [(TOKENS, TOKENS, False), (TOKENS, 3, False), (3, 3, False), (2, 3, True)],
)
def test_tiles_of_columns_are_one_attention(rows: int, columns: int, causal: bool) -> None:
    torch.manual_seed(0)
    model, ids = Tiled(rows, columns, causal).eval(), torch.randint(0, 20, (2, TOKENS))
    traced = fxplain.trace(model, ids)
    found = [(a.kind, a.queries.size, a.keys.size, a.normaliser) for a in traced.attentions]
    assert found == [("self", rows, TOKENS, "softmax")] * (TOKENS // rows)
    assert not traced.mixings
    maps = torch.cat(tuple(traced.maps(ids)), -2)
    torch.testing.assert_close(maps, at_once(model, ids), rtol=1e-4, atol=1e-5)


READS: dict[str, Callable[[Tensor], Tensor]] = {
    "slice": lambda x: x[:, 2:4],
    "narrow": lambda x: x.narrow(1, 2, 2),
    "split": lambda x: x.split(2, 1)[1],
    "split of sizes": lambda x: x.split([2, 2, 2], 1)[1],
    "chunk": lambda x: x.chunk(3, 1)[-2],
    "tensor_split": lambda x: x.tensor_split(3, 1)[1],
}


@pytest.mark.parametrize("read", READS)
def test_however_a_part_is_spelled_it_is_what_was_written_there(read: str) -> None:
    """Releases of torch spell the parts of one and the same functional graph differently."""

    def code(x: Tensor, here: Tensor, there: Tensor) -> Tensor:
        return READS[read](x.slice_scatter(here, 1, 2, 4).slice_scatter(there, 1, 4, 6))

    given = torch.zeros(2, 6), torch.ones(2, 2), torch.full((2, 2), 2.0)
    traced = make_fx(code, tracing_mode="fake", pre_dispatch=True)(*given)
    tidy_graph(traced)
    assert [n.op for n in traced.graph.nodes] == ["placeholder"] * 3 + ["output"]
    assert torch.equal(traced(*given), given[1])


@pytest.mark.parametrize("read", READS)
def test_a_part_that_is_written_in_part_is_read_as_a_whole(read: str) -> None:
    def code(x: Tensor, here: Tensor, there: Tensor) -> Tensor:
        return READS[read](x.slice_scatter(here, 1, 1, 3).slice_scatter(there, 1, 4, 6))

    given = torch.zeros(2, 6), torch.ones(2, 2), torch.full((2, 2), 2.0)
    traced = make_fx(code, tracing_mode="fake", pre_dispatch=True)(*given)
    tidy_graph(traced)
    assert (
        len([n for n in traced.graph.nodes if "scatter" in n.name]) == 1
    )  # what is written elsewhere is passed
    assert torch.equal(traced(*given), code(*given))


def test_one_place_is_what_was_written_there() -> None:
    def code(x: Tensor, here: Tensor, there: Tensor) -> Tensor:
        return x.select_scatter(here, 1, 2).select_scatter(there, 1, 4).select(1, -4)

    given = torch.zeros(2, 6), torch.ones(2), torch.full((2,), 2.0)
    traced = make_fx(code, tracing_mode="fake", pre_dispatch=True)(*given)
    tidy_graph(traced)
    assert [n.op for n in traced.graph.nodes] == ["placeholder"] * 3 + ["output"]
    assert torch.equal(traced(*given), given[1])
