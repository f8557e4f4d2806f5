"""Relevancy by hand for eight models: which maps there are, in which order the rules run, what is read.

The maps are the model's own (``output_attentions``, eager). The order is that of the authors' code for each
model; where that code is a notebook for one layer (CLIP), all layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from zoo.spec import Inputs, run_with_maps

from references.slow import (
    Reference,
    State,
    add,
    cross_increments,
    means,
    read,
    self_attention,
    stacked,
    start,
)


def one_stream(score: Tensor, maps: list[Tensor], positions: list[int]) -> Reference:
    """Equation 6 in every layer."""
    states = []
    for sample in range(len(score)):
        state = start({"t": maps[0].shape[-1]}, maps[0].dtype)
        for mean in means(score, maps, sample):
            state = self_attention(state, "t", mean)
        states.append(state)
    block = stacked(states, ("t", "t"))
    return Reference(((0, block),), ((0, read(block, positions)),), score.detach())


def bert(model: nn.Module, inputs: Inputs) -> Reference:
    out = model(**inputs, output_attentions=True)
    return one_stream(out.logits[:, 1], list(out.attentions), [0, 0])


def vit(model: nn.Module, inputs: Inputs) -> Reference:
    out = model(**inputs, output_attentions=True)
    return one_stream(out.logits[:, 1], list(out.attentions), [0, 0])


def visual_bert(model: nn.Module, inputs: Inputs) -> Reference:
    out = model(**inputs, output_attentions=True)
    positions = (inputs["attention_mask"].sum(1) - 2).tolist()
    return one_stream(out.logits[:, 1], list(out.attentions), positions)


def clip(model: nn.Module, inputs: Inputs) -> Reference:
    """Each tower by itself; the score is the similarity of the image and its own text."""
    out, maps = run_with_maps(model, inputs)
    score = out.logits_per_image.diagonal()
    first_of_text: Any = model.config.vision_config.num_hidden_layers
    image = one_stream(score, maps[:first_of_text], [0, 0])
    last = (inputs["input_ids"] == model.config.text_config.eos_token_id).int().argmax(1).tolist()
    text = one_stream(score, maps[first_of_text:], last)
    return Reference(
        (*image.blocks, (first_of_text, text.blocks[0][1])),
        (*image.rows, (first_of_text, text.rows[0][1])),
        score.detach(),
    )


def lxmert_maps(model: nn.Module, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
    """The model reports no map of image to text nor of the last self-attentions; dropouts see all of them."""
    maps: list[Tensor] = []

    def seen(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        maps.append(out)

    handles = [
        module.dropout.register_forward_hook(seen)
        for module in model.modules()
        if type(module).__name__ == "LxmertAttention"
    ]
    try:
        score = model(**inputs).question_answering_score[:, 1]
    finally:
        for handle in handles:
            handle.remove()
    return score, maps


def lxmert(model: nn.Module, inputs: Inputs) -> Reference:
    """Two layers of language, two of vision, two of both: crosswise from the old state, then each alone."""
    score, maps = lxmert_maps(model, inputs)
    states: list[State] = []
    for sample in range(len(score)):
        own = iter(means(score, maps, sample))
        state = start({"t": maps[0].shape[-1], "i": maps[2].shape[-1]}, maps[0].dtype)
        for stream in "ttii":
            state = self_attention(state, stream, next(own))
        for _ in range(2):
            to_text = cross_increments(state, "t", "i", next(own))
            to_image = cross_increments(state, "i", "t", next(own))
            state = add(state, to_text, to_image)
            state = self_attention(state, "t", next(own))
            state = self_attention(state, "i", next(own))
        states.append(state)
    within, across = stacked(states, ("t", "t")), stacked(states, ("t", "i"))
    back, image = stacked(states, ("i", "t")), stacked(states, ("i", "i"))
    return Reference(
        ((0, within), (4, across), (5, back), (2, image)),
        ((0, read(within, [0, 0])), (4, read(across, [0, 0]))),
        score.detach(),
    )


def encoder_decoder(score: Tensor, encoder: list[Tensor], decoder: list[Tensor], position: int) -> Reference:
    """Encoder layers by equation 6; per decoder layer self (6, 7), then cross (10); nothing flows back."""
    states: list[State] = []
    for sample in range(len(score)):
        own = iter(means(score, [*encoder, *decoder], sample))
        state = start({"e": encoder[0].shape[-1], "d": decoder[0].shape[-1]}, score.dtype)
        for _ in encoder:
            state = self_attention(state, "e", next(own))
        for _ in range(len(decoder) // 2):
            state = self_attention(state, "d", next(own))
            increments = cross_increments(state, "d", "e", next(own))
            state = add(state, {("d", "e"): increments["d", "e"]})
        states.append(state)
    own_block, cross_block = stacked(states, ("d", "d")), stacked(states, ("d", "e"))
    layers, rows = len(encoder), [position] * len(score)
    return Reference(
        ((0, stacked(states, ("e", "e"))), (layers, own_block), (layers + 1, cross_block)),
        ((layers, read(own_block, rows)), (layers + 1, read(cross_block, rows))),
        score.detach(),
    )


def interleaved(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> list[Tensor]:
    return [tensor for pair in zip(first, second, strict=True) for tensor in pair]


def seq2seq(model: nn.Module, inputs: Inputs) -> Reference:
    """BART and T5; explained is token 11 at position 3 of the decoder."""
    out = model(**inputs, output_attentions=True)
    decoder = interleaved(out.decoder_attentions, out.cross_attentions)
    return encoder_decoder(out.logits[:, 3, 11], list(out.encoder_attentions), decoder, 3)


def detr(model: nn.Module, inputs: Inputs) -> Reference:
    """Explained is class 2 of query 3."""
    out = model(**inputs, output_attentions=True)
    decoder = interleaved(out.decoder_attentions, out.cross_attentions)
    return encoder_decoder(out.logits[:, 3, 2], list(out.encoder_attentions), decoder, 3)


REFERENCES: dict[str, Callable[[nn.Module, Inputs], Reference]] = {
    "bert-eager": bert,
    "vit-eager": vit,
    "visual_bert-eager": visual_bert,
    "lxmert-eager": lxmert,
    "detr-eager": detr,
    "clip-eager": clip,
    "bart-eager": seq2seq,
    "t5-eager": seq2seq,
}


def doubled(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """Model and inputs in float64."""
    return model.double(), {
        name: value.double() if isinstance(value, Tensor) and value.dtype == torch.float32 else value
        for name, value in inputs.items()
    }
