"""Similarities of tokens that are read themselves, and weights that a row tells without meeting a key."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxplain


class Matched(nn.Module):
    """Each word of a query counts as much as the best match in the document, as in ColBERT."""

    def __init__(self, both: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.both = nn.Embedding(20, 8), both
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def read(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return nn.functional.normalize(x + self.attend(x, x, x)[0], dim=-1)

    def forward(self, query: Tensor, document: Tensor) -> Tensor:
        alike = self.read(query) @ self.read(document).mT
        score = alike.max(2).values.sum(1)
        return score + alike.amax(1).mean(1) if self.both else score


@pytest.mark.parametrize("both", [False, True])
def test_the_best_matches_are_those_of_the_document(both: bool) -> None:
    model, inputs = Matched(both).eval(), (torch.randint(1, 20, (2, 3)), torch.randint(1, 20, (2, 6)))
    traced = fxplain.trace(model, inputs)
    assert [a.kind for a in traced.attentions] == ["self", "self"]
    joined = [(m.queries.name, m.keys.name) for m in traced.mixings if m.op in ("max", "amax")]
    assert joined == [("query", "document"), ("document", "query")][: 1 + both]
    result = traced.explain(inputs, target=lambda scores: scores)
    assert (result.relevance["document"].sum(-1) > 0).all()
    for sample in range(2):
        one = tuple(given[sample : sample + 1] for given in inputs)
        alone = fxplain.explain(model, one, target=lambda scores: scores)
        torch.testing.assert_close(alone.relevance["document"][0], result.relevance["document"][sample])


def test_what_a_softmax_takes_of_a_row_is_no_feature_of_it() -> None:
    class Spelled(Matched):
        def forward(self, query: Tensor, document: Tensor) -> Tensor:
            x, y = self.read(query), self.read(document)
            scores = x @ y.mT
            weights = (scores - scores.amax(-1, keepdim=True)).exp()
            return ((weights @ y) / weights.sum(-1, keepdim=True).clamp_min(1e-9) + x)[:, 0]

    inputs = torch.randint(1, 20, (2, 3)), torch.randint(1, 20, (2, 6))
    traced = fxplain.trace(Spelled().eval(), inputs)
    assert [(a.kind, a.normaliser) for a in traced.attentions][2:] == [("encoder_decoder", "softmax")]
    assert not traced.mixings


class Bumps(nn.Module):
    """Every state says at which places of the text it looks, by bumps (Graves 2013); no key is asked."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.state, self.where = nn.Embedding(20, 8), nn.Linear(4, 8), nn.Linear(8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, text: Tensor, states: Tensor) -> Tensor:
        center = 5 * self.where(self.state(states)).sigmoid()
        weights = (-((center - torch.arange(text.shape[1])) ** 2)).exp()
        return self.head(weights @ self.embed(text))


def test_weights_told_by_rows_alone_are_an_attention() -> None:
    inputs = torch.randint(1, 20, (2, 5)), torch.randn(2, 3, 4)
    traced = fxplain.trace(Bumps().eval(), inputs)
    (attention,) = traced.attentions
    assert (attention.kind, attention.queries.size, attention.keys.size) == ("encoder_decoder", 3, 5)
    assert traced.explain(inputs, target=(1, 0)).relevance["text"].sum() > 0


class OneInput(Matched):
    """Question and answer in one sequence; a word's best match is scaled by what the word itself tells."""

    def __init__(self, scale: str, joint: bool) -> None:
        super().__init__()
        self.scale, self.joint, self.weight = scale, joint, nn.Linear(8, 1)

    def forward(self, ids: Tensor) -> Tensor:
        if self.joint:
            x, y = self.read(ids).split([3, 4], 1)
        else:
            x, y = self.read(ids[:, :3]), self.read(ids[:, 3:])
        best = (x @ y.mT).amax(-1)
        if self.scale == "norm":
            best = best / (x.norm(dim=-1) + 1)
        elif self.scale == "weight":
            best = best * self.weight(x)[..., 0].sigmoid()
        return best.sum(1)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("scale", ["none", "norm", "weight"])
def test_a_match_within_one_input_may_be_scaled_by_its_own_word(scale: str, joint: bool) -> None:
    model, ids = OneInput(scale, joint).eval(), torch.randint(1, 20, (2, 7))
    traced = fxplain.trace(model, ids)
    (match,) = (mixing for mixing in traced.mixings if mixing.op == "amax")
    assert (match.queries.size, match.keys.size) == (3, 4)
    relevance = traced.explain(ids, target=lambda scores: scores).relevance
    answer = relevance["ids"][:, 3:] if joint else relevance["ids cut by embed"]
    assert bool((answer.sum(-1) > 0).all())


@pytest.mark.parametrize("late", [False, True])
def test_a_gate_on_an_attention_within_one_input_is_no_feature(late: bool) -> None:
    class Gated(Matched):
        def forward(self, ids: Tensor) -> Tensor:
            x, y = self.read(ids).split([3, 4], 1)
            scores = x @ y.mT
            if late:
                gate = scores.amax(-1, keepdim=True)
                return (scores.softmax(-1) @ y * gate)[:, 0]
            read = scores.softmax(-1) @ y
            return (read * scores.amax(-1, keepdim=True))[:, 0]

    traced = fxplain.trace(Gated().eval(), torch.randint(1, 20, (2, 7)))
    assert [a.kind for a in traced.attentions] == ["self", "encoder_decoder"]
    assert not [mixing for mixing in traced.mixings if mixing.op == "amax"]
