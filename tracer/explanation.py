"""One explanation: what the graph says of a prediction, a method's answer, and the notes beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor

from fxplain.attention.census import census
from fxplain.attention.labelled import Labelled
from fxplain.attention.layers import Layers, chosen_sites
from fxplain.attention.notes import notes_of
from fxplain.attribution.knock_out import Without
from fxplain.attribution.prediction import Mode, Prediction, aim, run_graph
from fxplain.attribution.scheduled import Explained, Scheduled
from fxplain.attribution.sinks import sink_notes
from fxplain.attribution.table import Method
from fxplain.attribution.unexplained import unexplained
from fxplain.capture.guard import forks_told, untouched
from fxplain.errors import (
    FxplainError,
    MethodError,
    NoAttentionError,
    NonFiniteError,
    UnknownOpError,
    VerificationError,
    first_line,
)
from fxplain.laws.table import shortened
from fxplain.result import Relevance, Result
from fxplain.run.broken_gradient import ended
from fxplain.where import place_of


def explain_labelled(
    labelled: Labelled,
    bound: Mapping[str, Tensor],
    target: Any,
    methods: Sequence[Method],
    output: str | None,
    verified: float,
    layers: Layers | None = None,
    verify: bool = False,
    mode: Mode = "auto",
) -> dict[str, Result | FxplainError]:
    """Explain one batch by several methods: one run of the graph, one target, then each method.

    Args:
        labelled: the graph and its attentions.
        bound: a tensor for each placeholder.
        target, output: what to explain, see :meth:`fxplain.Traced.explain`.
        methods: what to explain it by.
        verified: the difference between graph and model, for the record.
        layers: the layers of attentions that take part; None for all.
        verify: hold rebuilt maps against their attentions' outputs again.
        mode: how schedules are run.

    Returns:
        By name of the method: its result, or the error with which it refuses this model.
    """
    chosen = None if layers is None else chosen_sites(labelled.classified, layers)
    answers: dict[str, Result | FxplainError] = {}
    for libra in sorted({method.libra for method in methods}):
        group = [method for method in methods if method.libra == libra]

        def predicted(
            gradients: bool, rows: bool, libra: bool = libra, group: Sequence[Method] = tuple(group)
        ) -> Prediction:
            if rows:  # other methods go along the graph, and need no labels on the way
                check_understood(labelled)
            values = any(method.values for method in group)
            ran = run_graph(labelled, bound, gradients, libra, rows, verify, callable(target), mode, values)
            return aim(ran, target, output, chosen=chosen, retain=len(group) > 1, mode=mode)

        answers |= _answers(group, predicted, verified)
    return {
        method.name: with_matrix(answers[method.name], labelled, bound, method, layers) for method in methods
    }


def _answers(
    methods: Sequence[Method], predicted: Callable[[bool, bool], Prediction], verified: float
) -> dict[str, Result | FxplainError]:
    """What each method says of one prediction, run with what any of them needs. Where it cannot be had,
    those that need less get one of their own."""
    needs = {(method.gradients, method.attentions) for method in methods}
    try:
        with forks_told():
            prediction = predicted(any(g for g, _ in needs), any(a for _, a in needs))
    except FxplainError as error:
        if len(needs) == 1:
            return {method.name: error for method in methods}
        groups = [[m for m in methods if (m.gradients, m.attentions) == need] for need in sorted(needs)]
        return {
            name: answer for group in groups for name, answer in _answers(group, predicted, verified).items()
        }
    return {method.name: _answer(prediction, method, verified) for method in methods}


def _answer(prediction: Prediction, method: Method, verified: float) -> Result | FxplainError:
    try:
        check_layers(prediction.chosen, method)
        check_mode(prediction.mode, method)
        with forks_told():
            explained = method.explain(prediction)
        return result_of(prediction, method, explained, verified)
    except FxplainError as refusal:
        return refusal


def check_layers(chosen: frozenset[int] | None, method: Method) -> None:
    """Refuse a range of layers for a method that has no use for it."""
    if chosen is not None and not method.attentions:
        raise MethodError(
            f"the method {method.name!r} has no layers to choose from",
            expected="layers= with a method that goes attention by attention",
            found=method.description,
        )


def check_mode(mode: Mode, method: Method) -> None:
    """Refuse a mode that is none, and activation checkpointing for a method that goes its own way."""
    if mode not in get_args(Mode):
        raise MethodError("this is no mode", expected=", ".join(get_args(Mode)), found=repr(mode))
    if mode == "checkpoint" and not isinstance(method.explain, Scheduled):
        raise MethodError(
            f"the method {method.name!r} cannot be had with activation checkpointing",
            expected="a method that carries rows over the attentions, such as relevancy or rollout",
            found=method.description,
            hint='leave mode="checkpoint" out',
        )


def check_understood(labelled: Labelled) -> None:
    """Refuse where labels were lost on the way to an attention, or where there is none."""
    findings = labelled.findings
    reached = [findings.values[site.node] for site in labelled.classified.sites] + list(findings.outputs)
    parts = [part for value in reached for part in (value if isinstance(value, tuple) else (value,))]
    for name in sorted({name for part in parts for name in part.lost}):
        _refuse(labelled, name)
    if not any(site.attends for site in labelled.classified.sites):
        seen = census(findings, labelled.classified.sites)
        raise NoAttentionError(
            "the model has no attention to explain",
            expected="a softmax, or another weighting, of products of queries and keys, times values",
            found="; ".join(f"{e.op} in {e.module or 'the model'}: {e.role}" for e in seen)
            or "no softmax at all",
            hint="fxplain inspect shows the census of what was looked at",
        )


def _refuse(labelled: Labelled, name: str) -> None:
    node = labelled.findings.ledger.remarks.losses[name]
    add = "add a transfer function (docs/add-an-op.md), or report the operation"
    higher = isinstance(node.target, torch._ops.HigherOrderOperator)
    raise UnknownOpError(
        f"token labels were lost at an operation without a transfer function: {node.target}",
        where=place_of(node),
        hint="write it as plain Python, which is followed" if higher else add,
    )


def result_of(prediction: Prediction, method: Method, explained: Explained, verified: float) -> Result:
    """What a method answered with, and all that says what it is worth.

    Raises:
        NonFiniteError: the answer is not finite.
    """
    labelled, resolved = prediction.labelled, prediction.resolved
    if not bool(torch.isfinite(explained.rows).all()):
        raise NonFiniteError(
            "the relevance is NaN or infinite",
            expected="finite maps and gradients",
            found=f"a score of {resolved.scores.detach().abs().max():g}",
            hint="explain the model in a wider dtype, or check its weights; products of rows that are not "
            "normalised double with every attention (rollout divides them)",
        )
    classified = labelled.classified
    return Result(
        method=method.name,
        score=resolved.scores.detach(),
        target=resolved.target,
        output=resolved.output,
        relevance=Relevance.from_rows(explained.rows, classified.spaces),
        relevancy=explained.matrices,
        spaces=classified.spaces,
        streams=classified.streams,
        readout=tuple(tuple((token, 1.0) for _, token in pairs) for pairs in prediction.readout),
        attentions=classified.attentions,
        verified=max(verified, *labelled.rebuilt),
        notes=_notes(prediction, explained, method),
        inputs=explained.inputs,
        aside=explained.aside,
        mode=explained.mode,
        questions=resolved.questions,
        without=Without.of(labelled, prediction.bound, resolved),
    )


def _notes(prediction: Prediction, explained: Explained, method: Method) -> tuple[str, ...]:
    """What a reader of this result must know, each thing once."""
    labelled = prediction.labelled
    notes = [
        *notes_of(labelled, unexplained(prediction)),
        *_passed_over(prediction),
        *explained.notes,
        *_unreached(prediction),
        *_all_zero(explained, method),
        *sink_notes(prediction, explained.rows, method.name),
    ]
    if prediction.chosen is not None:
        whole = sum(site.attends for site in labelled.classified.sites)
        notes.append(f"{len(prediction.chosen)} of {whole} attentions take part (layers=)")
    return tuple(dict.fromkeys(notes))


def _all_zero(explained: Explained, method: Method) -> tuple[str, ...]:
    zero = [str(sample) for sample, row in enumerate(explained.rows) if not bool(row.any())]
    return (f"no token has any relevance by {method.name} (sample {', '.join(zero)})",) if zero else ()


def knocked_out(result: Result) -> tuple[str, ...]:
    """What becomes of each sample's score without its most relevant token; or why that is not known."""
    try:
        lines = str(result.knock_out(1)).splitlines()
    except FxplainError as error:
        return (f"knock-out: {first_line(error)}",)
    if len(lines) == 1:
        return (f"knock-out: {lines[0]}",)
    return shortened([f"knock-out of sample {sample}: {line}" for sample, line in enumerate(lines)])


