"""Residual branches whose tokens were mixed come back to the tokens they left."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxplain


class Attend(nn.Module):
    """One head, written out; keeps its map for the reference."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.map = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        weights = self.map((self.query(x) @ self.key(x).mT / 8**0.5).softmax(-1))
        return weights @ self.value(x)


class Branch(nn.Module):
    """Attention, a residual branch that mixes tokens, attention, and token 0."""

    def __init__(self, mix: nn.Module, first: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.before, self.after, self.mix = Attend(), Attend(), mix
        self.first = first
        self.sum, self.branch = nn.Identity(), nn.Identity()

    def forward(self, data: Tensor) -> Tensor:
        x = self.embed(data)
        x = x + self.before(x)
        y = self.branch(self.mix(x.mT).mT)
        x = self.sum(x + y if self.first else y + x)
        x = x + self.after(x)
        return self.head(x[:, 0])


def relevancy_of(model: Branch, data: Tensor) -> Tensor:
    """R by eqs. 5 and 6; the mixing's rows are means, and the sum takes them in by gradient times branch."""
    made: dict[str, Tensor] = {}
    watched = {"a": model.before.map, "b": model.after.map, "y": model.branch, "sum": model.sum}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: made.update({name: out}))
        for name, module in watched.items()
    ]
    gradients = dict(
        zip(watched, torch.autograd.grad(model(data)[0, 1], list(map(made.get, watched))), strict=True)  # type: ignore[arg-type]
    )
    for hook in hooks:
        hook.remove()
    first, second = ((made[n] * gradients[n]).clamp(min=0)[0] for n in "ab")
    embedded = model.embed(data)
    given = (embedded + model.before(embedded))[0]
    gradient = gradients["sum"][0]
    carried = (model.mix.weight * (gradient @ given.T)).clamp(min=0)
    carried = carried / carried.sum(-1, keepdim=True)
    joined = (gradient * made["y"][0]).sum(-1).clamp(min=0)
    matrix = torch.eye(data.shape[1], dtype=data.dtype) + first
    matrix = matrix + joined[:, None] * (carried @ matrix)
    return (matrix + second @ matrix).detach()


@pytest.mark.parametrize("first", [True, False])
def test_a_token_mixing_layer_in_a_residual_branch(first: bool) -> None:
    torch.manual_seed(0)
    model = Branch(nn.Linear(5, 5, bias=False), first).double().eval()
    data = torch.randn(1, 5, 6, dtype=torch.float64)
    traced = fxplain.trace(model, data)
    result = traced.explain(data, target=1)
    assert [(m.op, m.queries.name, m.keys.name) for m in traced.mixings] == [
        ("linear", "mix", "data"),
        ("add", "data", "mix"),
    ]
    torch.testing.assert_close(result.matrix("data", "data")[0], relevancy_of(model, data))


class Conditioned(nn.Module):
    """Words attend to each other; their mean scales every patch, and the patches attend."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.patches = nn.Linear(4, 8), nn.Linear(6, 8)
        self.read, self.look, self.head = Attend(), Attend(), nn.Linear(8, 3)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        words = self.words(text)
        condition = (words + self.read(words)).mean(1, keepdim=True)
        patches = self.patches(image) * (1 + condition)
        patches = patches + self.look(patches)
        return self.head(patches[:, 0])


def test_a_condition_that_attended_reaches_the_tokens_it_scales() -> None:
    torch.manual_seed(0)
    model = Conditioned().eval()
    inputs = {"text": torch.randn(2, 5, 4), "image": torch.randn(2, 6, 6)}
    traced = fxplain.trace(model, inputs)
    assert [(a.kind, a.queries.name) for a in traced.attentions] == [("self", "text"), ("self", "image")]
    result = traced.explain(inputs, target=1)
    assert bool((result.relevance["text"].sum(-1) > 0).all())
    for sample in range(2):
        alone = {name: data[sample : sample + 1] for name, data in inputs.items()}
        expected = fxplain.explain(model, alone, target=1).relevance["text"]
        torch.testing.assert_close(result.relevance["text"][sample : sample + 1], expected)


class Pruned(nn.Module):
    """The tokens with the largest scores, others in each sample, attend; the rest get the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.query, self.key, self.value = (nn.Linear(i, 8) for i in (3, 8, 8, 8))
        self.head = nn.Linear(8, 2)

    def forward(self, data: Tensor) -> Tensor:
        x = self.embed(data)
        query, key, value = self.query(x), self.key(x), self.value(x)
        top = (query @ key.mT).amax(-1).topk(3).indices.unsqueeze(-1).expand(-1, -1, 8)
        read = (query.gather(1, top) @ key.mT).softmax(-1) @ value
        context = value.mean(1, keepdim=True).expand(-1, data.shape[1], -1).clone().scatter(1, top, read)
        return self.head((x + context)[:, -1])


