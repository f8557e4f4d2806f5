"""What holds for every method on every model: where it is defined, laws, ranges of layers, comparisons."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import built, fresh, slice_batch, traced

import fxplain
from fxplain.attribution.prediction import run_graph
from fxplain.attribution.table import METHODS
from fxplain.errors import MethodError

# those of layer-wise relevance propagation have tests of their own
OWN = [name for name, method in METHODS.items() if "lrp" not in name and "LRP" not in method.description]
LIBRA = [f"{name}+libra" for name in OWN if METHODS[name].takes_libra]
SELF_ALONE = {"legrad", "legrad+libra"}
FAMILIES: dict[str, set[str]] = {
    "bert-sdpa": set(),
    "llama-eager": set(),
    "mixtral-sdpa": set(),
    "vit-eager": set(),
    "torchvision_swin_v2": SELF_ALONE,
    "torchvision_maxvit": SELF_ALONE,
    "detr-sdpa": SELF_ALONE,
    "t5-eager": SELF_ALONE,
    "lxmert-eager": SELF_ALONE,
    "clip-sdpa": set(),
    "siglip-eager": SELF_ALONE,
    "perceiver-eager": SELF_ALONE,
    "llava-sdpa": set(),
}
"""Model of the zoo -> the methods that are not defined for it, and say so."""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer steps: what is tested is that it runs, not how exactly it integrates."""
    monkeypatch.setattr("fxplain.attribution.gradients.STEPS", 2)
    monkeypatch.setattr("fxplain.attribution.gradients.DRAWS", 2)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_explains_or_refuses_with_its_reason(family: str) -> None:
    _, inputs, expected = built(family)
    found = traced(family).compare(inputs, [*OWN, *LIBRA], expected.target, output=expected.output)
    assert set(found.refused) == FAMILIES[family]
    assert all("is not defined here" in str(error) for error in found.refused.values())
    assert set(found) | set(found.refused) == {*OWN, *LIBRA}
    for name, result in found.items():
        assert all(bool(torch.isfinite(values).all()) for values in result.relevance.values()), name
        if "gradcam" not in name:  # its clamp may leave nothing
            assert any(bool(values.any()) for values in result.relevance.values()), name


# -- laws


