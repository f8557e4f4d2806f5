"""torch.nn: attention and transformers with every pair of their options."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from itertools import combinations, product
from typing import Any

import torch
from torch import Tensor, nn

from atlas.cases import Case
from atlas.weights import enliven

IMPLEMENTATIONS: tuple[str | None, ...] = (None,)

WIDTH, HEADS, INNER = 16, 2, 24
BATCH, WORDS, OTHERS = 2, 5, 4

Options = Mapping[str, Any]

LAYER: Options = {
    "norm_first": (False, True),
    "batch_first": (True, False),
    "bias": (True, False),
    "activation": ("relu", "gelu"),
    "mask": (None, "causal", "float", "heads"),
    "padding": (False, True),
}
TABLES: Mapping[str, Options] = {
    "MultiheadAttention": {
        "reads": ("itself", "others"),
        "bias": (True, False),
        "add_bias_kv": (False, True),
        "add_zero_attn": (False, True),
        "own_sizes": (False, True),
        "batch_first": (True, False),
        "batched": (True, False),
        "returns": ("heads", "mean", "no map"),
        "mask": (None, "causal", "float", "heads"),
        "padding": (False, True),
    },
    "TransformerEncoderLayer": LAYER,
    "TransformerEncoder": {**LAYER, "norm": (False, True), "nested": (False, True)},
    "TransformerDecoderLayer": {**LAYER, "memory_mask": (False, True)},
    "TransformerDecoder": {**LAYER, "memory_mask": (False, True), "norm": (False, True)},
    "Transformer": {**LAYER, "memory_mask": (False, True)},
}


def names() -> list[str]:
    return [f"{kind}/{_told(options)}" for kind in TABLES for options in every_pair(kind)]


def build(name: str, attention: str | None) -> Case:
    kind, _, told = name.partition("/")
    options = next(options for options in every_pair(kind) if _told(options) == told)
    torch.manual_seed(0)
    return {"MultiheadAttention": _attention, "Transformer": _pair}.get(kind, _stack)(kind, options)


@cache
def every_pair(kind: str) -> tuple[Options, ...]:
    """Settings of the options in which every two values of two options come together once."""
    table = TABLES[kind]
    pairs = {
        frozenset(((one, a), (two, b)))
        for one, two in combinations(table, 2)
        for a, b in product(table[one], table[two])
    }
    settings: list[Options] = []
    while pairs:
        chosen: dict[str, Any] = dict(min(pairs, key=lambda pair: sorted(map(repr, pair))))
        for option, values in table.items():
            if option not in chosen:
                gains = {v: len(pairs & _pairs({**chosen, option: v})) for v in values}
                chosen[option] = max(gains, key=lambda v: gains[v])
        pairs -= _pairs(chosen)
        settings.append({option: chosen[option] for option in table})
    return tuple(settings)


def _pairs(settings: Options) -> set[frozenset[tuple[str, Any]]]:
    return {frozenset(pair) for pair in combinations(settings.items(), 2)}


def _told(options: Options) -> str:
    values = ((name, value) for name, value in options.items() if value not in (False, None))
    return ",".join(name if value is True else f"{name}={value}" for name, value in values) or "plain"


def _numbers(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _mask(how: str | None, rows: int, columns: int, batch: int = BATCH) -> Tensor | None:
    """``True`` or -inf where attention is forbidden; never on the diagonal."""
    allowed = torch.ones(rows, columns).tril(1).bool()
    if how == "heads":
        lower = torch.stack([allowed, torch.ones(rows, columns).triu(-1).bool()])
        return ~lower.repeat(batch, 1, 1)
    if how == "float":
        return _numbers(rows, columns, seed=3).masked_fill(~allowed, -torch.inf)
    return None if how is None else ~torch.ones(rows, columns).tril().bool()


def _padding(count: int) -> Tensor:
    """The last token of the second sample is padding."""
    return torch.arange(BATCH * count).view(BATCH, count) == BATCH * count - 1


class Attention(nn.Module):
    """The library's attention, with masks as its own options."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        sizes = {"kdim": 12, "vdim": 20} if options["own_sizes"] else {}
        names = ("bias", "add_bias_kv", "add_zero_attn", "batch_first")
        self.attend = nn.MultiheadAttention(WIDTH, HEADS, **sizes, **{name: options[name] for name in names})
        returns = options["returns"]
        self.call = {"need_weights": returns != "no map", "average_attn_weights": returns != "heads"}

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, padding: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        output, weights = self.attend(
            query, key, value, attn_mask=mask, key_padding_mask=padding, **self.call
        )
        return output, weights


