"""The plan of a random transformer: small frozen dataclasses, drawn from a seed, and simpler neighbours of a
plan.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

WIDTH = 8
SPELLINGS = (
    "written", "einsum", "baddbmm", "sdpa", "sdpa_flags", "mha", "module", "transposed", "max_subtracted",
    "softmax_in_float64", "divided_late", "additive", "heads_in_a_loop", "queries_in_parts",
)  # fmt: skip
FUSED = ("sdpa", "sdpa_flags", "mha", "module")
EXTRAS = {
    "heads_in_a_loop": ("none", "rotary", "bias_kv", "edges", "normed", "capped"),
    "queries_in_parts": ("none", "rotary", "bias_kv", "edges", "normed", "capped", "talking", "sink"),
    "mha": ("none",), "divided_late": ("none", "edges"), "module": ("none", "none", "bias_kv", "zero"),
    "sdpa": ("none", "none", "bias", "relative", "rotary", "bias_kv", "edges", "normed"),
    "sdpa_flags": ("none", "rotary", "normed"),
}  # fmt: skip
"""What may be added to an attention; written out, all of it."""
WRITTEN = (
    "none", "bias", "relative", "talking", "sink", "rotary", "bias_kv", "edges", "normed", "capped",
)  # fmt: skip
BY_PLACE = ("bias", "relative", "rotary")
ALONE = (
    "self", "window", "shifted_window", "masked_shift", "slice", "halves", "latents", "merge", "part",
    "encoder_layer",
)  # fmt: skip
TOGETHER = ("parallel", "sequential", "read", "joint", "concat", "decoder_layer")
LIBRARY = ("encoder_layer", "decoder_layer")


POOLS = ("class", "last", "last_by_list", "mean", "max", "masked_mean", "attention", "query", "tokens")


@dataclass(frozen=True)
class Stream:
    """One input: its data, the number of its tokens, and how many learned tokens stand in front of it."""

    data: str = "features"  # ids, features or picture
    size: int = 4
    register: int = 0
    positions: bool = False


@dataclass(frozen=True)
class Spelling:
    """How one attention is written, and what is done to its scores and its map."""

    how: str = "written"
    heads: int = 1
    key_heads: int = 1
    mask: str = "none"  # none, causal, causal_additive, band, padding; where queries and keys are one stream
    extra: str = "none"  # see EXTRAS


@dataclass(frozen=True)
class Layer:
    """One step: who attends to whom (see ALONE and TOGETHER), the stream it starts at."""

    kind: str = "self"
    stream: int = 0
    spelling: Spelling = Spelling()
    norm: str = "none"  # none, pre, post
    after: str = "none"  # none, mlp, gated, beside, dense_experts, routed_experts
    shared: bool = False  # the attention of the layer before once more
    latents: int = 2  # how many read the stream and take its place, if the kind is that


@dataclass(frozen=True)
class Plan:
    """A whole model; the score is read from the first stream."""

    streams: tuple[Stream, ...] = (Stream(),)
    layers: tuple[Layer, ...] = (Layer(),)
    pool: str = "class"  # see POOLS
    batch: int = 1
    batch_first: bool = True
    seed: int = 0


def draw(seed: int) -> Plan:
    """The plan of a seed."""
    r = random.Random(seed)
    streams = tuple(
        Stream(
            r.choice(("ids", "features", "picture")),
            r.choice((4, 6)),
            r.choice((0, 0, 0, 1, 1, 2)),
            r.random() < 0.4,
        )
        for _ in range(r.choice((1, 1, 2, 2, 3)))
    )
    layers: list[Layer] = []
    for _ in range(r.choice((1, 2, 2, 3))):
        one = any(layer.kind == "concat" for layer in layers)  # what was put together is the only stream then
        layer = _layer(r, 1 if one else len(streams))
        if layer.kind == "merge" and not any(attends(old) and old.stream == layer.stream for old in layers):
            layer = replace(layer, kind="self")  # a stem makes tokens, and mixes none
        layers.append(layer)
    kept = alive(tuple(layers), len(streams))
    kept = kept if any(map(attends, kept)) else (*kept, Layer())
    return Plan(streams, kept, r.choice(POOLS), r.choice((1, 1, 2, 3)), r.random() < 0.75, seed)


def attends(layer: Layer) -> bool:
    """Whether there is an attention in it."""
    return layer.kind not in ("merge", "concat")


def alive(layers: tuple[Layer, ...], streams: int) -> tuple[Layer, ...]:
    """The layers that the first stream depends on."""
    kept, read = [], {0}
    for layer in reversed(layers):
        here, there = layer.stream, (layer.stream + 1) % streams
        writes = {here, there} if layer.kind in ("parallel", "sequential", "joint") else {here}
        if read & writes:
            kept.append(layer)
            read |= {here, there} if layer.kind in TOGETHER else {here}
    return tuple(reversed(kept))


def _layer(r: random.Random, streams: int) -> Layer:
    kind = r.choice((*ALONE, *TOGETHER) if streams > 1 else ("self", *ALONE))
    heads = r.choice((1, 2, 4))
    how = "module" if kind in LIBRARY else r.choice(SPELLINGS)
    key_heads = heads if how in ("mha", "module") else r.choice([n for n in (1, 2, 4) if heads % n == 0])
    extra = "none" if kind in LIBRARY else r.choice(EXTRAS.get(how, WRITTEN))
    if kind in ("window", "shifted_window", "masked_shift") and extra in BY_PLACE:
        extra = "none"
    if kind == "part" and extra == "bias_kv":
        extra = "none"  # no kind says what keys are of which some are queries and some are not
    if how == "queries_in_parts" and kind in ("window", "shifted_window", "masked_shift", "part"):
        how = "written"  # parts of each window are no parts of the whole
    mask = r.choice(("none", "none", "causal", "causal_additive", "band", "padding"))
    if kind == "masked_shift" and how == "sdpa_flags" and mask.startswith("causal"):
        mask = "none"  # the flag would stand for the mask of the windows
    norm = r.choice(("none", "pre", "post"))
    after = r.choice(("none", "mlp", "gated", "beside", "dense_experts", "routed_experts"))
    spelling = Spelling(how, heads, key_heads, mask, extra)
    stream = 0 if kind == "concat" else r.randrange(streams)
    return Layer(kind, stream, spelling, norm, after, r.random() < 0.15, r.choice((2, 3, 5)))


def simpler(plan: Plan) -> Iterator[Plan]:
    """Plans with one thing less, the greatest steps first."""
    for i in range(len(plan.layers)):
        rest = alive(plan.layers[:i] + plan.layers[i + 1 :], len(plan.streams))
        if rest:
            yield replace(plan, layers=rest)
    last = len(plan.streams) - 1
    if last and all(layer.stream < last for layer in plan.layers):
        yield replace(plan, streams=plan.streams[:-1])
    yield from (replace(plan, **{n: v}) for n, v in _plainer(plan, Plan(), ("batch", "batch_first", "pool")))
    for i, layer in enumerate(plan.layers):
        simple = [
            replace(layer, **{n: v})
            for n, v in _plainer(layer, Layer(), ("after", "norm", "shared", "latents", "kind"))
        ]
        names = tuple(f.name for f in fields(Spelling))
        for n, v in _plainer(layer.spelling, Spelling(), names):
            simple.append(replace(layer, spelling=replace(layer.spelling, **{n: v})))
        yield from (replace(plan, layers=(*plan.layers[:i], s, *plan.layers[i + 1 :])) for s in simple)
    for i, stream in enumerate(plan.streams):
        for n, v in _plainer(stream, Stream(), tuple(f.name for f in fields(Stream))):
            changed = replace(stream, **{n: v})
            yield replace(plan, streams=(*plan.streams[:i], changed, *plan.streams[i + 1 :]))


def _plainer(thing: object, plain: object, names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for name in names:
        if getattr(thing, name) != getattr(plain, name):
            yield name, getattr(plain, name)
