"""Linear operators over tokens without a matrix in the graph: their maps, held against slow references."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxplain
from fxplain.errors import NoAttentionError

BATCH, TOKENS, WIDTH = 2, 5, 6


def transform(x: Tensor) -> Tensor:
    return torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real


def long_convolution(x: Tensor) -> Tensor:
    size = 2 * x.shape[1]
    kernel = torch.cos(torch.arange(x.shape[1] * x.shape[2], dtype=x.dtype)).view(1, *x.shape[1:])
    spectrum = torch.fft.rfft(x, n=size, dim=1) * torch.fft.rfft(kernel, n=size, dim=1)
    return torch.fft.irfft(spectrum, n=size, dim=1)[:, : x.shape[1]]


def running_sum(x: Tensor) -> Tensor:
    return x.cumsum(1) / torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]


def solved(x: Tensor) -> Tensor:
    """A delta rule: what each token's key finds already is taken away from its value."""
    keys = nn.functional.normalize(x, dim=-1)
    system = (keys @ keys.mT).tril(-1) + torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.solve_triangular(system, x, upper=False)


OPERATORS: dict[str, tuple[Callable[[Tensor], Tensor], str, str]] = {
    "FFT": (transform, "fft_fft", "FFT mixing"),
    "long convolution": (long_convolution, "fft_rfft", "FFT mixing"),
    "running sum": (running_sum, "cumsum", "running sum"),
    "solved system": (solved, "linalg_solve_triangular", "solved system"),
}