def _attention(kind: str, options: Options) -> Case:
    model = enliven(Attention(options))
    alone = options["reads"] == "itself"
    count = WORDS if alone else OTHERS
    query = key = value = _numbers(BATCH, WORDS, WIDTH)
    if not alone or options["own_sizes"]:
        widths = (12, 20) if options["own_sizes"] else (WIDTH, WIDTH)
        key, value = (_numbers(BATCH, count, width, seed=width) for width in widths)
    padding = _padding(count) if options["padding"] else None
    batch = BATCH if options["batched"] else 1
    if not options["batched"]:
        query, key, value = query[1], key[1], value[1]
        padding = None if padding is None else padding[1]
    elif not options["batch_first"]:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    masks = (_mask(options["mask"], WORDS, count, batch), padding)
    inputs = (query, key, value, *masks)
    return Case(
        model, inputs, reported=partial(_reported, model, inputs) if options["returns"] == "heads" else None
    )


def _reported(model: nn.Module, inputs: tuple[Any, ...]) -> Mapping[str, Tensor]:
    with torch.no_grad():
        weights: Tensor = model(*inputs)[1]
    return {"weights": weights if weights.ndim == 4 else weights[None]}


def _layer_arguments(options: Options) -> dict[str, Any]:
    names = ("norm_first", "batch_first", "bias", "activation")
    return {"dropout": 0.0, **{name: options[name] for name in names}}


def _stack(kind: str, options: Options) -> Case:
    decoder = "Decoder" in kind
    layer = (nn.TransformerDecoderLayer if decoder else nn.TransformerEncoderLayer)(
        WIDTH, HEADS, INNER, **_layer_arguments(options)
    )
    model: nn.Module = layer
    if not kind.endswith("Layer"):
        norm = nn.LayerNorm(WIDTH) if options["norm"] else None
        if decoder:
            model = nn.TransformerDecoder(layer, 2, norm)  # type: ignore[arg-type]
        else:
            model = nn.TransformerEncoder(layer, 2, norm, enable_nested_tensor=options["nested"])  # type: ignore[arg-type]
    said = _numbers(BATCH, WORDS, WIDTH)
    read = _numbers(BATCH, OTHERS, WIDTH, seed=2)
    if not options["batch_first"]:
        said, read = said.transpose(0, 1), read.transpose(0, 1)
    inputs: dict[str, Any] = {"tgt": said, "memory": read} if decoder else {"src": said}
    prefix = "tgt_" if decoder else ("" if kind == "TransformerEncoder" else "src_")
    inputs[f"{prefix}mask"] = _mask(options["mask"], WORDS, WORDS)
    if options["padding"]:
        inputs[("tgt" if decoder else "src") + "_key_padding_mask"] = _padding(WORDS)
    if options.get("memory_mask"):
        inputs["memory_mask"] = _mask("float", WORDS, OTHERS)
        inputs["memory_key_padding_mask"] = _padding(OTHERS)
    return Case(enliven(model), {k: v for k, v in inputs.items() if v is not None})


def _pair(kind: str, options: Options) -> Case:
    model = nn.Transformer(WIDTH, HEADS, 1, 2, INNER, **_layer_arguments(options))
    read, said = _numbers(BATCH, OTHERS, WIDTH, seed=2), _numbers(BATCH, WORDS, WIDTH)
    if not options["batch_first"]:
        said, read = said.transpose(0, 1), read.transpose(0, 1)
    inputs = {"src": read, "tgt": said, "tgt_mask": _mask(options["mask"], WORDS, WORDS)}
    if options["padding"]:
        inputs["src_key_padding_mask"] = _padding(OTHERS)
        inputs["tgt_key_padding_mask"] = _padding(WORDS)
    if options["memory_mask"]:
        inputs["memory_mask"] = _mask("float", WORDS, OTHERS)
    return Case(enliven(model), {k: v for k, v in inputs.items() if v is not None})