def with_notes(result: Result, notes: Iterable[str]) -> Result:
    """The result with more notes after its own, each once."""
    return replace(result, notes=tuple(dict.fromkeys((*result.notes, *notes))))


def with_matrix(
    found: Result | FxplainError,
    labelled: Labelled,
    bound: Mapping[str, Tensor],
    method: Method,
    layers: Layers | None,
) -> Result | FxplainError:
    """A result that has rows alone can work out all of R later."""
    if isinstance(found, FxplainError) or found.mode != "rows":
        return found
    return replace(found, later=partial(_matrix, labelled, bound, method, layers, found))


def _matrix(
    labelled: Labelled,
    bound: Mapping[str, Tensor],
    method: Method,
    layers: Layers | None,
    rows: Result,
) -> Tensor:
    """All of R, for an explanation that has read rows alone: the same once more, in matrix mode."""
    own = callable(rows.target)
    target, output = (rows.target, None) if own else (list(rows.target), rows.output)
    with untouched(None):
        found = explain_labelled(labelled, bound, target, [method], output, 0.0, layers, mode="matrix")
    result = found[method.name]
    if isinstance(result, FxplainError):
        raise result
    if not torch.equal(result.score, rows.score):
        raise VerificationError(
            "the relevancy matrix cannot be worked out later: the model or its inputs have changed",
            expected=f"the score that was explained, {rows.score.tolist()}",
            found=str(result.score.tolist()),
            hint='explain again; with mode="matrix" the matrix is worked out at once',
        )
    assert result.relevancy is not None
    return result.relevancy


def _passed_over(prediction: Prediction) -> tuple[str, ...]:
    """Outputs before the explained one, where none was asked for: they lie behind no attention."""
    names, tensors = prediction.labelled.captured.outputs, prediction.run.outputs
    floating = [n for n, tensor in zip(names, tensors, strict=True) if tensor.is_floating_point()]
    name = prediction.resolved.output
    if prediction.output is not None or name == "logits" or name not in floating[1:]:
        return ()
    before = ", ".join(floating[: floating.index(name)])
    return (f"the output {name} is explained: no attention lies behind {before}",)


def _unreached(prediction: Prediction) -> tuple[str, ...]:
    """That the score depends on mixings of tokens alone, if gradients were asked for and that is so."""
    if "gradients" not in vars(prediction):
        return ()
    labelled = prediction.labelled
    taps = {site.tap.name for site in labelled.classified.sites if site.attends}
    if taps & prediction.reached:
        return ()
    if any(gradients.get(tap) is not None for gradients in prediction.gradients for tap in taps):
        return ()
    return (f"the score depends on no attention: {ended(labelled, prediction.resolved.output)}",)
