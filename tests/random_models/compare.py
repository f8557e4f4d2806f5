"""fxplain against the reference: what a plan disagrees in, and the smallest plan that still disagrees."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import fxplain
from random_models.build import made
from random_models.plan import Plan, simpler
from random_models.reference import Reference, Wanted, wanted

NAMES = ("first", "second", "third")
TARGET = 1


def disagreement(plan: Plan, mode: Any = "matrix") -> str | None:
    """The first thing in which fxplain and the reference differ; None where they agree."""
    model, inputs = made(plan)
    plain = Reference(model, inputs).output
    if not torch.allclose(model(*inputs), plain, atol=1e-9):
        raise AssertionError(f"the reference does not run the model: {plan}")
    want = wanted(model, inputs, TARGET)
    target = (1, TARGET) if plan.pool == "tokens" else TARGET
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = fxplain.trace(model, inputs)
            result = traced.explain(inputs, method="relevancy", target=target, mode=mode)
    except fxplain.FxplainError as error:
        return f"refused: {type(error).__name__}: {str(error)[:300]}"
    return _difference(plan, want, traced, result) or _other_maps(want, traced.maps(inputs))


def _difference(plan: Plan, want: Wanted, traced: fxplain.Traced, result: fxplain.Result) -> str | None:
    if not torch.allclose(result.score.double(), want.score, atol=1e-6):
        return f"score: {result.score.tolist()} for {want.score.tolist()}"
    for name, expected in zip(NAMES, want.relevance, strict=False):
        found = result.relevance.get(name, torch.zeros_like(expected))
        if found.shape != expected.shape:
            return f"relevance of {name}: shape {tuple(found.shape)} for {tuple(expected.shape)}"
        if not torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-9):
            return f"relevance of {name}: {found.tolist()} for {expected.tolist()}"
    found_kinds = sorted(a.kind for a in traced.attentions)
    if found_kinds not in want.kinds:
        return f"kinds: {found_kinds} for {want.kinds[0]}"
    return None


def _other_maps(want: Wanted, found: Sequence[Tensor]) -> str | None:
    """Whether each map has the numbers of one of the reference's, in whatever order of tokens, and the
    attentions come in the order of the equations."""
    known = zip(want.maps, want.used, strict=True)
    left = [(m.group, _numbers(m.weights), used) for m, used in known if not m.merges]
    last = 0
    for place, numbers in enumerate(map(_numbers, found)):
        fits = (n for n, (_, own, _) in enumerate(left) if own.shape == numbers.shape)
        match = next((n for n in fits if torch.allclose(left[n][1], numbers, atol=1e-7)), None)
        if match is None:
            return f"maps: that of attention {place} is none of the model's"
        group = left.pop(match)[0]
        if group < last:
            return f"order: attention {place} comes too late"
        last = group
    return "maps: one is missing" if any(used for _, _, used in left) else None


def _numbers(weights: Tensor) -> Tensor:
    """All weights that are not 0, in their order of size, sample by sample."""
    flat = weights.detach().double().flatten(1).sort(-1).values
    return torch.cat([torch.cat([own[own.abs() > 1e-12], own.new_full((1,), torch.inf)]) for own in flat])


def shrunk(plan: Plan) -> Plan:
    """The smallest plan, one thing less at a time, that disagrees in the same kind of thing."""
    kind = str(disagreement(plan)).split(":")[0]
    smaller = True
    while smaller:
        smaller = False
        for other in simpler(plan):
            try:
                found = disagreement(other)
            except Exception:  # a plan that cannot be built is no smaller example
                continue
            if found is not None and found.split(":")[0] == kind:
                plan, smaller = other, True
                break
    return plan
