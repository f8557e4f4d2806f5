"""A captured graph with everything known of its tokens: the labelling run, classified and planned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fxplain.attention.classify import Classified, classify
from fxplain.attention.labelling import find, has_transfer_function
from fxplain.attention.layers import numbered
from fxplain.attention.plan import Plan, make_plan
from fxplain.attention.unfollowed import PassedOver, passed_over
from fxplain.capture.capture import Strategy, capture
from fxplain.capture.captured import Captured
from fxplain.capture.guard import random_state
from fxplain.capture.passes.clean import draws_random_numbers
from fxplain.capture.passes.decompose import written_out
from fxplain.errors import InputError
from fxplain.labels.findings import Findings


@dataclass(frozen=True)
class Labelled:
    """A captured graph with everything known of its tokens, for one layout of inputs."""

    captured: Captured
    findings: Findings
    classified: Classified
    plans: Mapping[int, Plan]
    """By index of the site."""
    inputs: Mapping[str, Tensor]
    """The inputs that were labelled, where the graph does not hold for all of its layout; else empty."""
    rebuilt: list[float] = field(default_factory=list)
    """How far outputs of rebuilt maps were from those of their attentions, each time that was looked at."""
    apart: dict[str, bool] = field(default_factory=dict)
    """By rule set of LRP, whether the relevance of samples was seen to stay apart, once it was looked at."""
    causal: list[frozenset[int]] = field(default_factory=list)
    """The sites of the causal self-attentions, once they were looked for; empty until then."""
    passed_over: tuple[PassedOver, ...] = ()
    """What labels do not tell, with a note for each."""
    drawn_from: Callable[[], None] | None = field(default=None, repr=False)
    """Puts back the random state that the labels were drawn from, where the graph draws random numbers."""

    def same_inputs(self, bound: Mapping[str, Tensor]) -> bool:
        """Whether these are the inputs that were labelled, where that matters."""
        return all(torch.equal(tensor, bound[node]) for node, tensor in self.inputs.items())


def capture_and_label(
    model: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    before: Sequence[tuple[str, Strategy]] = (),
) -> Labelled:
    """Capture a model, and find and classify its attentions: the graph runs once, for both.

    Args and errors as for :func:`fxplain.capture.capture.capture`.
    """
    seen: list[_Seen] = []

    def run(captured: Captured, bound: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        found, outputs = _see(captured, bound)
        seen.append(found)
        return outputs

    captured = capture(model, args, kwargs, before, run)
    return _classified(captured, seen[-1])


def label(captured: Captured, bound: Mapping[str, Tensor]) -> Labelled:
    """Find and classify all attentions of a captured graph on these tensors."""
    return _classified(captured, _see(captured, bound)[0])


class _Seen(NamedTuple):
    """What a run of the graph leaves behind."""

    findings: Findings
    inputs: Mapping[str, Tensor]
    drawn_from: Callable[[], None] | None


def _see(captured: Captured, bound: Mapping[str, Tensor]) -> tuple[_Seen, tuple[Tensor, ...]]:
    check_not_empty(captured, bound)
    written_out(captured.graph, has_transfer_function)
    own = {p.node: bound[p.node].clone() for p in captured.placeholders if p.kind == "input"}
    draws = draws_random_numbers(captured.graph) is not None
    state = random_state() if draws else None
    findings, outputs = find(captured, bound)
    findings.ledger.data_dependent |= draws
    return _Seen(findings, own if captured.specialised else {}, state), outputs


def _classified(captured: Captured, seen: _Seen) -> Labelled:
    return replace(labelled_by(captured, seen.findings, seen.inputs), drawn_from=seen.drawn_from)


def labelled_by(
    captured: Captured, findings: Findings, inputs: Mapping[str, Tensor] = MappingProxyType({})
) -> Labelled:
    """Classify what a labelling run of a captured graph has found; ``inputs`` as in :class:`Labelled`."""
    classified = numbered(classify(findings))
    plans = {site.index: make_plan(site, classified, findings.batch) for site in classified.sites}
    passed = tuple(passed_over(findings, classified.renumber))
    return Labelled(captured, findings, classified, plans, inputs, passed_over=passed)


def check_not_empty(captured: Captured, bound: Mapping[str, Tensor]) -> None:
    for placeholder in captured.placeholders:
        if placeholder.kind == "input" and 0 in bound[placeholder.node].shape[:1]:
            raise InputError(
                f"the input {placeholder.path!r} is empty",
                expected="at least one sample",
                found=str(list(bound[placeholder.node].shape)),
            )
