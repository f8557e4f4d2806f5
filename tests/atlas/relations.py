"""What was equal to, a sum of, or a part of other attributes still is when these have shrunk."""

from __future__ import annotations

import re
from math import gcd
from typing import Any

from atlas.attributes import VOCABULARY, assign, heads_of, is_ints, width_of
from atlas.names import CHANNELS, HEAD_COUNT, KEY_HEADS, PATCHES


def fill(config: Any) -> None:
    """Values for what has none by default and must have one."""
    facts = vars(config)
    heads = heads_of(config)
    wanted = {
        "prediction_length": 4,
        "context_length": 16,
        "vocab_size": VOCABULARY,
        "num_key_value_heads": heads,
        "head_dim": width_of(config) // max(heads, 1),
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "layer_types": ["full_attention"] * 2,
        "num_experts_per_tok": 2,
    }
    for name, value in wanted.items():
        if name in facts and facts[name] is None:
            assign(config, name, value)


def keep_relations(config: Any, before: dict[str, Any]) -> None:
    """What was equal to, a sum of or a quotient of other attributes still is."""
    facts = vars(config)
    heads = heads_of(config)
    for name, value in before.items():
        if KEY_HEADS.match(name) and type(value) is int and value == before.get("num_attention_heads", -1):
            assign(config, name, heads)
        if name.endswith("_groups") and value == before.get("hidden_size"):
            assign(config, name, facts["hidden_size"])
    parts = ("qk_nope_head_dim", "qk_rope_head_dim")
    if all(type(facts.get(part)) is int for part in parts):
        old, new = (sum(source[part] for part in parts) for source in (before, facts))
        for name in ("qk_head_dim", "head_dim"):
            if before.get(name) == old:
                assign(config, name, new)
    width = facts.get("hidden_size", 0)
    for name, value in before.items():
        if is_ints(value) and len(value) == 2 and sum(value) == before.get("hidden_size"):
            assign(config, name, type(value)((width // 4, width - width // 4)))  # type: ignore[misc]
    if "coordinate_size" in before and "shape_size" in before:  # four of the one and two of the other
        assign(config, "coordinate_size", width * 3 // 16)
        assign(config, "shape_size", width // 8)
    sizes = [source.get(name) for source in (before, facts) for name in ("image_size", "patch_size")]
    if all(type(size) is int for size in sizes):
        _count_patches(config, before, sizes[0] // sizes[1], sizes[2] // sizes[3])


def keep_products(config: Any, before: dict[str, Any]) -> None:
    """In state spaces heads times their width are a multiple of the model's width; groups are of heads."""
    facts = vars(config)
    numbers = {name: value for name, value in before.items() if type(value) is int and value > 0}
    expand = next((name for name in numbers if re.search(r"(^|_)expand$", name)), None)
    if expand is None or "hidden_size" not in numbers:
        return
    old, new = (int(source[expand] * source["hidden_size"]) for source in (before, facts))
    for many in (name for name in numbers if re.search(r"heads$", name)):
        for wide in (name for name in before if re.search(r"head_?dim$|d_head$", name)):
            width = before[wide]
            whole = next((n for n in numbers if n.endswith("d_ssm")), None)
            if whole and numbers[whole] == numbers[many] * width:
                assign(config, whole, facts[many] * facts[wide])
            elif width == "auto" or numbers[many] * width == old:
                assign(config, wide, new // facts[many])
            else:
                continue
            for groups in (name for name in numbers if re.search(r"n_?groups$", name)):
                assign(config, groups, gcd(facts[groups], facts[many]))


def _count_patches(config: Any, before: dict[str, Any], old: int, new: int) -> None:
    """Sides of the grid of patches, and numbers of patches."""
    for name, value in before.items():
        if (
            name in ("image_size", "patch_size")
            or type(value) is not int
            or value < 5
            or not PATCHES.search(name)
        ):
            continue
        if value in (old, old**2):
            assign(config, name, new if value == old else new**2)


def shrink_rotary(config: Any, before: dict[str, Any]) -> None:
    """Sections of rotary positions add up to half a head, and parts of heads stay whole."""
    for name in ("rope_parameters", "rope_scaling"):
        rotary = vars(config).get(name)
        if not isinstance(rotary, dict):
            continue
        width = vars(config).get("head_dim") or width_of(config) // max(heads_of(config), 1)
        for inside in (rotary, *(v for v in rotary.values() if isinstance(v, dict))):
            turned = vars(config).get("qk_rope_head_dim")
            old = before.get("head_dim")
            if (
                turned
                and old
                and "partial_rotary_factor" in inside
                and round(old * inside["partial_rotary_factor"]) == before["qk_rope_head_dim"]
            ):
                inside["partial_rotary_factor"] = turned / width
            half = int(width * inside.get("partial_rotary_factor", 1.0)) // 2
            if inside is rotary or "mrope_section" in inside:
                inside["mrope_section"] = [half // 3, half // 3, half - 2 * (half // 3)]


def make_heads_divide(config: Any) -> None:
    """The number of heads divides the width, stage by stage where there are stages."""
    width = width_of(config)
    for name, value in list(vars(config).items()):
        if not HEAD_COUNT.match(name) or name.startswith("_"):
            continue
        if type(value) is int and value and width % value:
            assign(config, name, gcd(width, value))
        if isinstance(value, (list, tuple)) and all(type(x) is int for x in value):
            assign(config, name, type(value)(gcd(width, x) for x in value))
            widths = next(
                (
                    v
                    for n, v in vars(config).items()
                    if CHANNELS.match(n)
                    and isinstance(v, (list, tuple))
                    and len(v) == len(value)
                    and all(type(x) is int for x in v)
                ),
                None,
            )
            if widths and all(type(x) is int for x in value):
                assign(config, name, type(value)(gcd(w, h) for w, h in zip(widths, value, strict=True)))
