"""Baselines against slow ones written from the equations, on the models' own ``output_attentions``."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from references import exact, exactly_traced
from references.baselines import attention_flow, cross_rollout, gradcam, legrad, means, rollout
from references.models import lxmert_maps
from references.slow import normalised
from torch import Tensor

import fxplain

SINGLE = ["bert-eager", "vit-eager"]
EXACT = {"rtol": 1e-8, "atol": 1e-10}


def explained(name: str, method: str) -> Any:
    _, inputs, expected = exact(name)
    return exactly_traced(name).explain(inputs, expected.target, method, output=expected.output)


@cache
def reported(name: str) -> tuple[Any, list[Tensor], list[Tensor]]:
    """Output, maps and the gradients to them of the summed target logit."""
    model, inputs, _ = exact(name)
    out = model(**inputs, output_attentions=True, output_hidden_states=True)
    maps = list(out.attentions)
    return out, maps, list(torch.autograd.grad(out.logits[:, 1].sum(), maps, retain_graph=True))


def row(result: Any, name: str, sample: int) -> Tensor:
    """What the library found for all tokens of the one stream, in the stream's order."""
    everything = torch.cat([result.relevance[space.name] for space in result.spaces], 1)[sample]
    return everything[list(exactly_traced(name).attentions[0].queries.tokens)]


def check(found: Tensor, wanted: Tensor, own: int = 0) -> None:
    wanted = wanted.detach().clone()
    wanted[own] = 0  # a token's relevance to itself is set aside
    torch.testing.assert_close(found, wanted.to(found.dtype), **EXACT)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("sample", [0, 1])
def test_baselines_of_one_stream(name: str, sample: int) -> None:
    _, every, gradients = reported(name)
    maps, gradient = [layer[sample] for layer in every], gradients[-1][sample]
    wanted = {
        "rollout": rollout(maps)[0],
        "rollout_unnormalised": rollout(maps, normalise=False)[0],
        "raw_attention": means(maps)[-1][0],
        "attention_flow": attention_flow(maps, row=0),
        # this sum of increments is the same as the product above: self attention alone
        "relevancy_no_gradient": rollout(maps, normalise=False)[0],
        "attention_gradcam": gradcam(maps[-1], gradient)[0],
        "attention_gradcam_row": gradcam(maps[-1], gradient, row=0)[0],
    }
    for method, values in wanted.items():
        check(row(explained(name, method), name, sample), values)


@pytest.mark.parametrize("name", SINGLE)
def test_last_layer_alone_is_one_increment(name: str) -> None:
    _, maps, gradients = reported(name)
    for sample in (0, 1):
        wanted = (maps[-1] * gradients[-1])[sample].clamp(min=0).mean(0)[0]
        check(row(explained(name, "relevancy_last_layer"), name, sample), wanted)


@pytest.mark.parametrize("name", SINGLE)
def test_without_aggregation_increments_are_multiplied(name: str) -> None:
    _, maps, gradients = reported(name)
    for sample in (0, 1):
        row_of_last = torch.eye(maps[0].shape[-1], dtype=maps[0].dtype)[0]
        for layer, gradient in zip(reversed(maps), reversed(gradients), strict=True):
            row_of_last = row_of_last @ (layer * gradient)[sample].clamp(min=0).mean(0)
        check(row(explained(name, "relevancy_no_aggregation"), name, sample), row_of_last)


