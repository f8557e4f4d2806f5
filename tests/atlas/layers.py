"""Few layers, but one of every kind."""

from __future__ import annotations

import re
from typing import Any

from atlas.attributes import assign, is_ints
from atlas.names import DEPTH, LAYER_INDEX, NOT_DEPTH, PERIOD, STAGES

MOST_KINDS = 6
ATTENDING = re.compile(r"^[^_].*att.*(layers|ind(ex|ic)(es)?)$")
FIRST_LAYERS = re.compile(r"^(first_k_dense_replace|insert_layer_id|num_hash_layers)$")


def shrink_depths(config: Any) -> list[int]:
    """Cut down all depths; attributes with an entry for each layer say what kinds of layers there are.

    Returns:
        Which of the old layers are left.
    """
    facts = dict(vars(config))
    stages = {len(v) for n, v in facts.items() if isinstance(v, (list, tuple)) and STAGES.match(n)}
    depths = {
        n: v
        for n, v in facts.items()
        if type(v) is int and DEPTH.match(n) and not NOT_DEPTH.search(n) and not (v in stages and v < 6)
    }
    total = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "depth")
    old = next((depths[n] for n in total if n in depths), 0)
    per_layer = {n: v for n, v in facts.items() if _has_entries(n, v, old)}
    numbered = {n: v for n, v in facts.items() if _numbers_layers(n, v, old)}
    entries = [map(str, v) for v in per_layer.values()]
    entries += [[str(place in v) for place in range(old)] for v in numbered.values()]  # type: ignore[misc]
    rows = list(zip(*entries, strict=True))
    kinds = list(dict.fromkeys(rows))[:MOST_KINDS]
    named = len(facts.get("stage_names") or ()) == old + 1
    few = max(2, len(kinds), len(facts.get("_out_indices") or ()) if named else 0)
    chosen = _one_of_each(rows, kinds, few) if rows else list(range(few))
    for name, value in per_layer.items():
        assign(config, name, type(value)(value[place] for place in chosen))
    for name, value in numbered.items():
        assign(config, name, type(value)(new for new, place in enumerate(chosen) if place in value))
    for name, value in depths.items():
        assign(config, name, min(value, few))
    if named:
        _cut_stages(config, few)
    for name, value in facts.items():
        if not name.startswith("_") and name not in {**per_layer, **numbered, **depths}:
            fitting = _fitting(name, value, old, few)
            if fitting is not value:
                assign(config, name, fitting)
    return chosen


def _has_entries(name: str, value: Any, layers: int) -> bool:
    """Whether an attribute has an entry for each layer."""
    return isinstance(value, (list, tuple)) and len(value) == layers > 2 and not name.startswith("_")


def _numbers_layers(name: str, value: Any, layers: int) -> bool:
    """Whether an attribute says which of the layers attend in another way."""
    return bool(ATTENDING.search(name)) and is_ints(value) and 0 < len(value) < layers and max(value) < layers


def _one_of_each(rows: list[Any], kinds: list[Any], few: int) -> list[int]:
    """Layers of all kinds, and then the first others."""
    chosen = [rows.index(kind) for kind in kinds]
    others = (place for place in range(len(rows)) if place not in chosen)
    return sorted([*chosen, *(place for place, _ in zip(others, range(few - len(chosen)), strict=False))])


def _cut_stages(config: Any, few: int) -> None:
    """A backbone whose stages are its layers gives out the last ones."""
    config.stage_names = list(config.stage_names[: few + 1])
    count = min(len(config._out_indices or ()), few)
    config._out_indices = list(range(few + 1 - count, few + 1))
    config._out_features = [config.stage_names[place] for place in config._out_indices]


def _fitting(name: str, value: Any, old: int, few: int) -> Any:
    """Numbers of layers, and periods of kinds of layers, that there still are."""
    if LAYER_INDEX.match(name) and is_ints(value) and max(value) < max(old, 1):
        places = (min(v * few // old, few - 1) if v >= 0 else max(v, -few) for v in value)
        return type(value)(dict.fromkeys(places))
    if type(value) is int and PERIOD.match(name):
        return min(value, 2)
    if type(value) is int and FIRST_LAYERS.match(name):
        return min(value, 1)
    return value
