"""Methods where samples and maps do not match one to one: packed, shared by all, or not floating."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxplain
from fxplain.attribution.table import METHODS
from fxplain.errors import MethodError

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


class Parted(nn.Module):
    """Tokens are dealt out to two maps of their own, as to experts, and put together again."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attend, self.head = nn.Linear(6, 8), Attend(), nn.Linear(8, 3, bias=False)
        self.experts = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.attend(self.embed(x))
        parts = torch.split(x, [2, 3], dim=1)
        x = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)], 1)
        return self.head(x.mean(1))


def test_tokens_that_are_dealt_out_are_not_born_again() -> None:
    torch.manual_seed(0)
    model, x = Parted().eval(), drawn(2, 5, 6).requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    found = fxplain.compare(model, x.detach(), ["gradient_x_input", "attnlrp"], 1)
    torch.testing.assert_close(found["gradient_x_input"].relevance["x"], (gradient * x).sum(-1).detach())
    for sample in range(2):
        arrived = found["attnlrp"].relevance["x"][sample].sum()
        torch.testing.assert_close(found["attnlrp"].inputs["x"][sample].sum(), arrived)


class Cosine(nn.Module):
    """A similarity that is divided by lengths: there is none at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.value = (nn.Linear(size, 8, bias=False) for size in (6, 8))
        self.texts = nn.Parameter(torch.randn(3, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = ((x @ x.mT).softmax(-1) @ self.value(x))[:, 0]
        return x / x.norm(dim=-1, keepdim=True) @ self.texts.T


def test_integrated_gradients_refuse_where_zero_has_no_score() -> None:
    torch.manual_seed(0)
    model = Cosine().eval()
    with pytest.raises(MethodError, match="start from zero embeddings"):
        fxplain.explain(model, drawn(2, 5, 6), 1, "integrated_gradients")


class Deciding(nn.Module):
    """Its way depends on the data, so it is recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attend, self.head = nn.Linear(6, 8), Attend(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = self.attend(x) if float(x.sum()) > 0 else self.attend(self.attend(x))
        return self.head(x[:, 0])


@pytest.mark.parametrize("method", ["integrated_gradients", "smoothgrad"])
def test_decisions_that_are_held_fixed_are_told(method: str) -> None:
    result = fxplain.explain(Deciding().eval(), drawn(2, 5, 6), 1, method)
    assert any("held fixed" in note for note in result.notes)


class Subtracting(nn.Module):
    """Maps that subtract more than they add: the sums of their rows are below zero."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.one, self.other = (nn.Linear(size, 8) for size in (6, 8, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for _ in range(2):
            maps = (self.one(x) @ x.mT).softmax(-1) - 3 * (self.other(x) @ x.mT).softmax(-1)
            x = x + maps @ x
        return self.head(x[:, 0])


def test_what_a_map_subtracts_carries_no_flow() -> None:
    torch.manual_seed(0)
    flow = fxplain.explain(Subtracting().eval(), 3 * drawn(2, 5, 6), 1, "attention_flow").relevance["x"]
    assert bool((flow >= 0).all())
    assert bool((flow < 1 + 1e-6).all())
    assert bool(flow.any())


def test_a_result_that_is_zero_throughout_says_so() -> None:
    torch.manual_seed(0)
    result = fxplain.explain(Subtracting().eval(), torch.zeros(1, 5, 6), 1, "gradient_x_input")
    assert "no token has any relevance by gradient_x_input (sample 0)" in result.notes


class Choosing(nn.Module):
    """Reads a table at a place that the data give: elsewhere there is no such row."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attend, self.head = nn.Linear(6, 8, bias=False), Attend(), nn.Linear(8, 3)
        self.table = nn.Embedding(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attend(self.embed(x))[:, 0]
        length = x.detach().square().sum(-1)
        return self.head(x + self.table((length < 1e-2).long() * 5))


def test_a_decision_that_cannot_be_taken_elsewhere_is_told() -> None:
    torch.manual_seed(0)
    model = Choosing().eval()
    with torch.no_grad():
        for bias in (model.attend.query.bias, model.attend.key.bias, model.attend.value.bias):
            bias.zero_()
    with pytest.raises(MethodError, match="cannot be run at other embeddings"):
        fxplain.explain(model, drawn(2, 5, 6), 1, "integrated_gradients")


class Mixer(nn.Module):
    """Tokens are mixed by a linear map, and there is no attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Linear(6, 8), nn.Linear(5, 5), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.mix(x.mT).mT)[:, 0]


@pytest.mark.parametrize("target", [1, lambda logits: logits[:, 1]], ids=["index", "callable"])
def test_methods_that_go_by_no_attention_need_none(target: object) -> None:
    torch.manual_seed(0)
    model, x = Mixer().eval(), drawn(2, 5, 6).requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    names = [
        "gradient_x_input",
        "integrated_gradients",
        "smoothgrad",
        "attnlrp",
        "lrp",
        "random",
        "relevancy",
    ]
    found = fxplain.compare(model, x.detach(), names, target)
    assert list(found.refused) == ["relevancy"]
    assert str(found.refused["relevancy"]).startswith("the model has no attention to explain")
    torch.testing.assert_close(found["gradient_x_input"].relevance["x"], (gradient * x).sum(-1).detach())
