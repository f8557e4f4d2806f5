"""Deformable attention: each query samples a grid at points; its map held against a slow reference."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch
from torch import Tensor, nn

import fxplain
from fxplain.maps.samplings import corners

BATCH, HEADS, DIM, POINTS = 2, 2, 3, 4
WIDTH = HEADS * DIM
SIZES = ((3, 4), (2, 2))
PLACES = [rows * cols for rows, cols in SIZES]
TOKENS, QUERIES = sum(PLACES), 5


class Deformable(nn.Module):
    """Each query samples each level at a few points around its own, and weighs what it finds."""

    def __init__(self, spelled: str = "sum") -> None:
        super().__init__()
        count = HEADS * len(SIZES) * POINTS
        self.offsets, self.weigh = nn.Linear(WIDTH, 2 * count), nn.Linear(WIDTH, count)
        self.value, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.spelled = spelled
        self.seen = nn.Identity()  # for hooks: the weighted sum [batch * head, dim, query]

    def points(self, query: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Where to sample, -1 to 1, [batch * head, query, level, point, 2], and the weights without the 2."""
        shape = (*query.shape[:2], HEADS, len(SIZES), POINTS)
        places = own[:, :, None, None, None] + 0.5 * self.offsets(query).view(*shape, 2).tanh()
        weights = self.weigh(query).view(*shape[:3], -1).softmax(-1).view(shape)
        return places.transpose(1, 2).flatten(0, 1), weights.transpose(1, 2).flatten(0, 1)

    def values(self, tokens: Tensor) -> Tensor:
        """[batch * head, dim, token]."""
        return self.value(tokens).view(len(tokens), -1, HEADS, DIM).permute(0, 2, 3, 1).flatten(0, 1)

    def forward(self, query: Tensor, own: Tensor, tokens: Tensor) -> Tensor:
        places, weights = self.points(query, own)
        levels = self.values(tokens).split(PLACES, -1)
        found = [
            nn.functional.grid_sample(level.unflatten(-1, size), places[:, :, n], align_corners=False)
            for n, (level, size) in enumerate(zip(levels, SIZES, strict=True))
        ]
        samples = torch.stack(found, -2)  # [batch * head, dim, query, level, point]
        if self.spelled == "sum":
            summed = (samples.flatten(-2) * weights.flatten(-2)[:, None]).sum(-1)
        elif self.spelled == "einsum":
            summed = torch.einsum("ndqlp,nqlp->ndq", samples, weights)
        else:
            rows = weights.flatten(-2)[:, :, None] @ samples.flatten(-2).permute(0, 2, 3, 1)
            summed = rows[:, :, 0].transpose(1, 2)
        summed = self.seen(summed)
        return self.out(summed.reshape(len(query), WIDTH, -1).transpose(1, 2))


def centres() -> Tensor:
    """The points of all places of the grid, -1 to 1, [token, 2]."""
    found = [
        [(2 * x + 1) / cols - 1, (2 * y + 1) / rows - 1]
        for rows, cols in SIZES
        for y, x in product(range(rows), range(cols))
    ]
    return torch.tensor(found, dtype=torch.float64)


