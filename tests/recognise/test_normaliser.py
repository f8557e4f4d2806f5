"""What made weights out of scores, and weights that are divided by their sums only after the product."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from spellings import SPELLINGS
from spellings.base import HEADS, case, merge
from spellings.scores import Plain
from torch import Tensor
from torch.nn.functional import softplus
from zoo.compare import assert_close, assert_same
from zoo.spec import make

import fxplain
from fxplain.attribution.table import METHODS

Late = Callable[[Tensor, Tensor], Tensor]


class Early(Plain):
    """The weights are divided by their sums: what every late division comes to."""

    def weigh(self, scores: Tensor) -> Tensor:
        return scores.exp()

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(x)
        weights = self.weigh(self.scores(q, k))
        weights = weights / weights.sum(-1, keepdim=True)
        return merge(weights @ v), weights


class Divided(Early):
    late: Late

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(x)
        weights = self.weigh(self.scores(q, k))
        return self.late(weights, v), weights / weights.sum(-1, keepdim=True)


def at_once(weights: Tensor, v: Tensor) -> Tensor:
    return merge((weights @ v) / weights.sum(-1, keepdim=True))


def clamped(weights: Tensor, v: Tensor) -> Tensor:
    return merge((weights @ v) / weights.sum(-1, keepdim=True).clamp(min=1e-6))


def by_reciprocal(weights: Tensor, v: Tensor) -> Tensor:
    return merge(weights.sum(-1, keepdim=True).reciprocal() * (weights @ v))


def after_layout(weights: Tensor, v: Tensor) -> Tensor:
    """Rows come before heads when the sums, a product with ones, divide."""
    output = torch.einsum("bhqk,bhkd->bqhd", weights, v).contiguous().double().float()
    sums = weights @ torch.ones(weights.shape[-1])
    return (output / sums.transpose(1, 2)[..., None]).flatten(2)


def folded(weights: Tensor, v: Tensor) -> Tensor:
    """Heads lie in the batch axis."""
    flat = weights.flatten(0, 1)
    output = torch.bmm(flat, v.flatten(0, 1)) / flat.sum(-1)[..., None]
    return merge(output.view(-1, HEADS, *output.shape[1:]))


def built(kind: type[Plain], **facts: object) -> torch.nn.Module:
    return make(lambda: type("Case", (kind,), facts)())


@pytest.mark.parametrize(
    "late", [at_once, clamped, by_reciprocal, after_layout, folded], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("weigh", [torch.exp, softplus], ids=["exp", "softplus"])
def test_late_division_is_early_division(late: Late, weigh: Callable[[Tensor], Tensor]) -> None:
    """Maps and every method agree, those with gradients as well: they do not pass the sum."""
    facts = {"late": staticmethod(late), "weigh": staticmethod(weigh)}
    _, inputs, _ = case(Early)()
    early, divided = built(Early, **facts), built(Divided, **facts)
    divided.load_state_dict(early.state_dict())
    wanted, found = fxplain.trace(early, inputs), fxplain.trace(divided, inputs)
    assert [a.normaliser for a in (*wanted.attentions, *found.attentions)] == ["softmax"] * 2
    assert_close(found.maps(inputs)[0], wanted.maps(inputs)[0], 1e-5, "maps")
    for method in [name for name, method in METHODS.items() if method.attentions]:
        results = [traced.explain(inputs, target=1, method=method) for traced in (found, wanted)]
        assert_same(*results, 1e-5, method)  # type: ignore[arg-type]


def test_division_by_something_else_is_none() -> None:
    def one_more(weights: Tensor, v: Tensor) -> Tensor:
        return merge((weights @ v) / (1 + weights.sum(-1, keepdim=True)))

    _, inputs, _ = case(Early)()
    traced = fxplain.trace(built(Divided, late=staticmethod(one_more)), inputs)
    assert traced.attentions[0].normaliser == "none"
    assert traced.maps(inputs)[0].sum(-1).min() > 1


@pytest.mark.parametrize(
    ("name", "normaliser"),
    [
        ("softmax-by_hand_stable", "softmax"),
        ("softmax-divided_late", "softmax"),
        ("softmax-off_by_one", "none"),
        ("sigmoid", "sigmoid"),
        ("relu", "none"),
        ("fused-causal", "softmax"),
    ],
)
def test_normalisers(name: str, normaliser: str) -> None:
    model, inputs, _ = SPELLINGS[name]()
    assert {a.normaliser for a in fxplain.trace(model, inputs).attentions} == {normaliser}
