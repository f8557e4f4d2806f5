"""The verdict on one model: every point of "what must hold for each model"."""

from __future__ import annotations

import re
import time
import traceback
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

import fxplain
from atlas.agreement import is_no_map, match
from atlas.cases import UNUSED, Case, NotBuiltError, Registry, tensors
from atlas.doubles import Doubled, doubled
from fxplain.errors import FxplainError
from fxplain.laws.table import LAWS
from fxplain.result import Result
from fxplain.traced import Traced

SAME_RELEVANCE = 1e-4
"""Largest difference of relevance between two implementations of attention, relative to the largest entry."""


class Outcome(StrEnum):
    """What became of a model."""

    PASSED = "passed"
    NO_ATTENTION = "no_attention"
    """Rightly: the model reports no map either, and every softmax has another role."""
    REFUSED = "refused"
    """An error of fxplain that says why."""
    WRONG = "wrong"
    """Something that must hold does not."""
    CRASHED = "crashed"
    """An error that is not fxplain's."""
    TIMEOUT = "timeout"
    NOT_BUILT = "not_built"


@dataclass
class Verdict:
    """Everything that the report tells of one model. All fields can be written as JSON."""

    registry: str
    name: str
    outcome: Outcome = Outcome.PASSED
    reason: str = ""
    """The class of the reason, in few words."""
    message: str = ""
    broken: list[str] = field(default_factory=list)
    """What must hold and does not, one line each."""
    notes: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, list[int]] = field(default_factory=dict)
    strategy: str = ""
    verified: float = 0.0
    attentions: dict[str, int] = field(default_factory=dict)
    """Kind -> how many."""
    mixings: dict[str, int] = field(default_factory=dict)
    """Operation -> how many."""
    roles: dict[str, int] = field(default_factory=dict)
    """Role in the census -> how many."""
    grids: dict[str, list[int]] = field(default_factory=dict)
    """Tokens of an input -> how they lie."""
    reported: int = 0
    matched: dict[str, int] = field(default_factory=dict)
    """How the reported maps agree -> how many."""
    unreported: int = 0
    """Attentions that the model has and does not report, where it reports any."""
    implementations: dict[str, str] = field(default_factory=dict)
    """Other implementation -> the difference of relevance, or why it was not compared."""
    laws: dict[str, str] = field(default_factory=dict)
    """Law -> its outcome: ``ok``, ``failed``, ``set aside`` (held, but for what is set aside)."""
    seconds: float = 0.0
    """Of computing, also by all threads."""

    def record(self) -> dict[str, Any]:
        return asdict(self)


def judge(registry: Registry, registry_name: str, name: str) -> Verdict:
    """Build one model and hold it against everything that must hold."""
    verdict = Verdict(registry_name, name)
    start = time.process_time()
    first, *others = registry.IMPLEMENTATIONS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            case = registry.build(name, first)
            torch.manual_seed(0)
            verdict.notes.update(case.notes)
            verdict.inputs = _shapes(case.inputs)
            result = _judge_case(case, verdict)
            if result is not None:
                for other in others:
                    verdict.implementations[str(other)] = _compare(
                        registry, name, other, case, result, verdict
                    )
    except NotBuiltError as error:
        verdict.outcome, verdict.reason, verdict.message = Outcome.NOT_BUILT, error.kind, str(error)[:1000]
    except FxplainError as error:
        verdict.outcome, verdict.reason, verdict.message = Outcome.REFUSED, _kind_of(error), str(error)[:1500]
    except Exception as error:
        verdict.outcome, verdict.reason = Outcome.CRASHED, type(error).__name__
        verdict.message = f"{error}\n{traceback.format_exc()[-1500:]}"
    if verdict.broken and verdict.outcome in (Outcome.PASSED, Outcome.NO_ATTENTION):
        verdict.outcome = Outcome.WRONG
        verdict.reason = verdict.broken[0].split(":")[0]
    verdict.seconds = round(time.process_time() - start, 2)
    return verdict