def test_tokens_picked_by_each_sample_for_itself() -> None:
    torch.manual_seed(1)
    model, data = Pruned().eval(), torch.randn(3, 8, 3)
    result = fxplain.explain(model, data)
    for sample in range(3):
        alone = fxplain.explain(model, data[sample : sample + 1])
        torch.testing.assert_close(result.relevance["data"][sample : sample + 1], alone.relevance["data"])


class Edges(nn.Module):
    """Keys and values of an edge: what its end node has, and what the edge has."""

    def __init__(self) -> None:
        super().__init__()
        self.node, self.edge = nn.Linear(3, 8), nn.Linear(2, 8)
        self.query, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        x = self.node(nodes)
        pairs = x[:, None] + self.edge(edges)
        weights = torch.einsum("bid,bijd->bij", self.query(x), pairs).softmax(-1)
        return self.head(x + torch.einsum("bij,bijd->bid", weights, pairs))


def test_nodes_beside_their_edges_have_a_part_in_them() -> None:
    inputs = {"nodes": torch.randn(2, 4, 3), "edges": torch.randn(2, 4, 4, 2)}
    traced = fxplain.trace(Edges().eval(), inputs)
    result = traced.explain(inputs, target=(0, 1))
    assert [(mix.queries.name, mix.keys.name) for mix in traced.mixings] == [("edges", "nodes")]
    assert bool((result.relevance["nodes"] > 0).any())
    assert bool((result.relevance["edges"][:, 4:] == 0).all())  # row 0 reads its own edges alone


class ByHand(nn.Module):
    """Learned queries sample a grid at points; bilinear weights of four corners are written by hand."""

    def __init__(self, added: str) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.cells, self.head = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 3)
        self.points = nn.Parameter(torch.rand(6, 2))
        self.query, self.weights = nn.Parameter(torch.randn(1, 2, 8)), nn.Linear(8, 3)
        self.added = added

    def forward(self, x: Tensor) -> Tensor:
        cells = self.cells(x).flatten(2).mT
        at = self.points * 3
        low, part = at.floor().long(), at - at.floor()
        found: list[Tensor] = []
        for right in (0, 1):
            for down in (0, 1):
                weight = (part if right else 1 - part)[:, 0] * (part if down else 1 - part)[:, 1]
                place = (low[:, 1] + down).clamp(max=3) * 4 + (low[:, 0] + right).clamp(max=3)
                found.append(cells[:, place] * weight[:, None])
        values = (
            torch.stack(found).sum(0)
            if self.added == "stacked"
            else found[0] + found[1] + found[2] + found[3]
        )
        weights = self.weights(self.query.expand(len(x), -1, -1)).softmax(-1)
        return self.head((values.unflatten(1, (2, 3)) * weights[..., None]).sum(2)[:, 0])


@pytest.mark.parametrize("added", ["one by one", "stacked"])
def test_all_corners_of_a_sampling_by_hand_count(added: str) -> None:
    model, x = ByHand(added).eval(), torch.randn(1, 3, 8, 8, requires_grad=True)
    moved: set[int] = set()
    given: set[int] = set()
    for target in range(3):
        score = model(x)[0, target]
        (slope,) = torch.autograd.grad(score, x)
        cells = slope.detach().abs().sum(1)[0].view(4, 2, 4, 2).sum((1, 3)).flatten()
        moved |= set(cells.nonzero().flatten().tolist())
        relevance = fxplain.explain(model, x.detach(), target=target).relevance["x"][0]
        given |= set(relevance.nonzero().flatten().tolist())
    assert len(given) > 3
    assert given <= moved
