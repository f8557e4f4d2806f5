"""AttnLRP, CP-LRP and the epsilon rule against other authors' packages, on a BERT, a Llama and a ViT.

    pip install --no-deps lxt autolrp
    pytest -m packages tests/attribution/test_lrp_packages.py

``lxt`` is the AttnLRP authors' own: it patches activations, norms and attention functions so that gradient
times input is the relevance. ``autolrp`` works on autograd's nodes. Both are held against in float64.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from references import doubled
from torch import Tensor, nn
from transformers.activations import GELUActivation
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert import modeling_bert
from transformers.models.llama import modeling_llama
from transformers.models.vit import modeling_vit
from zoo import fresh
from zoo.spec import Inputs

import fxplain
from fxplain.attribution.lrp.methods import ToInputs
from fxplain.attribution.lrp.rule_sets import epsilon_rules
from fxplain.attribution.table import METHODS

pytestmark = pytest.mark.packages
FAMILIES = {"bert-sdpa": modeling_bert, "llama-sdpa": modeling_llama, "vit-sdpa": modeling_vit}
TARGETS = {"bert-sdpa": 1, "llama-sdpa": (6, 11), "vit-sdpa": 1}


def case(name: str) -> tuple[nn.Module, Inputs]:
    """One sample without padding."""
    model, inputs = doubled(*fresh(name)[:2])
    kept = {key: value[:1] for key, value in inputs.items() if key in ("input_ids", "pixel_values")}
    return model, kept


def data_of(model: nn.Module, inputs: Inputs) -> tuple[str, Tensor]:
    """What relevance is asked for: embeddings of the ids, or pixels."""
    if "pixel_values" in inputs:
        return "pixel_values", inputs["pixel_values"]
    return "inputs_embeds", model.get_input_embeddings()(inputs["input_ids"]).detach()


def ours(name: str, method: str) -> Tensor:
    """Relevance per token, or per pixel."""
    model, inputs = case(name)
    result = fxplain.explain(model, inputs, target=TARGETS[name], method=method)
    return result.inputs["pixel_values"][0] if "pixel_values" in inputs else result.relevance["input_ids"][0]


def summed(name: str, relevance: Tensor) -> Tensor:
    return relevance[0] if name.startswith("vit") else relevance[0].sum(-1)


def score_of(name: str, logits: Tensor) -> Tensor:
    place = TARGETS[name]
    return logits[0][place]


# lxt: rules in place of gradients


@pytest.fixture
def patches() -> types.ModuleType:
    """Its functions alone: the package itself imports copies of models that transformers has left behind."""
    spec = importlib.util.find_spec("lxt")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("lxt is not installed")
    if "lxt.efficient" not in sys.modules:
        shell = types.ModuleType("lxt.efficient")
        shell.__path__ = [f"{next(iter(spec.submodule_search_locations))}/efficient"]
        sys.modules["lxt.efficient"] = shell
    return importlib.import_module("lxt.efficient.patches")


@contextmanager
def patched(patches: Any, attention: Callable[..., Any], gated: Callable[..., Any]) -> Iterator[None]:
    """The rules of lxt, put on the classes that transformers and torch have today."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", attention(ALL_ATTENTION_FUNCTIONS["sdpa"])
        )
        patch.setattr(nn.LayerNorm, "forward", patches.layer_norm_forward)
        patch.setattr(modeling_llama.LlamaRMSNorm, "forward", patches.rms_norm_forward)
        patch.setattr(modeling_llama.LlamaMLP, "forward", gated)
        for activation in (nn.Tanh, GELUActivation):
            patch.setattr(activation, "original_forward", activation.forward, raising=False)
            patch.setattr(activation, "forward", patches.non_linear_forward)
        yield


def by_lxt(name: str) -> Tensor:
    model, inputs = case(name)
    key, data = data_of(model, inputs)
    data.requires_grad_()
    score_of(name, model(**{key: data}).logits).backward()
    assert data.grad is not None
    return summed(name, (data.grad * data).detach())


@pytest.mark.parametrize("name", list(FAMILIES))
def test_attnlrp_is_that_of_lxt(name: str, patches: Any) -> None:
    with patched(patches, patches.wrap_attention_forward, patches.gated_mlp_forward):
        expected = by_lxt(name)
    torch.testing.assert_close(ours(name, "attnlrp"), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_cp_lrp_is_that_of_lxt(name: str, patches: Any) -> None:
    with patched(patches, patches.cp_wrap_attention_forward, patches.cp_gated_mlp_forward):
        expected = by_lxt(name)
    torch.testing.assert_close(ours(name, "cp_lrp"), expected, rtol=1e-4, atol=1e-6)


# autolrp: the epsilon rule on autograd's nodes


def signed(a: Tensor, b: Tensor, relevance: Tensor, eps: float, *_: Any, attribute: str = "both") -> Any:
    """Additions by the epsilon rule."""
    if attribute != "both":
        return (relevance, None) if attribute == "lhs" else (None, relevance)
    total = a + b
    shares = relevance / (total + torch.where(total < 0, -eps, eps))
    return a * shares, b * shares


def halved(a: Tensor, b: Tensor, relevance: Tensor, eps: float, *_: Any, attribute: str = "both") -> Any:
    """Products of two activations by halves."""
    if attribute != "both":
        return (relevance, None) if attribute == "lhs" else (None, relevance)
    return relevance / 2, relevance / 2


@pytest.mark.parametrize("name", list(FAMILIES))
def test_epsilon_is_that_of_autolrp_but_for_three_rules(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They differ in additions and gates (shared there in proportion to absolute values, here by epsilon and
    by halves) and in biases (left out there, here they take their share): so no biases here, and our two
    rules put into theirs."""
    autolrp = pytest.importorskip("autolrp")
    model, inputs = case(name)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if path.endswith("bias"):
                parameter.zero_()
    key, data = data_of(model, inputs)
    given = autolrp.tensor(data)
    config = autolrp.LRPConfig(
        rule={**autolrp.BASE, "AddBackward": signed, "SubBackward": signed, "MulBackward": halved}, eps=1e-11
    )
    score = score_of(name, model(**{key: given}).logits)
    score.lrp(config=config)  # type: ignore[attr-defined]
    method = replace(METHODS["lrp_epsilon"], explain=ToInputs(epsilon_rules(1e-11)))
    monkeypatch.setitem(METHODS, "lrp_epsilon", method)
    result = fxplain.explain(model, inputs, target=TARGETS[name], method="lrp_epsilon")
    vision = name.startswith("vit")
    found = result.inputs["pixel_values"][0] if vision else result.relevance["input_ids"][0]
    expected = summed(name, given.relevance)
    torch.testing.assert_close(found, expected * score.detach(), rtol=1e-4, atol=1e-6)