def _shapes(inputs: Any) -> dict[str, list[int]]:
    if isinstance(inputs, Mapping):
        return {k: list(v.shape) for k, v in inputs.items() if isinstance(v, Tensor)}
    parts = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
    return {str(place): list(v.shape) for place, v in enumerate(parts) if isinstance(v, Tensor)}


def _kind_of(error: FxplainError) -> str:
    """The class of an error and its first line, without what is special to this model."""
    return f"{type(error).__name__}: {re.sub(r'[0-9]+', 'N', str(error).splitlines()[0])}"


def _judge_case(case: Case, verdict: Verdict) -> Result | None:
    """What :func:`fxplain.check` says of it, and whether the maps are those that the model reports."""
    checked = fxplain.check(case.model, case.inputs, case.target)
    if (
        checked.finding("relevancy").outcome == "failed"
        and checked.result is not None
        and case.target is None
    ):
        checked = _last_token(case, checked, verdict)
    if checked.traced is not None:
        _describe(checked.traced, verdict)
    if checked.error is not None:
        raise checked.error
    verdict.broken += [f"{f.name}: {f.sentence[:600]}" for f in checked.findings if f.outcome == "failed"]
    for finding in (checked.finding(law.name) for law in LAWS):
        aside = finding.outcome == "ok" and "set aside" in finding.sentence
        verdict.laws[finding.name] = "set aside" if aside else finding.outcome
    torch.manual_seed(0)  # for models that draw random numbers
    reported = case.reported() if case.reported else {}
    verdict.reported = len(reported)
    if checked.result is None:
        verdict.outcome = Outcome.NO_ATTENTION
        verdict.message = (
            "; ".join(f"{count} {role}" for role, count in verdict.roles.items()) or "no softmax"
        )
        if any(t.numel() > 1 and t.is_floating_point() and not is_no_map(t, []) for t in reported.values()):
            verdict.broken.append(
                f"maps missed: the model reports {len(reported)}, fxplain finds no attention"
            )
    elif reported and checked.traced is not None:
        maps = (*checked.traced.maps(case.inputs), *checked.traced.points(case.inputs))
        _compare_maps(reported, maps, verdict)
        if verdict.matched.get("places of no token") and not any(
            "places that are no tokens" in note for note in checked.result.notes
        ):
            verdict.broken.append("places of no token: what they weigh is not told")
    return checked.result


def _last_token(case: Case, checked: fxplain.Verdict, verdict: Verdict) -> fxplain.Verdict:
    """The verdict on the last token where the arg max is a first one, which can see none but itself."""
    assert checked.result is not None
    if not all(isinstance(t, tuple) and len(t) > 1 for t in checked.result.target):
        return checked
    verdict.notes["target"] = "the last token"
    # a model whose batch is packed has one sample, whose first axis is that of the batch
    for target in ((-1,), (-1, -1)):
        checked = fxplain.check(case.model, case.inputs, target)
        if checked.finding("relevancy").outcome == "ok":
            return checked
    verdict.notes["target"] = "the sum of all outputs"  # one number of a wave may stand on one token alone
    return fxplain.check(case.model, case.inputs, _sum_of_output)


def _sum_of_output(output: Any) -> Tensor:
    """All floating tensors, added up for each sample."""
    found = [t for t in tensors(output) if t.is_floating_point() and t.requires_grad]
    return torch.stack([t.flatten(1).sum(1) for t in found if len(t) == len(found[0])]).sum(0)


def _describe(traced: Traced, verdict: Verdict) -> None:
    verdict.strategy, verdict.verified = traced.captured.strategy, traced.captured.verified
    verdict.attentions = _count(a.kind for a in traced.attentions)
    verdict.mixings = _count(m.op for m in traced.mixings)
    verdict.roles = _count(entry.role for entry in traced.census)
    verdict.grids = {space.name: list(space.grid) for space in traced.spaces if space.origin == "input"}


