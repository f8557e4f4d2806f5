"""LRP on the smallest module of every kind of operation: what is conserved, what spelling must not change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from lrp_bodies import BODIES, WIDE, Attends, bent, crossed, turned
from torch import Tensor, nn
from zoo.spec import floats, make

import fxplain
from fxplain.attribution.lrp.table import TABLE, Call, Shares, relevance_rule
from fxplain.errors import MethodError, NoAttentionError
from fxplain.result import Result

TO_INPUTS = ("lrp", "lrp_epsilon", "lrp_alpha_beta", "attnlrp", "cp_lrp", "gamma_lrp")


def explained(model: nn.Module, x: Tensor, method: str, target: object = 1) -> Result:
    return fxplain.explain(model, x, target=target, method=method)


def relevance(body: Callable[[Attends, Tensor], Tensor], method: str, sixty_four: bool = True) -> Tensor:
    model, x = make(lambda: Attends(body)), floats(2, 5, WIDE, seed=3)
    if sixty_four:
        model, x = model.double(), x.double()
    return explained(model, x, method).relevance["x"]


@pytest.mark.parametrize("kind", list(BODIES))
def test_what_leaves_the_output_arrives_at_the_tokens(kind: str) -> None:
    """Without biases the rules of the CVPR 2021 paper conserve, as long as z+ finds something positive."""
    found = relevance(BODIES[kind], "lrp")
    torch.testing.assert_close(found.sum(1), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", list(BODIES))
@pytest.mark.parametrize("method", TO_INPUTS[1:])
def test_all_rule_sets_run(kind: str, method: str) -> None:
    found = relevance(BODIES[kind], method)
    assert torch.isfinite(found).all()
    assert found.abs().max() > 0


LINEAR_KINDS = (
    "branches",
    "conv",
    "pooled",
    "windows",
    "gathered",
    "placed",
    "sliced",
    "split",
    "einsum",
    "complex",
)


@pytest.mark.parametrize("kind", LINEAR_KINDS)
def test_attnlrp_of_a_linear_body_is_gradient_times_input(kind: str) -> None:
    """With the attention held constant (CP-LRP) the whole model is linear, and so is its relevance."""
    model, x = (
        make(lambda: Attends(BODIES[kind])).double(),
        floats(2, 5, WIDE, seed=3).double().requires_grad_(),
    )
    held = model.attend

    def constant(x: Tensor) -> Tensor:
        maps = (model.query(x) @ model.key(x).mT / WIDE**0.5).softmax(-1).detach()
        return maps @ model.value(x)

    model.attend = constant  # type: ignore[assignment, method-assign]
    model(x)[:, 1].sum().backward()
    model.attend = held  # type: ignore[method-assign]
    assert x.grad is not None
    found = explained(model, x.detach(), "cp_lrp").relevance["x"]
    torch.testing.assert_close(found, (x.grad * x).detach().sum(-1), rtol=1e-4, atol=1e-6)


SPELLINGS: dict[str, tuple[Callable[[Attends, Tensor], Tensor], Callable[[Attends, Tensor], Tensor]]] = {
    "gelu": (
        lambda m, x: F.gelu(x, approximate="tanh"),
        lambda m, x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
    ),
    "silu": (lambda m, x: F.silu(x), lambda m, x: x * torch.sigmoid(x)),
    "rms norm": (
        lambda m, x: F.rms_norm(x, (WIDE,), m.norm.weight, 1e-5),
        lambda m, x: m.norm.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)),
    ),
    "layer norm": (
        lambda m, x: m.norm(x),
        lambda m, x: (
            ((x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt())
            * m.norm.weight
            + m.norm.bias
        ),
    ),
    "linear": (lambda m, x: m.one(x), lambda m, x: x.matmul(m.one.weight.T)),
    "conv": (
        lambda m, x: m.conv(x.mT).mT,
        lambda m, x: torch.einsum("btkf,gfk->btg", F.pad(x, (0, 0, 1, 1)).unfold(1, 3, 1).mT, m.conv.weight),
    ),
    "product": (
        lambda m, x: (x @ m.one(x).mT) @ m.two(x),
        lambda m, x: torch.stack([torch.tensordot(a, m.one(a), ([1], [1])) for a in x]) @ m.two(x),
    ),
    "mean": (lambda m, x: x.mean(1, keepdim=True), lambda m, x: x.sum(1, keepdim=True) / 5),
    "grouped": (
        lambda m, x: m.one(x).repeat(1, 1, 2),
        lambda m, x: m.one(x)[:, :, None].expand(-1, -1, 2, -1).flatten(2),
    ),
}


def halves(m: Attends, x: Tensor) -> Tensor:
    return x.unflatten(-1, (-1, WIDE)).sum(-2) if x.shape[-1] != WIDE else x


@pytest.mark.parametrize("method", ["lrp", "attnlrp", "cp_lrp"])
@pytest.mark.parametrize("kind", list(SPELLINGS))
def test_how_it_is_spelled_makes_no_difference(kind: str, method: str) -> None:
    one, other = (
        relevance(lambda m, x, spelled=spelled: halves(m, spelled(m, x)), method)  # type: ignore[misc]
        for spelled in SPELLINGS[kind]
    )
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


class Fused(nn.Module):
    """Grouped heads, written out or in one kernel."""

    def __init__(self, fused: bool, mask: bool) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 4)
        self.head, self.fused, self.mask = nn.Linear(8, 3), fused, mask

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (-1, 2)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        if self.fused:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=self.mask, enable_gqa=True)
        else:
            k, v = (t.repeat_interleave(2, 1) for t in (k, v))
            scores = q @ k.mT * 2**-0.5
            if self.mask:
                scores = scores.masked_fill(~torch.ones(5, 5, dtype=torch.bool).tril(), -torch.inf)
            out = scores.softmax(-1) @ v
        return self.head(x + out.transpose(1, 2).flatten(2))[:, -1]


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("method", [*TO_INPUTS, "transformer_attribution", "partial_lrp"])
def test_a_fused_attention_is_the_one_written_out(method: str, mask: bool) -> None:
    x = floats(2, 5, 8, seed=4).double()
    one, other = (explained(make(lambda f=f: Fused(f, mask)).double(), x, method) for f in (True, False))  # type: ignore[misc]
    torch.testing.assert_close(one.relevance["x"], other.relevance["x"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", [*TO_INPUTS, "transformer_attribution", "partial_lrp"])
def test_a_batch_is_its_samples_one_by_one(method: str) -> None:
    model, x = make(lambda: Attends(BODIES["residual"])).double(), floats(3, 5, WIDE, seed=5).double()
    together = explained(model, x, method)
    for sample in range(3):
        alone = explained(model, x[sample : sample + 1], method)
        torch.testing.assert_close(alone.relevance["x"][0], together.relevance["x"][sample])


def test_half_precision_is_propagated_in_float32() -> None:
    model, x = make(lambda: Attends(BODIES["gated"])), floats(1, 5, WIDE, seed=5)
    wide = explained(model, x, "lrp").relevance["x"]
    half = explained(model.bfloat16(), x.bfloat16(), "lrp").relevance["x"]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, wide, rtol=0.1, atol=0.05)


def test_the_sum_at_the_tokens_is_told() -> None:
    model, x = make(lambda: Attends()), floats(1, 5, WIDE, seed=5)
    (note,) = (n for n in explained(model, x, "lrp").notes if n.startswith("relevance"))
    assert note == "relevance, per sample: 1 of 1 reached the tokens, 0 constants"


def test_a_network_without_attention_has_relevance_too() -> None:
    """What other methods need, LRP does not: it goes along whatever the graph holds."""
    net = nn.Sequential(nn.Conv2d(3, WIDE, 2, stride=2), nn.ReLU(), nn.Flatten(2), nn.AdaptiveAvgPool1d(1))
    model, x = make(lambda: nn.Sequential(net, nn.Flatten(1), nn.Linear(WIDE, 3))), floats(2, 3, 8, 8, seed=5)
    result = explained(model.double(), x.double(), "lrp")
    (space,) = (name for name in result.relevance if result.spaces[0].name == name)
    ones = torch.ones(2, dtype=torch.float64)
    torch.testing.assert_close(result.relevance[space].sum(1), ones)
    torch.testing.assert_close(result.inputs["input"].sum((1, 2, 3)), ones)
    with pytest.raises(NoAttentionError):
        explained(model, x.double(), "relevancy")


def test_a_score_of_two_outputs_starts_at_both() -> None:
    model, x = make(lambda: Attends()).double(), floats(1, 5, WIDE, seed=5).double()
    both = explained(model, x, "cp_lrp", target=lambda out: out[:, 0] - 2 * out[:, 2]).relevance["x"]
    first, last = (explained(model, x, "cp_lrp", target=t).relevance["x"] for t in (0, 2))
    torch.testing.assert_close(both, first - 2 * last)


# operations that nobody has written a rule for


def test_an_unknown_linear_map_is_found_by_experiment() -> None:
    for method in ("lrp", "attnlrp"):
        found = relevance(lambda m, x: turned(x, m.one.weight), method)
        known = relevance(lambda m, x: m.one(x).flip(-1), method)
        torch.testing.assert_close(found, known)


def test_an_unknown_activation_is_found_by_experiment() -> None:
    for method in ("lrp", "attnlrp"):
        found = relevance(lambda m, x: bent(x), method)
        torch.testing.assert_close(found, relevance(lambda m, x: x.sinh() * 0.5, method))


def test_what_no_rule_fits_is_an_error_that_says_where() -> None:
    with pytest.raises(MethodError) as raised:
        relevance(lambda m, x: crossed(x), "lrp")
    said = str(raised.value)
    for part in ("lrplab.crossed", "node crossed", "lrp_bodies.py", "chefer2021", "add-an-lrp-rule"):
        assert part in said


def test_a_rule_can_be_registered_for_all_sets_or_for_one() -> None:
    @relevance_rule("lrplab::crossed")
    def everywhere(call: Call) -> Shares:
        return [(node, call.relevance) for node, _ in call.carriers]

    @relevance_rule("lrplab::crossed", only="attnlrp")
    def once(call: Call) -> Shares:
        return [(node, call.relevance / 2) for node, _ in call.carriers]

    try:
        plain, halved = (relevance(lambda m, x: crossed(x), method) for method in ("cp_lrp", "attnlrp"))
        assert plain.abs().max() > 0
        assert halved.abs().max() > 0
        with pytest.raises(ValueError, match="already"):
            relevance_rule("lrplab::crossed")(everywhere)
    finally:
        del TABLE["lrplab::crossed", ""], TABLE["lrplab::crossed", "attnlrp"]
