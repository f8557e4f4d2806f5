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
    "written", "einsum", "baddbmm", "sdpa", "mha", "transposed", "max_subtracted", "softmax_in_float64",
    "divided_late",
)  # fmt: skip
ALONE = ("self", "window", "shifted_window", "slice", "halves", "latents")
TOGETHER = ("parallel", "sequential", "read", "joint")


@dataclass(frozen=True)
class Stream:
    """One input: its data, the number of its tokens, and whether a learned token stands in front of it."""

    data: str = "features"  # ids, features or picture
    size: int = 4
    register: bool = False
    positions: bool = False


@dataclass(frozen=True)
class Spelling:
    """How one attention is written, and what is done to its scores and its map."""

    how: str = "written"
    heads: int = 1
    key_heads: int = 1
    mask: str = "none"  # none, causal, causal_additive, padding; where queries and keys are one stream
    extra: str = "none"  # none, bias, talking, sink, rotary


@dataclass(frozen=True)
class Layer:
    """One step: who attends to whom (see ALONE and TOGETHER), the stream it starts at."""

    kind: str = "self"
    stream: int = 0
    spelling: Spelling = Spelling()
    norm: str = "none"  # none, pre, post
    after: str = "none"  # none, mlp, gated, beside, dense_experts, routed_experts
    shared: bool = False  # the attention of the layer before once more


@dataclass(frozen=True)
class Plan:
    """A whole model; the score is read from the first stream."""

    streams: tuple[Stream, ...] = (Stream(),)
    layers: tuple[Layer, ...] = (Layer(),)
    pool: str = "class"  # class, last, last_by_list, mean, max, masked_mean, attention, tokens
    batch: int = 1
    batch_first: bool = True
    seed: int = 0


def draw(seed: int) -> Plan:
    """The plan of a seed."""
    r = random.Random(seed)
    streams = tuple(
        Stream(r.choice(("ids", "features", "picture")), r.choice((4, 6)), r.random() < 0.3, r.random() < 0.4)
        for _ in range(r.choice((1, 1, 2, 2, 3)))
    )
    layers = tuple(_layer(r, len(streams)) for _ in range(r.choice((1, 2, 2, 3))))
    layers = alive(layers, len(streams)) or (Layer(spelling=layers[0].spelling),)
    pools = ("class", "last", "last_by_list", "mean", "max", "masked_mean", "attention", "tokens")
    return Plan(streams, layers, r.choice(pools), r.choice((1, 1, 2, 3)), r.random() < 0.75, seed)


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
    how = r.choice(SPELLINGS)
    key_heads = heads if how == "mha" else r.choice([n for n in (1, 2, 4) if heads % n == 0])
    fused = how in ("mha", "sdpa")
    extra = r.choice(
        ("none", "none", "bias", "rotary") if fused else ("none", "bias", "talking", "sink", "rotary")
    )
    if how in ("mha", "divided_late") or ("window" in kind and extra in ("bias", "rotary")):
        extra = "none"
    mask = r.choice(("none", "none", "causal", "causal_additive", "padding"))
    norm = r.choice(("none", "pre", "post"))
    after = r.choice(("none", "mlp", "gated", "beside", "dense_experts", "routed_experts"))
    spelling = Spelling(how, heads, key_heads, mask, extra)
    return Layer(kind, r.randrange(streams), spelling, norm, after, r.random() < 0.15)


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
            replace(layer, **{n: v}) for n, v in _plainer(layer, Layer(), ("after", "norm", "shared", "kind"))
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