def _count(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return counts


def _compare_maps(reported: Mapping[str, Tensor], maps: Sequence[Tensor], verdict: Verdict) -> None:
    """Match every reported map with one of ours, by value."""
    left = list(range(len(maps)))
    for name, theirs in reported.items():
        if name.startswith(UNUSED):
            verdict.matched["unused"] = verdict.matched.get("unused", 0) + 1
            continue
        how, place = match(theirs, maps, left)
        if how == "differs" and match(theirs, maps, range(len(maps)))[0] == "equal":
            how = "reported twice"
        verdict.matched[how] = verdict.matched.get(how, 0) + 1
        if place is not None:
            left.remove(place)
        elif how == "differs":
            sizes = sorted({str(list(maps[i].shape)) for i in left})
            verdict.broken.append(
                f"map differs: {name} {list(theirs.shape)} is none of the {len(left)} left {sizes}"
            )
    verdict.unreported = len(left)


def _compare(
    registry: Registry, name: str, attention: str | None, case: Case, result: Result, verdict: Verdict
) -> str:
    """Explain the same weights with another implementation of attention: the relevance must be the same."""
    try:
        other = registry.build(name, attention)
        other.model.load_state_dict(case.model.state_dict())
    except Exception as error:
        return f"not built: {type(error).__name__}: {str(error)[:200]}"
    if not _same_outputs(case, other):
        return "the model computes something else"
    try:
        traced = fxplain.trace(other.model, case.inputs)
        if not any(a.fused for a in traced.attentions):
            return "no fused attention"
        again = traced.explain(case.inputs, method="relevancy", target=_target(result))
    except FxplainError as error:
        verdict.broken.append(f"{attention}: {_kind_of(error)}")
        return str(error)[:1000]
    gap = _relevance_gap(result, again)
    if gap <= SAME_RELEVANCE:
        return f"{gap:.1e}"
    # rows that are divided by a tiny sum blow up what was rounded: float64 throughout tells if that is all
    exact = _gap_in_doubles(case, other, result)
    if exact is None or not exact <= SAME_RELEVANCE:
        verdict.broken.append(f"{attention}: relevance differs by {gap:g}")
        return f"{gap:.1e}"
    return f"{exact:.1e} in float64"


def _target(result: Result) -> Any:
    """What was explained, to explain it again."""
    return result.target if callable(result.target) else list(result.target)


def _gap_in_doubles(case: Case, other: Case, result: Result) -> float | None:
    """The same comparison in float64; None where the model cannot compute in it."""
    target = _target(result)
    inputs = doubled(case.inputs)
    try:
        found = [fxplain.explain(Doubled(each.model), inputs, target) for each in (case, other)]
    except Exception:
        return None
    return _relevance_gap(found[0], found[1])


def _same_outputs(first: Case, second: Case) -> bool:
    """Whether two implementations of a model agree; some do not (masks that only one of them applies)."""
    outputs = []
    for case in (first, second):
        torch.manual_seed(0)
        with torch.no_grad():
            inputs = case.inputs
            result = case.model(**inputs) if isinstance(inputs, Mapping) else case.model(*_positional(inputs))
        outputs.append([t for t in tensors(result) if t.is_floating_point()])
    return len(outputs[0]) == len(outputs[1]) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True)
        for a, b in zip(*outputs, strict=True)
    )


def _positional(inputs: Any) -> tuple[Any, ...]:
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def _relevance_gap(first: Result, second: Result) -> float:
    """The largest difference, relative to the largest entry; infinite where the tokens are not the same."""
    if [(s.name, s.size) for s in first.spaces] != [(s.name, s.size) for s in second.spaces]:
        return float("inf")
    largest = max((float(v.abs().max()) for v in first.relevance.values() if v.numel()), default=0.0)
    gaps = (
        float((first.relevance[n] - second.relevance[n]).abs().max())
        for n in first.relevance
        if first.relevance[n].numel()
    )
    return max(gaps, default=0.0) / max(largest, 1e-12)