class Detector(nn.Module):
    """An encoder whose places sample each other, and a decoder whose learned queries sample the places."""

    def __init__(self, spelled: str = "sum") -> None:
        super().__init__()
        self.embed, self.queries = nn.Linear(7, WIDTH), nn.Parameter(torch.randn(QUERIES, WIDTH))
        self.encoder, self.decoder = Deformable(spelled), Deformable(spelled)
        self.where, self.head = nn.Linear(WIDTH, 2), nn.Linear(WIDTH, 3)
        self.attend = nn.MultiheadAttention(WIDTH, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.encoder(x, centres()[None].expand(len(x), -1, -1), x)
        q = self.queries[None].expand(len(x), -1, -1)
        q = q + self.attend(q, q, q, need_weights=False)[0]
        q = q + self.decoder(q, self.where(q).tanh(), x)
        logits: Tensor = self.head(q)
        return logits


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def x() -> Tensor:
    return torch.randn(BATCH, TOKENS, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def slow_bilinear(place: Tensor, rows: int, cols: int) -> dict[int, float]:
    """The weights of the places around a point, by hand."""
    across, down = ((float(place[0]) + 1) * cols - 1) / 2, ((float(place[1]) + 1) * rows - 1) / 2
    found = {}
    for row, col in product(range(rows), range(cols)):
        weight = max(0.0, 1 - abs(across - col)) * max(0.0, 1 - abs(down - row))
        if weight:
            found[row * cols + col] = weight
    return found


def slow_map(
    module: Deformable, query: Tensor, own: Tensor, tokens: Tensor, gradient: Tensor | None
) -> Tensor:
    """Mean over heads of (gradient ⊙ contribution of each token)⁺, or of weights [batch, query, token]."""
    places, weights = module.points(query, own)
    values = module.values(tokens)
    total = torch.zeros(len(query), query.shape[1], TOKENS, dtype=torch.float64)
    for sample, head, row in product(range(len(query)), range(HEADS), range(query.shape[1])):
        line = torch.zeros(TOKENS, dtype=torch.float64)
        n = sample * HEADS + head
        for level, point in product(range(len(SIZES)), range(POINTS)):
            around = slow_bilinear(places[n, row, level, point], *SIZES[level])
            for place, share in around.items():
                line[sum(PLACES[:level]) + place] += share * weights[n, row, level, point]
        if gradient is not None:
            line = (line * (gradient[n, :, row] @ values[n])).clamp(min=0)
        total[sample, row] += line / HEADS
    return total


def slow_maps(model: Detector, target: tuple[int, int], gradients: bool) -> tuple[list[Tensor], Tensor]:
    """Both maps, and that of the self attention between the queries."""
    calls: list[tuple[Tensor, ...]] = []
    sums: list[Tensor] = []
    attended: list[tuple[Tensor, Tensor]] = []
    hooks = [
        m.register_forward_hook(lambda _, given, made: calls.append(given))
        for m in (model.encoder, model.decoder)
    ]
    hooks += [
        m.seen.register_forward_hook(lambda _, given, made: sums.append(made))
        for m in (model.encoder, model.decoder)
    ]
    hooks.append(
        model.attend.register_forward_hook(lambda _, given, made: attended.append((given[0], made[0])))
    )
    score = model(x())[:, target[0], target[1]].sum()
    for hook in hooks:
        hook.remove()
    grown = torch.autograd.grad(score, [*sums, attended[0][1]])
    with torch.no_grad():
        modules = (model.encoder, model.decoder)
        maps = [
            slow_map(m, *given, g if gradients else None)
            for m, given, g in zip(modules, calls, grown, strict=False)
        ]
        query = attended[0][0]
        layer = model.attend
        q, k, v = nn.functional.linear(query, layer.in_proj_weight, layer.in_proj_bias).chunk(3, -1)
        weights = (q @ k.mT / WIDTH**0.5).softmax(-1)
        if gradients:
            weights = (weights * ((grown[2] @ layer.out_proj.weight) @ v.mT)).clamp(min=0)
    return maps, weights


def normalised(relevancy: Tensor) -> Tensor:
    """Eqs. 8 and 9."""
    excess = relevancy - torch.eye(len(relevancy), dtype=torch.float64)
    sums = excess.sum(-1, keepdim=True)
    return torch.where(sums > 0, excess / sums, 0.0) + torch.eye(len(relevancy), dtype=torch.float64)


@pytest.mark.parametrize("spelled", ["sum", "einsum", "matmul"])
def test_effective_map_between_places_and_queries(spelled: str) -> None:
    model = Detector(spelled).double().eval()
    traced = fxplain.trace(model, x())
    steps = [(m.kind, m.op, m.queries.size, m.keys.size) for m in traced.mixings]
    assert steps == [
        ("self", "grid_sampler", TOKENS, TOKENS),
        ("encoder_decoder", "grid_sampler", QUERIES, TOKENS),
    ]
    assert [(a.kind, a.queries.size) for a in traced.attentions] == [("self", QUERIES)]
    assert [e.role for e in traced.census if e.role != "attention"] == ["sampling over points"] * 2
    result = traced.explain(x(), target=(3, 1))
    assert [note for note in result.notes if "approximate" in note and "encoder_decoder" in note]
    (encoder, decoder), alone = slow_maps(model, (3, 1), True)
    for sample in range(BATCH):
        places = torch.eye(TOKENS, dtype=torch.float64) + encoder[sample]
        queries = torch.eye(QUERIES, dtype=torch.float64) + alone[sample]
        torch.testing.assert_close(result.matrix("x", "x")[sample], places)
        wanted = normalised(queries).T @ decoder[sample] @ normalised(places)
        torch.testing.assert_close(result.matrix("queries", "x")[sample], wanted)
        torch.testing.assert_close(result.relevance["x"][sample], wanted[3])


def test_the_map_without_gradients() -> None:
    model = Detector().double().eval()
    result = fxplain.explain(model, x(), target=(3, 1), method="raw_attention")
    (_, decoder), _ = slow_maps(model, (3, 1), False)
    torch.testing.assert_close(result.matrix("queries", "x"), decoder)
    assert 0 < float(decoder.sum(-1).max()) <= 1 + 1e-9  # less where points lie outside


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_corners_are_those_of_grid_sample(mode: str, padding: str, aligned: bool) -> None:
    for sizes in ((3, 4), (2, 3, 4)):
        count = torch.Size(sizes).numel()
        basis = torch.eye(count, dtype=torch.float64).view(1, count, *sizes)
        grid = 3 * torch.randn(1, 1, *[1] * (len(sizes) - 2), 50, len(sizes), dtype=torch.float64)
        wanted = nn.functional.grid_sample(basis, grid, mode, padding, aligned).view(count, 50)
        codes = ["bilinear", "nearest"].index(mode), ["zeros", "border", "reflection"].index(padding)
        found = torch.zeros(50, count, dtype=torch.float64)
        for place, weight in corners(grid.view(50, -1), sizes, *codes, aligned):
            found.scatter_add_(1, place[:, None], weight[:, None])
        torch.testing.assert_close(found.T, wanted)


class Alone(nn.Module):
    """Places that sample each other, layer by layer, and no other attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(7, WIDTH), nn.Linear(WIDTH, 3)
        self.layers = nn.ModuleList(Deformable() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = x + layer(x, centres()[None].expand(len(x), -1, -1), x)
        logits: Tensor = self.head(x[:, 0])
        return logits


def test_points_alone_are_explained_like_self_attention() -> None:
    model = Alone().double().eval()
    result = fxplain.explain(model, x(), target=1)
    calls: list[tuple[Tensor, ...]] = []
    sums: list[Tensor] = []
    for layer in model.layers:
        layer.register_forward_hook(lambda _, given, made: calls.append(given))
        layer.seen.register_forward_hook(lambda _, given, made: sums.append(made))
    grown = torch.autograd.grad(model(x())[:, 1].sum(), sums)
    relevancy = torch.eye(TOKENS, dtype=torch.float64)
    with torch.no_grad():
        for layer, given, gradient in zip(model.layers, calls, grown, strict=True):
            relevancy = relevancy + slow_map(layer, *given, gradient) @ relevancy  # type: ignore[arg-type]
    torch.testing.assert_close(result.matrix("x", "x"), relevancy)


def test_the_model_of_one_sample_gives_the_same() -> None:
    model = Detector().double().eval()
    both = fxplain.explain(model, x(), target=(3, 1))
    for sample, (start, stop) in enumerate(pairwise(range(BATCH + 1))):
        one = fxplain.explain(model, x()[start:stop], target=(3, 1))
        torch.testing.assert_close(one.relevance["x"][0], both.relevance["x"][sample])


@pytest.mark.parametrize("spelled", ["sum", "einsum", "matmul"])
def test_weights_of_the_points_are_had_as_the_model_has_them(spelled: str) -> None:
    model = Detector(spelled).double().eval()
    given: list[Tensor] = []
    for layer in (model.encoder, model.decoder):
        layer.weigh.register_forward_hook(lambda _, args, made: given.append(made))
    model(x())
    wanted = [made.unflatten(-1, (HEADS, -1)).softmax(-1).transpose(1, 2) for made in given]
    found = fxplain.trace(model, x()).points(x())
    assert [tuple(map.shape) for map in found] == [
        (BATCH, HEADS, count, len(SIZES) * POINTS) for count in (TOKENS, QUERIES)
    ]
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


class Discrete(Deformable):
    """Samples the nearest place of the first level by its index, with nothing between places."""

    def forward(self, query: Tensor, own: Tensor, tokens: Tensor) -> Tensor:
        rows, cols = SIZES[0]
        places, weights = (part[:, :, 0] for part in self.points(query, own))
        across, down = ((places + 1) / 2 * torch.tensor([cols, rows])).floor().long().unbind(-1)
        index = down.clamp(0, rows - 1) * cols + across.clamp(0, cols - 1)  # [batch * head, query, point]
        values = self.values(tokens)[..., : PLACES[0]]
        taken = values.gather(2, index.flatten(1)[:, None].expand(-1, DIM, -1))
        summed = (taken.unflatten(2, index.shape[1:]) * weights[:, None]).sum(-1)
        return self.out(summed.reshape(len(query), WIDTH, -1).transpose(1, 2))


def test_points_at_whole_places_are_an_attention() -> None:
    model = Detector().double().eval()
    model.decoder = Discrete().double()
    traced = fxplain.trace(model, x())
    assert [(m.kind, m.queries.size) for m in traced.mixings] == [("self", TOKENS)]
    kinds = [(a.kind, a.queries.size, a.heads) for a in traced.attentions]
    assert kinds == [("self", QUERIES, 1), ("encoder_decoder", QUERIES, HEADS)]
    calls: list[tuple[Tensor, ...]] = []
    model.decoder.register_forward_hook(lambda _, given, made: calls.append(given))
    model(x())
    weights = model.decoder.points(*calls[0][:2])[1][:, :, 0].unflatten(0, (BATCH, HEADS))
    torch.testing.assert_close(traced.maps(x())[1].sum(-1), weights.sum(-1))