@pytest.mark.parametrize("name", ["detr-eager", "bart-eager"])
@pytest.mark.parametrize("left_out", ["no_gradient", "no_normalisation", "no_self_in_eq10"])
def test_ablations_of_eq_10(name: str, left_out: str) -> None:
    """Eqs. 6 to 10 for an encoder-decoder, written out without one of their terms."""
    model, inputs, expected = exact(name)
    out = model(**inputs, output_attentions=True)
    position, label = expected.target
    every = [*out.encoder_attentions, *out.decoder_attentions, *out.cross_attentions]
    gradients = torch.autograd.grad(out.logits[:, position, label].sum(), every)
    result = explained(name, f"relevancy_{left_out}")
    keys = list(exactly_traced(name).attentions[-1].keys.tokens)
    for sample in (0, 1):
        maps = [(a * g)[sample].clamp(min=0).mean(0) for a, g in zip(every, gradients, strict=True)]
        maps = means([a[sample] for a in every]) if left_out == "no_gradient" else maps
        among_keys = torch.eye(maps[0].shape[-1], dtype=maps[0].dtype)
        for mean in maps[: len(out.encoder_attentions)]:
            among_keys = among_keys + mean @ among_keys
        own, across = torch.eye(maps[-1].shape[0], dtype=maps[0].dtype), torch.zeros_like(maps[-1])
        decoder = maps[len(out.encoder_attentions) :]
        for mean, cross in zip(decoder[: len(decoder) // 2], decoder[len(decoder) // 2 :], strict=True):
            own, across = own + mean @ own, across + mean @ across
            left, right = (
                (own, among_keys) if left_out == "no_normalisation" else map(normalised, (own, among_keys))
            )
            across = across + (cross if left_out == "no_self_in_eq10" else left.T @ cross @ right)
        found = torch.cat([result.relevance[s.name] for s in result.spaces], 1)[sample, keys]
        check_plain(found, across[position].detach())


@pytest.mark.parametrize("name", SINGLE)
def test_legrad_gives_every_layer_to_the_head(name: str) -> None:
    model, _, _ = exact(name)
    out, maps, _ = reported(name)
    head = {
        "bert-eager": lambda tokens: model.classifier(model.bert.pooler(tokens)),
        "vit-eager": lambda tokens: model.classifier(model.vit.layernorm(tokens)[:, 0]),
    }[name]
    layers = list(out.hidden_states[1:])
    scores = [head(tokens)[:, 1].sum() for tokens in layers]
    for sample in (0, 1):
        check(row(explained(name, "legrad"), name, sample), legrad(scores, maps, sample))


@pytest.mark.parametrize("name", ["detr-eager", "bart-eager", "t5-eager"])
def test_rollout_and_raw_attention_across_streams(name: str) -> None:
    model, inputs, _ = exact(name)
    with torch.no_grad():
        out = model(**inputs, output_attentions=True)
    rolled, raw = explained(name, "rollout"), explained(name, "raw_attention")
    last = exactly_traced(name).attentions[-1]
    assert last.kind == "encoder_decoder"
    for sample, pairs in enumerate(rolled.readout):
        encoder, decoder, cross = (
            [layer[sample] for layer in maps]
            for maps in (out.encoder_attentions, out.decoder_attentions, out.cross_attentions)
        )
        ((token, _),) = pairs
        read = last.queries.tokens.index(token)
        for result, wanted in (
            (rolled, cross_rollout(decoder, encoder, cross[-1])),
            (raw, means(cross)[-1]),
        ):
            found = torch.cat([result.relevance[s.name] for s in result.spaces], 1)[sample]
            check_plain(found[list(last.keys.tokens)], wanted[read])


def test_rollout_and_raw_attention_where_two_streams_read_each_other() -> None:
    """Eq. 12 on LXMERT: two layers of each stream, two of both; text is read, in row 0."""
    model, inputs, _ = exact("lxmert-eager")
    with torch.no_grad():
        out = model(**inputs, output_attentions=True)
        _, maps = lxmert_maps(model, inputs)
    told = [*out.language_attentions, *out.vision_attentions]
    for ours, theirs in zip(
        [*maps[:4], maps[4], maps[8]], [*told, *out.cross_encoder_attentions], strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    rolled, raw = explained("lxmert-eager", "rollout"), explained("lxmert-eager", "raw_attention")
    assert all(pairs == ((0, 1.0),) for pairs in rolled.readout)
    for sample in (0, 1):
        text_1, text_2, image_1, image_2, _, _, text_3, image_3, last, _, text_4, _ = (
            m[sample] for m in maps
        )
        wanted = cross_rollout([text_1, text_2, text_3], [image_1, image_2, image_3], last)
        check_plain(rolled.relevance["visual_feats"][sample], wanted[0])
        check(rolled.relevance["input_ids"][sample], rollout([text_1, text_2, text_3, text_4])[0])
        check_plain(raw.relevance["visual_feats"][sample], means([last])[0][0])
        check(raw.relevance["input_ids"][sample], means([text_4])[0][0])


def check_plain(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted.to(found.dtype), **EXACT)  # type: ignore[arg-type]


def test_gradcam_of_the_last_cross_attention() -> None:
    model, inputs, expected = exact("detr-eager")
    out = model(**inputs, output_attentions=True)
    query, label = expected.target
    last = out.cross_attentions[-1]
    (gradient,) = torch.autograd.grad(out.logits[:, query, label].sum(), last)
    result, keys = (
        explained("detr-eager", "attention_gradcam"),
        exactly_traced("detr-eager").attentions[-1].keys,
    )
    for sample in (0, 1):
        wanted = gradcam(last[sample].detach(), gradient[sample])[query]
        found = torch.cat([result.relevance[s.name] for s in result.spaces], 1)[sample, list(keys.tokens)]
        check_plain(found, wanted)


def test_gradient_times_input_at_the_embeddings() -> None:
    model, inputs, _ = exact("bert-eager")
    seen: list[Tensor] = []
    handle = model.bert.embeddings.word_embeddings.register_forward_hook(lambda _, a, out: seen.append(out))
    score = model(**inputs).logits[:, 1].sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(score, seen[0])
    found = explained("bert-eager", "gradient_x_input").relevance["input_ids"]
    check_plain(found, (seen[0] * gradient).sum(-1).detach())


def test_gradient_times_input_at_the_patches_and_the_class_token() -> None:
    model, inputs, _ = exact("vit-eager")
    seen: list[Tensor] = []
    embeddings: Any = model.vit.embeddings
    handle = embeddings.patch_embeddings.register_forward_hook(lambda _, a, out: seen.append(out))
    score = model(**inputs).logits[0, 1]
    handle.remove()
    patches, token = torch.autograd.grad(score, [seen[0], embeddings.cls_token])
    result = explained("vit-eager", "gradient_x_input")
    check_plain(result.relevance["pixel_values"][0], (seen[0] * patches)[0].sum(-1).detach())
    own = result.relevance["vit.embeddings.cls_token"][0]
    check_plain(own, (embeddings.cls_token * token)[0].sum(-1).detach())


@pytest.mark.parametrize("batch_first", [True, False])
def test_gradient_times_input_of_a_tensor_that_is_given(batch_first: bool) -> None:
    """Its rows go into queries, keys and values, and on beside them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first).eval().double()
        x = torch.randn(2, 5, 8, dtype=torch.float64)
    given = x if batch_first else x.transpose(0, 1).contiguous()
    leaf = given.clone().requires_grad_()
    out = layer(leaf) if batch_first else layer(leaf).transpose(0, 1)
    (gradient,) = torch.autograd.grad(out[:, 0, 3].sum(), leaf)
    wanted = (gradient * given).sum(-1)
    found = fxplain.explain(layer, given, target=(0, 3), method="gradient_x_input")
    check_plain(found.relevance["src"], wanted if batch_first else wanted.T)
