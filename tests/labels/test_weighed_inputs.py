"""What weights multiply: an input as it came, places, copies along features; what meets without weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxplain

Weigh = Callable[[Tensor, Tensor], Tensor]

SPELLINGS: dict[str, Weigh] = {
    "product": lambda a, v: (a * v).sum(1),
    "copied": lambda a, v: (a.expand_as(v) * v).sum(1),
    "repeated": lambda a, v: (a.repeat(1, 1, v.shape[2]) * v).sum(1),
    "bmm": lambda a, v: torch.bmm(a.transpose(1, 2), v)[:, 0],
    "transposed": lambda a, v: (v.transpose(1, 2) @ a)[..., 0],
    "einsum": lambda a, v: torch.einsum("bn,bnd->bd", a[..., 0], v),
}


class Glimpse(nn.Module):
    """A question weighs regions, and what is weighed are the regions' features as they came in."""

    def __init__(self, weigh: Weigh, projected: bool = False) -> None:
        super().__init__()
        self.region, self.question, self.score = nn.Linear(6, 8), nn.Linear(4, 8), nn.Linear(8, 1)
        self.value = nn.Linear(6, 6) if projected else nn.Identity()
        self.map, self.head, self.weigh = nn.Identity(), nn.Linear(6, 3), weigh

    def forward(self, regions: Tensor, question: Tensor) -> Tensor:
        scores = self.score(self.region(regions).relu() * self.question(question).relu()[:, None])
        return self.head(self.weigh(self.map(scores.softmax(1)), self.value(regions)))


def by_hand(model: Glimpse, inputs: tuple[Tensor, ...], target: int) -> Tensor:
    """Eq. 5 for the one row of weights: [batch, region]."""
    maps: list[Tensor] = []
    hook = model.map.register_forward_hook(lambda _, given, made: maps.append(made))
    score = model(*inputs)[:, target].sum()
    hook.remove()
    (gradient,) = torch.autograd.grad(score, maps)
    return (gradient * maps[0]).clamp(min=0)[..., 0].detach()


