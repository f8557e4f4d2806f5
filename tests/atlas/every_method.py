"""Every method on one model: does it explain, or refuse with its reason?"""

from __future__ import annotations

import re
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

import fxplain
from atlas.cases import Case, NotBuiltError, Registry
from fxplain.attribution import gradients as token_gradients
from fxplain.attribution.table import LIBRA, METHODS
from fxplain.errors import FxplainError, MethodError
from fxplain.result import Result
from fxplain.run.wishes import LARGEST
from fxplain.traced import Traced

FEW = 3
"""Steps of integrated gradients and draws of SmoothGrad: what is asked is whether they run."""
MAY_BE_ZERO = (
    "attention_gradcam",
    "attention_gradcam_row",
    "relevancy_last_layer",
    "relevancy_no_aggregation",
    "transformer_attribution_last_layer",
    "partial_lrp",
)
"""Methods that clamp one map alone, or keep nothing but what the last one left: that may be nothing."""


@dataclass
class Verdict:
    """What became of one model. All fields can be written as JSON."""

    registry: str
    name: str
    outcome: str = "explained"
    """``explained``, ``refused`` (no method can explain it), ``not_built``, ``crashed``, ``timeout``."""
    reason: str = ""
    message: str = ""
    answers: dict[str, list[str]] = field(default_factory=dict)
    """Method -> what it did, and its reason in full: see :func:`answer_of`."""
    seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        return asdict(self)


def names() -> list[str]:
    """All methods, and the balanced ones."""
    return [*METHODS, *(name + LIBRA for name, method in METHODS.items() if method.takes_libra)]


def judge(registry: Registry, registry_name: str, name: str) -> Verdict:
    """Build one model and explain it by every method, from one capture."""
    verdict = Verdict(registry_name, name)
    start = time.process_time()
    try:
        with warnings.catch_warnings(), few_steps():
            warnings.simplefilter("ignore")
            case = registry.build(name, registry.IMPLEMENTATIONS[0])
            torch.manual_seed(0)
            traced = fxplain.trace(case.model, case.inputs)
            target = target_of(case, traced)
            verdict.answers = answers(traced, case.inputs, target)
    except NotBuiltError as error:
        verdict.outcome, verdict.reason, verdict.message = "not_built", error.kind, str(error)[:1000]
    except FxplainError as error:
        verdict.outcome, verdict.reason, verdict.message = "refused", type(error).__name__, str(error)[:1500]
    except Exception as error:
        verdict.outcome, verdict.reason, verdict.message = "crashed", type(error).__name__, told(error)
    verdict.seconds = round(time.process_time() - start, 2)
    return verdict


@contextmanager
def few_steps() -> Iterator[None]:
    """Methods that take many passes take few."""
    before = token_gradients.STEPS, token_gradients.DRAWS
    token_gradients.STEPS = token_gradients.DRAWS = FEW
    try:
        yield
    finally:
        token_gradients.STEPS, token_gradients.DRAWS = before


def target_of(case: Case, traced: Traced) -> Any:
    """The arg max; of the last token where it is that of a first one, which can see none but itself."""
    if case.target is not None:
        return case.target
    result = traced.explain(case.inputs, LARGEST)
    if all(isinstance(target, tuple) and len(target) > 1 for target in result.target):
        for target in (LARGEST, (-1,), (-1, -1)):
            if is_something(traced.explain(case.inputs, target)):
                return target
    return None


def is_something(result: Result) -> bool:
    return all(
        any(bool(part[n].any()) for part in result.relevance.values()) for n in range(len(result.score))
    )


def answers(traced: Traced, inputs: Any, target: Any) -> dict[str, list[str]]:
    """What every method says: all of them compared, or one by one where that ends in an error."""
    found: Mapping[str, Any]
    try:
        comparison = traced.compare(inputs, names(), target)
        found = {**comparison.results, **comparison.refused}
    except FxplainError:
        raise
    except Exception:
        found = {name: alone(traced, inputs, target, name) for name in names()}
    return {name: answer_of(name, found[name]) for name in names()}


def alone(traced: Traced, inputs: Any, target: Any, name: str) -> Result | Exception:
    try:
        return traced.explain(inputs, target, name)
    except Exception as error:
        return error


def answer_of(name: str, answer: Result | Exception) -> list[str]:
    """``runs``, ``not defined`` (a refusal by the method's own definition), ``no rule``, ``refused`` (any
    other error of fxplain), ``crashed``, or ``wrong``; and the reason."""
    if isinstance(answer, Result):
        broken = fault(name, answer)
        return ["wrong", broken] if broken else ["runs", ""]
    if not isinstance(answer, FxplainError):
        return ["crashed", told(answer)]
    text = str(answer)[:1000]
    if not isinstance(answer, MethodError):
        return ["refused", text]
    return ["no rule" if "no rule for an operation" in text else "not defined", text]


def fault(name: str, result: Result) -> str:
    """What must hold for any explanation, and does not."""
    batch = len(result.score)
    for space in result.spaces:
        part = result.relevance[space.name]
        if part.shape != (batch, space.size):
            return f"shape: {space.name} has {list(part.shape)} for {batch} samples of {space.size} tokens"
        if not bool(torch.isfinite(part).all()):
            return "values: not finite"
    if name.removesuffix(LIBRA) not in MAY_BE_ZERO and not any(
        bool(p.any()) for p in result.relevance.values()
    ):
        return "values: all zero"
    return ""


def told(error: Exception) -> str:
    lines = "".join(traceback.format_exception(error)).strip().splitlines()
    return "\n".join([f"{type(error).__name__}: {error}"[:600], *lines[-9:-1]])


def kind_of(text: str) -> str:
    """The class of a reason: its first line, without what is special to one model."""
    first = (text.splitlines() or [""])[0]
    return re.sub(r"[0-9]+", "N", first)
