"""The transformers and attentions of torch.nn, in every option that changes the graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.spec import Builder, Case, Expected, Inputs, Site, floats, make, rows, selves

WIDTH, HEADS, LENGTH, MEMORY = 32, 4, 5, 7
LAYER: dict[str, Any] = {"d_model": WIDTH, "nhead": HEADS, "dim_feedforward": 48, "dropout": 0.0}


class Headed(nn.Module):
    """A body, then a linear head on the first token: [batch, classes]. ``first`` cuts out that token."""

    def __init__(self, body: nn.Module, batch_first: bool = True) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(WIDTH, 3)
        self.axis = 1 if batch_first else 0

    def score(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.head(hidden.select(self.axis, 0))
        return logits


class Encode(Headed):
    def forward(self, src: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.score(self.body(src, src_key_padding_mask=padding))


class Decode(Headed):
    def forward(self, tgt: Tensor, memory: Tensor, padding: Tensor | None = None) -> Tensor:
        size = tgt.shape[self.axis]
        causal = nn.Transformer.generate_square_subsequent_mask(size)
        return self.score(
            self.body(tgt, memory, tgt_mask=causal, tgt_is_causal=True, memory_key_padding_mask=padding)
        )


class Translate(Headed):
    def forward(self, src: Tensor, tgt: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.score(self.body(src, tgt, src_key_padding_mask=padding, memory_key_padding_mask=padding))


def padding(size: int) -> Tensor:
    result = torch.zeros(2, size, dtype=torch.bool)
    result[1, -2:] = True
    return result


def sequence(size: int, batch_first: bool, seed: int) -> Tensor:
    return floats(2, size, WIDTH, seed=seed) if batch_first else floats(size, 2, WIDTH, seed=seed)


def decoder_sites(goal: str, source: str, modules: str) -> tuple[Site, ...]:
    sites: list[Site] = []
    for layer in range(2):
        where = modules.format(layer)
        sites += selves(goal, HEADS, LENGTH, f"{where}.self_attn", 1)
        cross = f"{where}.multihead_attn"
        sites.append(Site("encoder_decoder", (goal,), (source,), HEADS, LENGTH, MEMORY, cross))
    return tuple(sites)


def nn_encoder(batch_first: bool, norm_first: bool) -> Case:
    def build() -> nn.Module:
        layer = nn.TransformerEncoderLayer(**LAYER, batch_first=batch_first, norm_first=norm_first)
        return Encode(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), batch_first)

    inputs = {"src": sequence(MEMORY, batch_first, 2), "padding": padding(MEMORY)}
    expected = Expected(
        sites=selves("src", HEADS, MEMORY, "body.layers.{}", 2),
        readout=rows(("src", (0,))),
        padded={"src": ((), (5, 6))},
        batch_axis={} if batch_first else {"src": 1},
    )
    return make(build), inputs, expected


def nn_decoder(batch_first: bool) -> Case:
    def build() -> nn.Module:
        layer = nn.TransformerDecoderLayer(**LAYER, batch_first=batch_first)
        return Decode(nn.TransformerDecoder(layer, 2), batch_first)

    inputs = {
        "tgt": sequence(LENGTH, batch_first, 3),
        "memory": sequence(MEMORY, batch_first, 2),
        "padding": padding(MEMORY),
    }
    expected = Expected(
        sites=decoder_sites("tgt", "memory", "body.layers.{}"),
        readout=rows(("tgt", (0,))),
        padded={"memory": ((), (5, 6)), "tgt": ((1, 2, 3, 4), (1, 2, 3, 4))},  # row 0 sees itself alone
        batch_axis={} if batch_first else {"tgt": 1, "memory": 1},
    )
    return make(build), inputs, expected


def nn_transformer(batch_first: bool) -> Case:
    def build() -> nn.Module:
        return Translate(
            nn.Transformer(**LAYER, num_encoder_layers=2, num_decoder_layers=2, batch_first=batch_first),
            batch_first,
        )

    inputs = {
        "src": sequence(MEMORY, batch_first, 2),
        "tgt": sequence(LENGTH, batch_first, 3),
        "padding": padding(MEMORY),
    }
    sites = selves("src", HEADS, MEMORY, "encoder.layers.{}", 2)
    expected = Expected(
        sites=sites + decoder_sites("tgt", "src", "decoder.layers.{}"),
        readout=rows(("tgt", (0,))),
        padded={"src": ((), (5, 6))},
        batch_axis={} if batch_first else {"tgt": 1, "src": 1},
    )
    return make(build), inputs, expected


class SelfAttend(Headed):
    """nn.MultiheadAttention over one tensor; ``body`` is the attention."""

    def __init__(self, body: nn.Module, batch_first: bool, options: dict[str, Any]) -> None:
        super().__init__(body, batch_first)
        self.options = options

    def forward(self, x: Tensor, padding: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        y, _ = self.body(x, x, x, key_padding_mask=padding, attn_mask=mask, **self.options)
        return self.score(x + y)


class CrossAttend(Headed):
    """Queries from x, keys and values from two other tensors of one length."""

    def __init__(self, body: nn.Module, batch_first: bool, options: dict[str, Any]) -> None:
        super().__init__(body, batch_first)
        self.options = options

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, padding: Tensor | None = None) -> Tensor:
        y, _ = self.body(x, keys, values, key_padding_mask=padding, **self.options)
        return self.score(x + y)


def mha_map(model: nn.Module, inputs: Inputs) -> list[tuple[int, Tensor]]:
    """The map that nn.MultiheadAttention returns, per head."""
    body = model.get_submodule("body")
    with torch.no_grad():
        _, weights = body(
            *([inputs["x"]] * 3),
            key_padding_mask=inputs.get("padding"),
            attn_mask=inputs.get("mask"),
            need_weights=True,
            average_attn_weights=False,
        )
    return [(0, weights[..., :LENGTH])]


def mha_self(
    batch_first: bool = True,
    needs: tuple[bool, bool] = (False, True),
    made: dict[str, Any] | None = None,
    mask: Callable[[], Tensor] | None = None,
    padded: bool = True,
    batched: bool = True,
) -> Case:
    """``needs``: need_weights and average_attn_weights; ``made``: options of the constructor."""
    options = {"need_weights": needs[0], "average_attn_weights": needs[1]}

    def build() -> nn.Module:
        body = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first, **(made or {}))
        return SelfAttend(body, batch_first and batched, options)

    inputs: Inputs = {"x": sequence(LENGTH, batch_first, 2) if batched else floats(LENGTH, WIDTH)}
    if padded:
        inputs["padding"] = padding(LENGTH)
    if mask is not None:
        inputs["mask"] = mask()
    expected = Expected(
        # extra keys (bias_k, zero_attn) are no tokens of the input: the map over tokens stays L x L
        sites=(Site("self", ("x",), ("x",), HEADS, LENGTH, LENGTH, "body"),),
        readout=rows(("x", (0,)), batch=2 if batched else 1),
        padded={"x": ((), (3, 4))} if padded else {},
        batch_axis={"mask": -1} | ({} if batch_first else {"x": 1}),
        maps=mha_map if batched else None,
        marks=("extra keys",) if made else (),
        separable=mask is not per_head_float,  # a mask [batch * head, ...] cannot be cut by sample
    )
    return make(build), inputs, expected


def mha_cross(batch_first: bool = True, dims: dict[str, int] | None = None) -> Case:
    def build() -> nn.Module:
        body = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first, **(dims or {}))
        return CrossAttend(body, batch_first, {"need_weights": False})

    sizes = dims or {"kdim": WIDTH, "vdim": WIDTH}
    shape = (2, MEMORY) if batch_first else (MEMORY, 2)
    inputs = {
        "x": sequence(LENGTH, batch_first, 2),
        "keys": floats(*shape, sizes["kdim"], seed=3),
        "values": floats(*shape, sizes["vdim"], seed=4),
        "padding": padding(MEMORY),
    }
    axes = {} if batch_first else {"x": 1, "keys": 1, "values": 1}
    expected = Expected(
        sites=(Site("encoder_decoder", ("x",), ("keys",), HEADS, LENGTH, MEMORY, "body"),),
        readout=rows(("x", (0,))),
        padded={"keys": ((), (5, 6))},
        batch_axis=axes,
        marks=("values apart",),
    )
    return make(build), inputs, expected


def causal_bool() -> Tensor:
    return torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(2)


def causal_float() -> Tensor:
    return torch.zeros(LENGTH, LENGTH).masked_fill(causal_bool(), float("-inf"))


def per_head_float() -> Tensor:
    return floats(2 * HEADS, LENGTH, LENGTH, seed=6)


TORCH: dict[str, Builder] = {
    "nn_encoder": partial(nn_encoder, True, False),
    "nn_encoder-norm_first": partial(nn_encoder, True, True),
    "nn_encoder-seq_first": partial(nn_encoder, False, False),
    "nn_decoder": partial(nn_decoder, True),
    "nn_decoder-seq_first": partial(nn_decoder, False),
    "nn_transformer": partial(nn_transformer, True),
    "nn_transformer-seq_first": partial(nn_transformer, False),
    "mha-no_weights": mha_self,
    "mha-weights": partial(mha_self, needs=(True, True)),
    "mha-weights_per_head": partial(mha_self, needs=(True, False)),
    "mha-seq_first": partial(mha_self, batch_first=False),
    "mha-seq_first-weights": partial(mha_self, batch_first=False, needs=(True, True)),
    "mha-bias_kv": partial(mha_self, made={"add_bias_kv": True}),
    "mha-bias_kv-weights": partial(mha_self, made={"add_bias_kv": True}, needs=(True, True)),
    "mha-zero_attn": partial(mha_self, made={"add_zero_attn": True}),
    "mha-zero_attn-weights": partial(mha_self, made={"add_zero_attn": True}, needs=(True, True)),
    "mha-bool_mask": partial(mha_self, mask=causal_bool, padded=False),
    "mha-bool_mask-weights": partial(mha_self, mask=causal_bool, padded=False, needs=(True, False)),
    "mha-float_mask": partial(mha_self, mask=causal_float, padded=False),
    "mha-float_mask-weights": partial(mha_self, mask=causal_float, padded=False, needs=(True, True)),
    "mha-mask_per_head": partial(mha_self, mask=per_head_float, padded=False, needs=(True, True)),
    "mha-unbatched": partial(mha_self, padded=False, batched=False),
    "mha-unbatched-weights": partial(mha_self, padded=False, batched=False, needs=(True, False)),
    "mha-cross": mha_cross,
    "mha-cross-seq_first": partial(mha_cross, batch_first=False),
    "mha-kdim_vdim": partial(mha_cross, dims={"kdim": 12, "vdim": 20}),
    "mha-kdim_vdim-seq_first": partial(mha_cross, batch_first=False, dims={"kdim": 12, "vdim": 20}),
}