@pytest.mark.parametrize("projected", [False, True], ids=["raw", "projected"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_weights_of_regions_are_one_map(spelling: str, projected: bool) -> None:
    torch.manual_seed(0)
    model = Glimpse(SPELLINGS[spelling], projected).eval()
    inputs = torch.randn(2, 5, 6), torch.randn(2, 4)
    traced = fxplain.trace(model, inputs)
    (attention,) = traced.attentions
    assert (attention.keys.name, attention.keys.size, attention.heads) == ("regions", 5, 1)
    result = traced.explain(inputs, target=1)
    torch.testing.assert_close(result.relevance["regions"], by_hand(model, inputs, 1))


def test_a_gate_on_raw_features_weighs_no_tokens() -> None:
    class Gate(Glimpse):
        def forward(self, regions: Tensor, question: Tensor) -> Tensor:
            return self.head(
                (self.value(self.region(regions)[..., :6]).softmax(-1) * regions).sum(-1, True) * 1
            )

    model = Gate(SPELLINGS["product"]).eval()
    model.head = nn.Linear(1, 3)
    assert not fxplain.trace(model, (torch.randn(2, 5, 6), torch.randn(2, 4))).attentions


class Hops(nn.Module):
    """Two looks at one story; its ids are flattened anew for each table."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(20, 6) for _ in range(3))

    def sentences(self, story: Tensor, table: int) -> Tensor:
        return self.tables[table](story.view(len(story), -1)).view(*story.shape, -1).sum(2)

    def forward(self, story: Tensor, question: Tensor) -> Tensor:
        asked = self.tables[0](question)
        for hop in range(2):
            scores = (self.sentences(story, hop) * asked[:, None]).sum(2)
            values = self.sentences(story, hop + 1)
            asked = asked + (values * scores.softmax(1).unsqueeze(2).expand_as(values)).sum(1)
        return asked


def test_ids_laid_out_twice_are_the_same_tokens() -> None:
    torch.manual_seed(0)
    traced = fxplain.trace(Hops().eval(), (torch.randint(20, (2, 5, 4)), torch.randint(20, (2,))))
    first, second = traced.attentions
    assert first.keys.tokens == second.keys.tokens
    assert [(a.queries.size, a.keys.size, a.heads) for a in (first, second)] == [(1, 5, 1)] * 2
    assert {space.name for space in traced.spaces} == {"question", "story", first.keys.name}


class Placed(nn.Module):
    """Scores of pairs, of queries and places and of keys and places lie side by side and are added up."""

    def __init__(self, stacked: bool) -> None:
        super().__init__()
        self.project, self.head = nn.Linear(6, 24), nn.Linear(8, 3)
        self.places = nn.Parameter(torch.randn(2, 4, 5, 5))
        self.scale, self.stacked = nn.BatchNorm2d(6), stacked

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (part.unflatten(-1, (2, 4)) for part in self.project(x).chunk(3, -1))
        pairs = torch.einsum("bihc,bjhc->bhij", query, key)
        rows = torch.einsum("bihc,cij->bhij", query, self.places[0])
        columns = torch.einsum("bihc,cij->bhij", key, self.places[1]).transpose(2, 3)
        if self.stacked:
            scores = self.scale(torch.cat([pairs, rows, columns], 1)).unflatten(1, (3, 2)).sum(1)
        else:
            scores = pairs + rows + columns
        read = torch.einsum("bhij,bjhc->bihc", scores.softmax(-1), value)
        return self.head(read.flatten(2)[:, 0])


@pytest.mark.parametrize("stacked", [False, True], ids=["added", "side_by_side"])
def test_scores_side_by_side_keep_rows_and_columns(stacked: bool) -> None:
    torch.manual_seed(0)
    traced = fxplain.trace(Placed(stacked).eval(), torch.randn(2, 5, 6))
    (attention,) = traced.attentions
    assert (attention.kind, attention.heads) == ("self", 2)
    assert (attention.queries.name, attention.queries.size, attention.keys.size) == ("x", 5, 5)
    assert not traced.mixings


class Bilinear(nn.Module):
    """Words ask regions; what was read is multiplied with the words, feature by feature, and summed up."""

    def __init__(self, spelled: str) -> None:
        super().__init__()
        self.words, self.regions = nn.Linear(6, 8), nn.Linear(6, 8)
        self.again, self.head, self.spelled = nn.Linear(8, 8), nn.Linear(8, 3), spelled

    def forward(self, words: Tensor, regions: Tensor) -> Tensor:
        w, r = self.words(words), self.regions(regions)
        read = (w @ r.mT).softmax(-1) @ r
        again = self.again(w)
        if self.spelled == "product":
            pooled = (read * again).sum(1)
        elif self.spelled == "matmul":
            pooled = torch.matmul(read.mT.unsqueeze(2), again.mT.unsqueeze(3)).flatten(1)
        else:
            pooled = torch.einsum("bqk,bqk->bk", read, again)
        return self.head(pooled)


@pytest.mark.parametrize("spelled", ["matmul", "einsum"])
def test_products_that_are_summed_place_by_place_are_pooled(spelled: str) -> None:
    inputs = torch.randn(2, 4, 6), torch.randn(2, 5, 6)
    found = {}
    for how in ("product", spelled):
        torch.manual_seed(0)
        traced = fxplain.trace(Bilinear(how).eval(), inputs)
        assert [(a.kind, a.queries.size, a.keys.size) for a in traced.attentions] == [
            ("encoder_decoder", 4, 5)
        ]
        found[how] = traced.explain(inputs, target=1).relevance
        assert {entry.role for entry in traced.census} == {"attention"}
    for name in ("words", "regions"):
        torch.testing.assert_close(found[spelled][name], found["product"][name])


class Places(nn.Module):
    """Where in the second picture each token of the first is: the mean of places by similarity."""

    def __init__(self, spelled: str) -> None:
        super().__init__()
        self.one, self.other, self.head = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(2, 2)
        self.spelled = spelled

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        weights = (self.one(x) @ self.other(y).mT).softmax(-1)
        places = torch.stack([torch.arange(5.0), torch.arange(5.0) ** 2], -1)
        if self.spelled == "matmul":
            return self.head(weights @ places.expand(len(x), -1, -1))
        if self.spelled == "einsum":
            return self.head(torch.einsum("bij,jc->bic", weights, places))
        return self.head((weights.unsqueeze(-1) * places).sum(2))


def test_a_place_that_is_found_takes_in_what_it_was_found_by() -> None:
    inputs = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    for spelled in ("matmul", "einsum", "product"):
        torch.manual_seed(0)
        traced = fxplain.trace(Places(spelled).eval(), inputs)
        (mixing,) = traced.mixings
        assert (mixing.queries.name, mixing.keys.name) == ("x", "y")
        assert not traced.attentions


class Asked(nn.Module):
    """A learned query reads all tokens, and scales them by how alike they are."""

    def __init__(self, product: bool) -> None:
        super().__init__()
        self.embed, self.head, self.product = nn.Linear(4, 8), nn.Linear(8, 1), product
        self.query = nn.Parameter(torch.randn(1, 1, 8))
        self.read = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x)
        found, _ = self.read(self.query.expand(len(x), -1, -1), tokens, tokens)
        scale = tokens @ found.mT if self.product else found
        return self.head(tokens * scale)[..., 0]


@pytest.mark.parametrize("product", [False, True])
def test_a_learned_query_that_scales_all_tokens_is_taken_in(product: bool) -> None:
    torch.manual_seed(0)
    model, x = Asked(product).eval(), torch.randn(2, 5, 4)
    traced = fxplain.trace(model, x)
    assert [(a.kind, a.queries.size, a.keys.size) for a in traced.attentions] == [("encoder_decoder", 1, 5)]
    assert [(m.keys.name, m.queries.name) for m in traced.mixings] == [("query", "x")]
    relevance = sum(traced.explain(x, target=(token,)).relevance["x"] for token in range(5))
    assert int((relevance > 0).sum()) > 5  # all zero, while the query's row was not read


class Fed(nn.Module):
    """A decoder is fed each frame beside what it has read; the frames are as they came in, or are not."""

    def __init__(self, raw: bool) -> None:
        super().__init__()
        self.words, self.cell = nn.Embedding(20, 8), nn.GRUCell(11, 8)
        self.frame = nn.Identity() if raw else nn.Linear(3, 3)
        self.head = nn.Linear(8, 2)

    def forward(self, words: Tensor, frames: Tensor) -> Tensor:
        memory = self.words(words)
        state = read = torch.zeros(len(frames), 8)
        for step in range(frames.shape[1]):
            state = self.cell(torch.cat([self.frame(frames[:, step]), read], 1), state)
            weights = torch.einsum("bd,bnd->bn", state, memory).softmax(1)
            read = torch.einsum("bn,bnd->bd", weights, memory)
        return self.head(state + read)


@pytest.mark.parametrize("raw", [False, True], ids=["projected", "raw"])
def test_frames_beside_what_was_read_are_tokens(raw: bool) -> None:
    torch.manual_seed(0)
    traced = fxplain.trace(Fed(raw).eval(), (torch.randint(20, (2, 5)), torch.randn(2, 3, 3)))
    assert {space.name: space.size for space in traced.spaces}["frames"] == 3
    assert [m.keys.size for m in traced.mixings] == [1, 2, 2]
