"""Makes a configuration small, by what its attributes are called: no architecture is named.

A *plan* says how widths shrink. All of them shrink depths, vocabularies, pictures and sequences alike; where
one plan breaks a model (a layer that wants a multiple of 32 channels, two widths that must be equal), the
next one may not.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from atlas.attributes import HEADS, VOCABULARY, assign, configurations, each_int
from atlas.layers import shrink_depths
from atlas.names import (
    CHANNELS,
    EXPERTS,
    HEAD_COUNT,
    HEAD_DIM,
    HIDDEN,
    IMAGE,
    INNER,
    KEPT,
    KEY_HEADS,
    LENGTH,
    PATCH,
    PROBABILITY,
    QUERIES,
    RANK,
    SQUARE_WINDOW,
    STAGES,
    TOKEN,
    VOCAB,
    WINDOW,
)
from atlas.relations import fill, keep_products, keep_relations, make_heads_divide, shrink_rotary


@dataclass(frozen=True)
class Plan:
    """How widths shrink: to one size for all, or in proportion, in multiples of ``unit``; or not at all."""

    name: str
    width: int | None
    """The size of the widest layer; None leaves widths alone."""
    equal: bool
    """All widths that are single numbers become equal."""
    unit: int = 8
    image: int = 32
    window: int = 4
    """The side of a window of attention in a picture."""
    stage: int = 1
    """Layers in each stage of a hierarchy."""
    patch: int = 8
    """The side of a patch at most, unless it is 4 or less."""
    cache: bool = True
    """Whether a decoder gives its keys and values out, as it does by default."""


PLANS = (
    Plan("equal widths", 64, equal=True),
    Plan("equal widths, larger pictures", 64, equal=True, image=64),
    Plan("widths in proportion", 128, equal=False, unit=16, image=64),
    Plan("widths in proportion, multiples of 32", 256, equal=False, unit=32, image=64),
    Plan("equal widths, no cache", 64, equal=True, cache=False),
    Plan("equal widths, own patches", 64, equal=True, image=64, patch=32),
    Plan("own widths", None, equal=False, image=64, stage=3),
)


def shrink(config: Any, plan: Plan) -> None:
    """Make a configuration of transformers and all configurations inside it small, in place."""
    tree = list({id(each): each for each in configurations(config)}.values())
    narrow = _narrower(tree, plan)
    renumber = _Renumber()
    if any(_has_stages(each) for each in tree):
        plan = replace(plan, image=max(plan.image, 64), window=2)
    old = next((v for each in tree for n, v in vars(each).items() if n == "image_size" and type(v) is int), 0)
    for each in tree:
        before = dict(vars(each))
        for name, value in before.items():
            if TOKEN.match(name) and not VOCAB.match(name):
                assign(each, name, renumber(value))
        layers = shrink_depths(each)
        for name, value in list(vars(each).items()):
            if not name.startswith("_") and not isinstance(value, (str, bool, type(None))):
                assign(each, name, _smaller(name, value, plan, narrow))
        for name in ("image_grid_pinpoints", "possible_resolutions"):
            if old and name in before:
                assign(each, name, each_int(before[name], lambda v: max(v // old, 1) * plan.image))
        _shrink_overrides(each, layers, plan, narrow)
        fill(each)
        keep_relations(each, before)
        make_heads_divide(each)
        keep_products(each, before)
        shrink_rotary(each, before)


def side(config: Any, plan: Plan) -> int:
    """The side of a picture for a model of this configuration: hierarchies need larger ones."""
    return max(plan.image, 64) if any(_has_stages(each) for each in configurations(config)) else plan.image


def _has_stages(config: Any) -> bool:
    facts = vars(config).items()
    return any(
        isinstance(v, (list, tuple)) and len(v) > 2 and all(type(x) is int for x in v)
        for n, v in facts
        if STAGES.match(n) or n in ("hidden_sizes", "embed_dims", "embed_dim", "stage_out_channels")
    ) or "use_timm_backbone" in dict(facts)


class _Renumber:
    """Moves the numbers of special tokens into the small vocabulary: equal numbers stay equal."""

    def __init__(self) -> None:
        self.new: dict[int, int] = {}

    def __call__(self, value: Any) -> Any:
        return each_int(value, self._one)

    def _one(self, value: int) -> int:
        if value < VOCABULARY - 40:
            return value
        return self.new.setdefault(value, VOCABULARY - 1 - len(self.new))


def _floats(value: Any) -> Any:
    """Zero for every float in nested lists and tuples."""
    if isinstance(value, (list, tuple)):
        return type(value)(_floats(v) for v in value)
    return 0.0 if isinstance(value, float) else value


def _smaller(name: str, value: Any, plan: Plan, narrow: Callable[[int], int]) -> Any:
    """The small value of one attribute."""
    if PROBABILITY.match(name):
        return _floats(value)
    for pattern, change in _CAPS:
        if pattern.match(name):
            return each_int(value, change)
    if PATCH.match(name):
        return each_int(value, lambda v: v if v <= 4 else min(plan.patch, max(v, 8)))
    if SQUARE_WINDOW.match(name):
        # some count patches, some pixels
        return each_int(value, lambda v: min(v, plan.window) if v < 64 else 32)
    if IMAGE.match(name):
        return each_int(value, lambda v: min(v, plan.image) if v > 8 else v)
    if isinstance(value, (list, tuple)) and len(value) > 1 and STAGES.match(name):
        return each_int(value, lambda v: min(v, plan.stage))
    if KEPT.match(name) and not (isinstance(value, (list, tuple)) and CHANNELS.match(name)):
        return value
    if plan.width is None:
        return value
    if isinstance(value, (list, tuple)):
        if HEAD_COUNT.match(name):
            return each_int(value, lambda v: min(v, HEADS))
        return each_int(value, narrow) if CHANNELS.match(name) or HIDDEN.match(name) else value
    if not isinstance(value, int):
        return value
    return _narrow_number(name, value, plan, narrow)


def _narrow_number(name: str, value: int, plan: Plan, narrow: Callable[[int], int]) -> int:
    assert plan.width is not None
    if HEAD_DIM.match(name):
        return min(value, 16)
    if KEY_HEADS.match(name):
        return min(value, 2)
    if HEAD_COUNT.match(name):
        return min(value, HEADS)
    if RANK.match(name):
        return min(value, 16)
    if INNER.match(name):
        return min(value, 2 * plan.width) if plan.equal else narrow(value)
    if HIDDEN.match(name):
        return min(value, plan.width) if plan.equal else narrow(value)
    return value


def _cap(limit: int) -> Callable[[int], int]:
    return lambda value: min(value, limit)


_CAPS: tuple[tuple[re.Pattern[str], Callable[[int], int]], ...] = (
    (VOCAB, _cap(VOCABULARY)),
    (LENGTH, _cap(128)),
    (EXPERTS, _cap(4)),
    (QUERIES, _cap(8)),
    (WINDOW, _cap(8)),
    (re.compile(r"^(n_group|topk_group|num_expert_groups?)$"), _cap(1)),
    (re.compile(r"^(.*num_frames)$"), _cap(4)),
    (re.compile(r"^(num_experts_per_tok|.*top_?k|num_selected_experts|moe_k)$"), _cap(2)),
    (re.compile(r"^num_mel_bins$"), _cap(32)),
    (re.compile(r"^rotary_dim$"), _cap(8)),
    (re.compile(r"^num_kv_shared_layers$"), _cap(0)),
    (re.compile(r".*_layer_offset$"), _cap(1)),
)


def _narrower(tree: list[Any], plan: Plan) -> Callable[[int], int]:
    """One map from old widths to new ones for the whole tree, so that equal widths stay equal."""
    if plan.width is None:
        return lambda value: value
    lists, numbers = [1], [1]
    for config in tree:
        for name, value in vars(config).items():
            if isinstance(value, (list, tuple)) and CHANNELS.match(name) and not KEPT.match(name):
                lists += [v for v in value if isinstance(v, int)]
            elif isinstance(value, int) and HIDDEN.match(name):
                numbers.append(value)
    widest = max(lists) if plan.equal else max(lists + numbers)
    factor = max(widest / plan.width, 1)
    unit = plan.unit

    def narrow(value: int) -> int:
        return min(value, max(unit, unit * ceil(value / factor / unit)))

    return narrow


def _shrink_overrides(config: Any, layers: list[int], plan: Plan, narrow: Callable[[int], int]) -> None:
    """Where some layers have sizes of their own."""
    own = vars(config).get("_heterogeneity_spec")
    if own is None:
        return
    old = dict(own.per_layer_overrides)
    own.per_layer_overrides.clear()
    for place, layer in enumerate(layers):
        if layer in old:
            own.per_layer_overrides[place] = {n: _smaller(n, v, plan, narrow) for n, v in old[layer].items()}