class Mixer(nn.Module):
    """Attention, an operator over the tokens, attention again; each added to the tokens."""

    def __init__(self, operator: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.embed, self.value, self.head = nn.Linear(4, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.operator = operator
        self.before, self.made = nn.Identity(), nn.Identity()  # for hooks
        self.first, self.second = nn.Identity(), nn.Identity()

    def attend(self, x: Tensor, map: nn.Module) -> Tensor:
        weights: Tensor = map((x @ x.mT).softmax(-1))
        return weights @ x

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.attend(x, self.first)
        x = x + self.made(self.operator(self.before(self.value(x))))
        x = x + self.attend(x, self.second)
        logits: Tensor = self.head(x[:, -1])
        return logits


def slow(model: Mixer, x: Tensor, target: int) -> Tensor:
    """The relevancy [batch, token, token] after all steps, every one by eq. 6."""
    seen: dict[str, Tensor] = {}
    for name in ("first", "before", "made", "second"):
        getattr(model, name).register_forward_hook(lambda _m, _g, made, name=name: seen.update({name: made}))
    score = model(x)[:, target].sum()
    grown = dict(zip(seen, torch.autograd.grad(score, list(seen.values())), strict=True))
    found = torch.eye(TOKENS, dtype=x.dtype).expand(len(x), -1, -1)
    found = found + (seen["first"] * grown["first"]).clamp(min=0) @ found
    parts = []
    for token in range(
        TOKENS
    ):  # what is left of the output where one token alone goes in, others as they are
        rest = (torch.arange(TOKENS) == token)[:, None]
        _, moved = torch.autograd.functional.jvp(
            lambda given: _linear(model, seen["before"], given), seen["before"], seen["before"] * rest
        )
        parts.append((moved * grown["made"]).sum(-1))
    found = found + torch.stack(parts, -1).clamp(min=0) @ found
    return (found + (seen["second"] * grown["second"]).clamp(min=0) @ found).detach()


def _linear(model: Mixer, fixed: Tensor, given: Tensor) -> Tensor:
    """The operator as it stands for these tokens: a system that was made of them does not change."""
    if model.operator is not solved:
        return model.operator(given)
    keys = nn.functional.normalize(fixed, dim=-1).detach()
    system = (keys @ keys.mT).tril(-1) + torch.eye(TOKENS, dtype=given.dtype)
    return torch.linalg.solve_triangular(system, given, upper=False)


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_is_a_step_with_a_map(name: str) -> None:
    operator, op, role = OPERATORS[name]
    torch.manual_seed(0)
    model, x = Mixer(operator).double().eval(), torch.randn(BATCH, TOKENS, 4).double()
    traced = fxplain.trace(model, x)
    assert [(a.kind, a.queries.size) for a in traced.attentions] == [("self", TOKENS)] * 2
    assert [(m.op, m.kind, m.queries.size, m.keys.size) for m in traced.mixings] == [
        (op, None, TOKENS, TOKENS)
    ]
    assert {entry.role for entry in traced.census} == {"attention", role}
    result = traced.explain(x, target=1)
    assert [note for note in result.notes if op in note]
    assert not [note for note in result.notes if "not followed" in note]
    torch.testing.assert_close(result.matrix("x", "x"), slow(model, x, 1))
    alone = fxplain.explain(model, x[1:], target=1)
    torch.testing.assert_close(alone.matrix("x", "x")[0], result.matrix("x", "x")[1])


class Alone(nn.Module):
    def __init__(self, operator: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.embed, self.head, self.operator = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 3), operator

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        logits: Tensor = self.head((x + self.operator(x))[:, -1])
        return logits


@pytest.mark.parametrize("name", ["FFT", "long convolution", "running sum"])
def test_an_operator_alone_is_no_attention(name: str) -> None:
    operator, _, role = OPERATORS[name]
    with pytest.raises(NoAttentionError, match=role):
        fxplain.explain(Alone(operator).eval(), torch.randn(1, TOKENS, 4))


class Kernel(nn.Module):
    """Linear attention, then attention: keys are summed with the values first, or the map is written out."""

    def __init__(self, spelled: str) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 3)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.spelled = spelled

    def mix(self, x: Tensor) -> Tensor:
        query, key = (nn.functional.elu(layer(x)) + 1 for layer in (self.query, self.key))
        value = self.value(x)
        if self.spelled == "written out":
            weights = query @ key.mT
            return weights / weights.sum(-1, keepdim=True) @ value
        if self.spelled == "einsum":
            summed = torch.einsum("bnd,bne->bde", key, value)
            share = 1 / torch.einsum("bnd,bd->bn", query, key.sum(1))
            return torch.einsum("bnd,bde,bn->bne", query, summed, share)
        return (query @ (key.mT @ value)) / (query @ key.sum(1)[:, :, None])

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.mix(x)
        x = x + (x @ x.mT).softmax(-1) @ x
        logits: Tensor = self.head(x[:, -1])
        return logits


@pytest.mark.parametrize("spelled", ["products", "einsum"])
def test_linear_attention_equals_its_map_written_out(spelled: str) -> None:
    torch.manual_seed(0)
    model, x = Kernel(spelled).double().eval(), torch.randn(BATCH, TOKENS, 4).double()
    traced = fxplain.trace(model, x)
    assert len(traced.attentions) == 1
    assert [(m.kind, m.queries.size, m.keys.size) for m in traced.mixings] == [(None, TOKENS, TOKENS)]
    assert {entry.role for entry in traced.census} == {"attention", "linear attention"}
    same = Kernel("written out").double().eval()
    same.load_state_dict(model.state_dict())
    wanted = fxplain.trace(same, x)
    assert len(wanted.attentions) == 2
    for target in range(3):
        found = traced.explain(x, target=target).matrix("x", "x")
        torch.testing.assert_close(found, wanted.explain(x, target=target).matrix("x", "x"))


class Chunked(Kernel):
    """Causal: within a chunk by its map, from chunk to chunk by the sum of keys times values."""

    def mix(self, x: Tensor) -> Tensor:
        query, key, value = (layer(x) for layer in (self.query, self.key, self.value))
        if self.spelled == "written out":
            return (query @ key.mT).tril() @ value
        query, key, value = (part.unflatten(1, (-1, 3)) for part in (query, key, value))
        within = torch.einsum("bcln,bcsn->bcls", query, key).tril() @ value
        states = torch.einsum("bcsn,bcsp->bcnp", key, value).cumsum(1)
        before = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], 1)
        return (within + torch.einsum("bcln,bcnp->bclp", query, before)).flatten(1, 2)


