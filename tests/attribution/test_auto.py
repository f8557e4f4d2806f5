"""``method="auto"``: net relevancy where a self-attention is causal, the papers' relevancy elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxplain
from fxplain.errors import MethodError

X = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(1))


class Attending(nn.Module):
    """One self-attention of two heads, masked as is said, and a head on the last token."""

    def __init__(self, mask: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mask = mask
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        size = x.shape[1]
        seen = torch.ones(size, size, dtype=torch.bool).tril()
        if self.mask == "flag":
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        elif self.mask in ("none", "some hidden"):
            hidden = None if self.mask == "none" else (x[:, None, None, :, 0] > -9)
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=hidden)
        elif self.mask == "with padding":
            seen = seen & (x[:, None, None, :, 0] > -9)
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        elif self.mask == "window":
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen.triu(-2))
        elif self.mask == "prefix":
            seen[:, :3] = True
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        else:
            least = torch.finfo(x.dtype).min if self.mask == "added" else 0.0
            scores = q @ k.mT / 2 + torch.where(seen, 0.0, least)
            mixed = scores.softmax(-1) @ v
        return (x + self.out(mixed.transpose(1, 2).flatten(2)))[:, -1]


@pytest.mark.parametrize("mask", ["flag", "with padding", "window", "added"])
def test_causal_attention_is_explained_by_net_relevancy(mask: str) -> None:
    result = fxplain.explain(Attending(mask).eval(), X, target=1, method="auto")
    assert result.method == "net_relevancy"
    (note,) = [note for note in result.notes if "'auto'" in note]
    assert "is causal" in note
    assert "method='relevancy'" in note, "one word away"
    by_name = fxplain.explain(Attending(mask).eval(), X, target=1, method="net_relevancy")
    torch.testing.assert_close(result.relevance["x"], by_name.relevance["x"])


@pytest.mark.parametrize("mask", ["none", "some hidden", "prefix", "written out"])
def test_other_attention_is_explained_by_the_papers_relevancy(mask: str) -> None:
    result = fxplain.explain(Attending(mask).eval(), X, target=1, method="auto")
    assert result.method == "relevancy"
    assert not any("'auto'" in note for note in result.notes)


def test_padding_on_the_left_hides_nothing_of_that() -> None:
    """Its rows see nothing, or all keys alike: they do not speak against a causal mask."""
    x = X.clone()
    x[1, :3, 0] = -10
    assert (
        fxplain.explain(Attending("with padding").eval(), x, target=1, method="auto").method
        == "net_relevancy"
    )


def test_a_sample_is_explained_as_it_would_be_alone() -> None:
    traced = fxplain.trace(Attending("flag").eval(), X)
    both = traced.explain(X, target=1, method="auto")
    for sample in range(2):
        alone = traced.explain(X[sample : sample + 1], target=1, method="auto")
        assert alone.method == both.method
        torch.testing.assert_close(alone.relevance["x"][0], both.relevance["x"][sample])


@pytest.mark.parametrize("mask", ["flag", "with padding", "window", "added", "none", "some hidden", "prefix"])
def test_net_relevancy_centres_where_attention_is_causal(mask: str) -> None:
    kinds = ["net_relevancy", "net_relevancy_centred", "net_relevancy_uncentred"]
    found = fxplain.compare(Attending(mask).eval(), X, kinds, target=1)
    own, always, never = (found[kind].relevance["x"] for kind in kinds)
    causal = mask not in ("none", "some hidden", "prefix")
    torch.testing.assert_close(own, always if causal else never, rtol=1e-6, atol=0)
    assert not torch.allclose(always, never, rtol=1e-3)


def test_one_token_is_no_evidence() -> None:
    one = fxplain.explain(Attending("flag").eval(), X[:, :1], target=1, method="auto")
    assert one.method == "relevancy"


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("name", "expected"), [("GPT2", "net_relevancy"), ("Bert", "relevancy")])
def test_models_of_transformers(name: str, attention: str, expected: str) -> None:
    import transformers

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 30}}.get(
        name,
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
         "vocab_size": 30},
    )  # fmt: skip
    config = getattr(transformers, f"{name}Config")(**sizes, attn_implementation=attention)
    kind = "GPT2LMHeadModel" if name == "GPT2" else "BertForSequenceClassification"
    model = getattr(transformers, kind)(config).eval()
    ids = torch.arange(8)[None] + 3
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    traced = fxplain.trace(model, inputs)
    result = traced.explain(inputs, method="auto")
    assert result.method == expected
    targets = [0, 1] if name == "Bert" else [(7, 1), (7, 2)]
    for several in traced.explain_targets(inputs, targets, method="auto"):
        assert several.method == expected
    walk = traced.walk(inputs, 1 if name == "Bert" else (7, 1), method="auto")
    assert walk.result.method == expected
    assert walk.result.notes == result.notes


def test_a_comparison_names_what_was_taken() -> None:
    found = fxplain.compare(Attending("flag").eval(), X, ["auto", "relevancy", "rollout"], target=1)
    assert list(found) == ["net_relevancy", "relevancy", "rollout"]
    assert any("'auto'" in note for note in found["net_relevancy"].notes)
    both = fxplain.compare(Attending("none").eval(), X, ["auto", "relevancy"], target=1)
    assert list(both) == ["relevancy"]


def test_auto_is_no_method_of_its_own() -> None:
    assert "auto" not in fxplain.methods()
    with pytest.raises(MethodError, match=r"auto\+libra"):
        fxplain.explain(Attending("none").eval(), X, target=1, method="auto+libra")


def test_who_names_no_method_gets_the_papers_for_tensors_and_auto_from_an_explainer() -> None:
    """Tensors go through the equations as they are asked for; a person with a text gets what points right."""
    model = Attending("flag").eval()
    assert fxplain.explain(model, X, target=1).method == "relevancy"
    explainer = fxplain.Explainer(model, lambda given: given)
    assert explainer(X, target=1).result.method == "net_relevancy"
    assert explainer(X, target=1, method="relevancy").result.method == "relevancy"
