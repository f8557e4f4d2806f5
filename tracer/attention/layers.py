"""Layers of attentions, counted from where they lie in the dataflow, and choices among them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from fxplain.attention.classify import Classified
from fxplain.attention.records import Attention, Mixing
from fxplain.errors import MethodError

Layers = int | slice | Iterable[int]
"""One layer, a range of them, or several; negative ones count from the last."""


@dataclass(frozen=True)
class Layer:
    """Where an attention stands among those of its tower."""

    number: int
    """How many attentions of its class (self, or across streams) its queries have behind them."""
    count: int
    """How many layers its tower has, as far as this attention can see."""


def layers_of(classified: Classified) -> dict[int, Layer]:
    """The layer of every attention, by index of its site.

    Counted along the dataflow: an attention lies one layer above the highest one of its class, self or
    cross, whose output its queries have taken in. So every tower of a model counts from 0, an encoder as
    well as a decoder, and so do a decoder's cross attentions; stages of one tower count on.
    """
    kinds = zip(classified.sites, classified.kinds, strict=True)
    sites = {site.index: (site, kind == "self") for site, kind in kinds if kind is not None}
    numbers: dict[int, int] = {}
    above = dict.fromkeys(sites, 0)
    below: dict[int, list[int]] = {}
    for index, (site, own) in sites.items():
        below[index] = [i for i in site.rows.reads if i in numbers and sites[i][1] == own]
        numbers[index] = 1 + max((numbers[i] for i in below[index]), default=-1)
    for index in reversed(list(sites)):
        for lower in below[index]:
            above[lower] = max(above[lower], above[index] + 1)
    return {index: Layer(number, number + above[index] + 1) for index, number in numbers.items()}


def numbered(classified: Classified) -> Classified:
    """With the number of its layer noted at every step that has one."""
    layers = layers_of(classified)
    steps = [
        replace(step, layer=layers[site.index].number) if site.index in layers else step
        for site, step in zip(classified.sites, classified.steps, strict=True)
    ]
    attentions = tuple(step for step in steps if isinstance(step, Attention))
    return replace(
        classified, attentions=attentions, mixings=tuple(step for step in steps if isinstance(step, Mixing))
    )


def chosen_sites(classified: Classified, layers: Layers) -> frozenset[int]:
    """The attentions of some layers, by index of their sites.

    Raises:
        MethodError: there is no attention in these layers, or ``layers`` is none of its forms.
    """
    found = layers_of(classified)
    asked = layers if isinstance(layers, slice) else _several(layers)
    chosen = frozenset(index for index, layer in found.items() if layer.number in _among(asked, layer.count))
    most = max((layer.count for layer in found.values()), default=0)
    if not chosen or (not isinstance(asked, slice) and any(not -most <= one < most for one in asked)):
        raise MethodError(
            "there is no attention in the layers asked for",
            expected=f"layers between 0 and {most - 1}; negative ones count from the last",
            found=f"layers={layers!r}",
            hint="fxplain inspect shows the layer of every attention; so does traced.attentions[0].layer",
        )
    return chosen


def _several(layers: int | Iterable[int]) -> list[int]:
    several = list(layers) if isinstance(layers, Iterable) else [layers]
    if any(isinstance(number, bool) or not isinstance(number, int) for number in several):
        raise MethodError(
            "these are no layers",
            expected="an int, a slice, or several ints; negative ones count from the last",
            found=f"layers={layers!r}",
        )
    return several


def _among(layers: slice | list[int], count: int) -> frozenset[int]:
    if isinstance(layers, slice):
        return frozenset(range(count)[layers])
    return frozenset(number + count if number < 0 else number for number in layers)