def test_states_of_chunks_equal_the_map_written_out() -> None:
    torch.manual_seed(0)
    model, x = Chunked("chunks").double().eval(), torch.randn(BATCH, 6, 4).double()
    traced = fxplain.trace(model, x)
    same = Chunked("written out").double().eval()
    same.load_state_dict(model.state_dict())
    for target in range(3):
        found = traced.explain(x, target=target)
        torch.testing.assert_close(found.matrix("x", "x"), fxplain.explain(same, x, target).matrix("x", "x"))


class State(nn.Module):
    """A selective state space in a loop, then attention."""

    def __init__(self, spelled: str) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 3)
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=2, groups=WIDTH)
        self.gate, self.write, self.read = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 3)
        self.spelled = spelled

    def mix(self, x: Tensor) -> Tensor:
        if self.spelled == "behind a convolution":
            x = self.conv(x.mT)[..., : x.shape[1]].mT
        kept = self.gate(x).sigmoid()[..., None].expand(-1, -1, -1, 3)
        given = x[..., None] * self.write(x)[:, :, None]
        read, state, found = self.read(x), x.new_zeros(len(x), WIDTH, 3), torch.zeros_like(x)
        heard = []
        for t in range(x.shape[1]):
            state = kept[:, t] * state + given[:, t]
            if self.spelled == "in place":
                found[:, t] = (state * read[:, t, None]).sum(-1)
            elif self.spelled == "einsum":
                heard.append(torch.einsum("bwn,bn->bw", state, read[:, t]))
            else:
                heard.append((state @ read[:, t, :, None])[..., 0])
        return torch.stack(heard, 1) if heard else found

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.mix(x)
        x = x + (x @ x.mT).softmax(-1) @ x
        logits: Tensor = self.head(x[:, -1])
        return logits


@pytest.mark.parametrize("batch", [1, BATCH])
@pytest.mark.parametrize("spelled", ["products", "einsum", "in place", "behind a convolution"])
def test_a_state_in_a_loop_is_told_and_keeps_the_tokens(spelled: str, batch: int) -> None:
    torch.manual_seed(0)
    model, x = State(spelled).eval(), torch.randn(batch, TOKENS, 4)
    traced = fxplain.trace(model, x)
    assert [(a.kind, a.queries.name, a.keys.name, a.keys.size) for a in traced.attentions] == [
        ("self", "x", "x", TOKENS)
    ]
    assert {entry.role for entry in traced.census} == {"attention", "recurrence"}
    result = traced.explain(x, target=1)
    assert [note for note in result.notes if "recurrence" in note and "not followed" in note]
    assert [[token for token, _ in row] for row in result.readout] == [[TOKENS - 1]] * batch


class Fused(nn.Module):
    """Two streams, each with attention; what is pooled of them is multiplied, feature by feature."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.picture, self.text, self.head = nn.Linear(4, WIDTH), nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.pooled = pooled

    def forward(self, picture: Tensor, text: Tensor) -> Tensor:
        both = []
        for x in (self.picture(picture), self.text(text)):
            x = x + (x @ x.mT).softmax(-1) @ x
            both.append(x.mean(1) if self.pooled else x[:, 0])
        logits: Tensor = self.head(both[0] * both[1])
        return logits


@pytest.mark.parametrize("pooled", [False, True])
def test_a_product_of_two_streams_reads_both(pooled: bool) -> None:
    torch.manual_seed(0)
    given = torch.randn(BATCH, 4, 4), torch.randn(BATCH, 3, 5)
    results = [fxplain.explain(Fused(pooled).eval(), given, target=target) for target in range(3)]
    for name in ("picture", "text"):
        assert sum(float(result.relevance[name].sum()) for result in results) > 0