class Attend(nn.Module):
    """Self attention without positions, as the kernel or written out."""

    def __init__(self, width: int, fused: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.fused:
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


class Rms(nn.Module):
    """An RMS norm written out."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * torch.pow(x, 3))))


class Homogeneous(nn.Module):
    """Nothing but what the balanced gradient makes homogeneous: no bias, no positions, no shift."""

    def __init__(
        self, gate: Callable[[Tensor], Tensor], norm: Callable[[], nn.Module], glu: bool, fused: bool
    ) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 8, bias=False), nn.Linear(8, 3, bias=False)
        self.attends = nn.ModuleList(Attend(8, fused) for _ in range(2))
        self.ups, self.gates, self.downs = (
            nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(2)) for _ in range(3)
        )
        self.norms = nn.ModuleList(norm() for _ in range(4))
        self.gate, self.glu = gate, glu

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for n in range(2):
            x = x + self.attends[n](self.norms[2 * n](x))
            y = self.norms[2 * n + 1](x)
            gated = self.gate(self.gates[n](y))
            x = x + self.downs[n](gated * self.ups[n](y) if self.glu else gated)
        return self.head(x[:, 0])


def still(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().double().eval()


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


NORMS: dict[str, Callable[[], nn.Module]] = {
    "layer norm": lambda: nn.LayerNorm(8, bias=False),
    "rms norm": lambda: nn.RMSNorm(8),
    "rms norm written out": Rms,
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("gate", [nn.functional.gelu, nn.functional.silu, swish, tanh_gelu, torch.relu])
@pytest.mark.parametrize(("glu", "fused"), [(False, False), (True, True)])
def test_balanced_gradient_times_input_is_the_score(norm: str, gate: Any, glu: bool, fused: bool) -> None:
    """FG-completeness of LibraGrad: without biases nothing is lost and nothing comes from nowhere."""
    model, x = still(lambda: Homogeneous(gate, NORMS[norm], glu, fused)), draw(2, 5, 6)
    found = fxplain.compare(model, x, ["gradient_x_input", "gradient_x_input+libra"], target=1)
    score = found["gradient_x_input"].score
    sums = {name: result.relevance["x"].sum(1) for name, result in found.items()}
    torch.testing.assert_close(sums["gradient_x_input+libra"], score, rtol=1e-6, atol=1e-8)
    assert not torch.allclose(sums["gradient_x_input"], score, rtol=1e-2)


@pytest.mark.parametrize("family", ["llama-eager", "detr-sdpa", "mixtral-eager"])
def test_balancing_changes_no_value(family: str) -> None:
    inputs = built(family)[1]
    labelled, bound, _ = traced(family)._layouts.labelled_for((), inputs, False)
    plain, balanced = (run_graph(labelled, bound, True, libra=libra) for libra in (False, True))
    assert balanced.surrogates
    for one, other in zip(plain.run.outputs, balanced.run.outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@cache
def plain_model() -> nn.Module:
    return still(lambda: Homogeneous(nn.functional.gelu, NORMS["layer norm"], False, False))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("method", [name for name in [*OWN, *LIBRA] if name not in ("random", "smoothgrad")])
def test_permuted_tokens_have_permuted_relevance(method: str) -> None:
    if method == "smoothgrad+libra":
        pytest.skip("its noise is drawn place by place")
    x, order = draw(1, 5, 6), torch.tensor([0, 3, 1, 4, 2])  # the first is the one that is read
    traced = fxplain.trace(plain_model(), x)
    one, other = (traced.explain(given, 1, method).relevance["x"] for given in (x, x[:, order]))
    torch.testing.assert_close(one[:, order], other, rtol=1e-8, atol=1e-12)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("family", ["bert-sdpa", "vit-sdpa", "lxmert-eager"])
def test_a_batch_is_explained_as_its_samples_are_alone(family: str) -> None:
    case = model, inputs, expected = built(family)
    wanted = [name for name in [*OWN, *LIBRA] if not name.startswith("smoothgrad")]  # one noise for a batch
    together = traced(family).compare(inputs, wanted, expected.target, output=expected.output)
    alone = fxplain.compare(model, slice_batch(case, 1), wanted, expected.target, output=expected.output)
    for name, result in together.items():
        for space, values in result.relevance.items():
            own = alone[name].relevance[space][0]
            torch.testing.assert_close(
                values[1],
                own,
                rtol=1e-3,
                atol=1e-5,
                msg=lambda m, n=name: f"{n}: {m}",  # type: ignore[misc]
            )


def test_a_flow_is_at_least_the_rollout_and_at_most_everything() -> None:
    x = draw(3, 6, 6)
    found = fxplain.compare(plain_model(), x, ["rollout", "attention_flow"], target=1)
    flow, rollout = (found[name].relevance["x"] for name in ("attention_flow", "rollout"))
    assert bool((flow >= rollout - 1e-12).all())
    assert bool((flow <= 1 + 1e-12).all())
    assert bool((flow[:, 1:] > 0).all())


def test_integrated_gradients_add_up_to_the_change_of_the_score() -> None:
    x = draw(2, 5, 6)
    smooth = still(lambda: Homogeneous(torch.tanh, nn.Identity, glu=False, fused=False))
    result = fxplain.explain(smooth, x, target=1, method="integrated_gradients")
    start = smooth(torch.zeros_like(x))[:, 1]
    torch.testing.assert_close(result.relevance["x"].sum(1), result.score - start, rtol=0.02, atol=0)
    assert result.notes == ()
    # a norm undoes the scaling: the path has its length right beside zero, and the steps miss it
    found = fxplain.explain(plain_model(), x, target=1, method="integrated_gradients")
    assert any("integrated gradients miss" in note for note in found.notes)


# -- layers


def test_layers_count_by_tower() -> None:
    for family, wanted in {
        "t5-sdpa": {"encoder": [0, 1], "decoder.block.{}.layer.0": [0, 1], "EncDec": [0, 1]},
        "clip-sdpa": {"vision": [0, 1], "text": [0, 1]},
        "torchvision_swin": {"features": [0, 1, 2, 3]},
    }.items():
        numbers = [attention.layer for attention in traced(family).attentions]
        assert sorted(numbers) == sorted(n for own in wanted.values() for n in own)


def test_ranges_of_layers() -> None:
    _, inputs, expected = built("bert-sdpa")

    def relevance(layers: Any, method: str = "relevancy") -> Tensor:
        return (
            traced("bert-sdpa").explain(inputs, expected.target, method, layers=layers).relevance["input_ids"]
        )

    torch.testing.assert_close(relevance(slice(None)), relevance(None))
    torch.testing.assert_close(relevance([0, 1]), relevance(None))
    torch.testing.assert_close(relevance(-1), relevance(None, "relevancy_last_layer"))
    torch.testing.assert_close(relevance(slice(1, None)), relevance(-1))
    assert not torch.allclose(relevance(0), relevance(1))
    for method in ("rollout", "raw_attention", "attention_gradcam", "attention_flow", "legrad"):
        assert not torch.allclose(relevance(0, method), relevance(None, method)), method
    noted = traced("bert-sdpa").explain(inputs, expected.target, layers=-1).notes
    assert any("1 of 2 attentions take part" in note for note in noted)


@pytest.mark.parametrize(
    ("layers", "method", "message"),
    [
        (7, "relevancy", "no attention in the layers"),
        ((0, 7), "relevancy", r"(?s)no attention in the layers.*between 0 and 1"),
        (slice(2, None), "relevancy", r"(?s)no attention in the layers.*fxplain inspect shows"),
        ("last", "relevancy", "these are no layers"),
        (0, "random", "no layers to choose from"),
        (0, "relevancy_last_layer", "its own range of layers"),
    ],
)
def test_layers_that_are_none(layers: Any, method: str, message: str) -> None:
    _, inputs, expected = built("bert-sdpa")
    with pytest.raises(MethodError, match=message):
        traced("bert-sdpa").explain(inputs, expected.target, method, layers=layers)


# -- comparisons


def test_a_comparison_is_what_each_method_says_alone() -> None:
    _, inputs, expected = built("t5-sdpa")
    names = ["relevancy", "legrad", "relevancy+libra", "rollout", "random"]
    found = traced("t5-sdpa").compare(inputs, names, expected.target)
    assert list(found) == ["relevancy", "relevancy+libra", "rollout", "random"]
    assert list(found.refused) == ["legrad"]
    with pytest.raises(MethodError, match="is not defined here"):
        found["legrad"]
    for name, result in found.items():
        alone = traced("t5-sdpa").explain(inputs, expected.target, name)
        assert result.method == alone.method == name
        for space in alone.relevance:
            torch.testing.assert_close(result.relevance[space], alone.relevance[space])


def test_nothing_to_compare() -> None:
    model, inputs, expected = built("t5-sdpa")
    with pytest.raises(MethodError, match="is not defined here"):
        traced("t5-sdpa").compare(inputs, ["legrad"], expected.target)
    with pytest.raises(MethodError, match="no method to compare"):
        traced("t5-sdpa").compare(inputs, [], expected.target)
    with pytest.raises(MethodError, match=r"(?s)there is no method.*did you mean 'legrad'"):
        fxplain.compare(model, inputs, ["relevancy", "legra"], expected.target)
    with pytest.raises(MethodError, match="takes no gradient"):
        fxplain.compare(model, inputs, ["rollout+libra"], expected.target)


def test_chance_is_the_same_each_time_and_differs_from_sample_to_sample() -> None:
    model, inputs, expected = fresh("bert-sdpa")
    one, other = (fxplain.explain(model, inputs, expected.target, "random") for _ in range(2))
    values = one.relevance["input_ids"]
    assert torch.equal(values, other.relevance["input_ids"])
    assert not torch.equal(values[0], values[1])
    assert bool(((values >= 0) & (values < 1)).all())


def test_captum_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum", None)
    model, inputs, expected = fresh("bert-sdpa")
    with pytest.raises(MethodError, match=r"pip install 'fxplain\[captum\]'"):
        fxplain.explain(model, inputs, expected.target, "integrated_gradients")


def test_a_flow_that_would_take_hours_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxplain.attribution.flow.MOST_WORK", 100)
    model, inputs, expected = fresh("bert-sdpa")
    with pytest.raises(MethodError, match="takes too long here"):
        fxplain.explain(model, inputs, expected.target, "attention_flow")


def test_methods_say_their_paper_in_one_line() -> None:
    for name, line in fxplain.methods().items():
        assert "\n" not in line
        assert line.endswith(f"({METHODS[name].paper})")
