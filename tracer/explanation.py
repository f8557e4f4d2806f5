"""One explanation: target, gradients, weights between tokens, schedule, and the rows that are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fxplain.census import census
from fxplain.classify import Classified
from fxplain.errors import NoAttentionError, NonFiniteError, TargetError, UnknownOpError
from fxplain.labelled import Labelled
from fxplain.labels import reads_of
from fxplain.maps import Plan, check_rebuilt, weights_of
from fxplain.method_table import Method
from fxplain.replay import Replay, gradients_of, replay, tap_of
from fxplain.result import Relevance, Result
from fxplain.schedule import Relevancy, Step, schedule
from fxplain.steps import steps_of
from fxplain.target import Readout, Resolved, resolve
from fxplain.verify import tolerance
from fxplain.where import module_path, source_line


def explain_labelled(
    labelled: Labelled,
    bound: Mapping[str, Tensor],
    target: Any,
    method: Method,
    output: str | None,
    verified: float,
) -> Result:
    """Explain one batch: replay, resolve the target, gradients, weights, schedule, read.

    Args:
        labelled: the graph and its attentions.
        bound: a tensor for each placeholder.
        target, output: what to explain, see :meth:`fxplain.Traced.explain`.
        method: the table of rules.
        verified: the difference between graph and model, for the record.
    """
    _check_understood(labelled)
    captured, findings, sites = labelled.captured, labelled.findings, labelled.classified.sites
    needs_gradients = method.gradients or callable(target)
    run = replay(captured, bound, sites, needs_gradients)
    rebuilt = check_rebuilt(labelled.plans, run, 10 * tolerance(run.outputs))
    with torch.set_grad_enabled(needs_gradients):
        resolved = resolve(
            run.outputs, findings.outputs, captured.outputs, target, output, findings.batch, captured.rebuild
        )
        scores = resolved.scores.unbind()
        total = resolved.scores.sum()
    if needs_gradients and not resolved.scores.requires_grad:
        raise TargetError(
            "the score depends on no attention",
            where=f"output {resolved.output!r}",
            expected="an output behind an attention",
            found=f"no path from {len(labelled.classified.attentions)} attentions to the score",
            hint="explain another output= or target=",
        )
    _check_readout(labelled, resolved)
    steps = steps_of(labelled.classified, labelled.plans)
    if _separable(labelled, resolved) and _assumptions_hold(labelled, run, scores):
        relevancies = [_relevancy(labelled, run, total, method, steps, retain=False)]
        relevancies *= len(resolved.rows)
    else:
        relevancies = [_relevancy(labelled, run, score, method, steps, retain=True) for score in scores]
    return _result(labelled, resolved, relevancies, method, max(verified, rebuilt), steps)


def _check_understood(labelled: Labelled) -> None:
    """Refuse where labels were lost on the way to an attention, or where there is none."""
    findings = labelled.findings
    reached = [findings.values[site.node] for site in labelled.classified.sites] + list(findings.outputs)
    parts = [part for value in reached for part in (value if isinstance(value, tuple) else (value,))]
    for name in sorted({name for part in parts for name in part.lost}):
        _refuse(labelled, name)
    if not labelled.classified.attentions:
        seen = census(findings, labelled.classified.sites)
        raise NoAttentionError(
            "the model has no attention to explain",
            expected="a softmax, or another weighting, of products of queries and keys, times values",
            found="; ".join(f"{e.op} in {e.module or 'the model'}: {e.role}" for e in seen)
            or "no softmax at all",
            hint="fxplain inspect shows the census of what was looked at",
        )


def _refuse(labelled: Labelled, name: str) -> None:
    node = labelled.findings.ledger.losses[name]
    raise UnknownOpError(
        f"token labels were lost at an operation without a transfer function: {node.target}",
        where=f"node {node.name}, module {module_path(node) or '(the model itself)'}, {source_line(node)}",
        hint="add a transfer function (docs/add-an-op.md), or report the operation",
    )


def _check_readout(labelled: Labelled, resolved: Resolved) -> None:
    if not all(resolved.rows):
        raise TargetError(
            "the explained output belongs to no token, so there is no row of the relevancy to read",
            where=f"output {resolved.output!r}",
            expected="an output whose elements belong to tokens, or pool them",
            found="an output whose token labels are gone",
            hint="explain another output=, or a callable target that sums elements of one",
        )


def _separable(labelled: Labelled, resolved: Resolved) -> bool:
    """Whether one backward pass of the summed scores serves all samples: none touches another's maps."""
    if len(resolved.rows) == 1:
        return True
    foreign = any(owner != sample for sample, row in enumerate(resolved.rows) for owner, _ in row)
    return not foreign and all(plan.sampled for plan in labelled.plans.values())


def _assumptions_hold(labelled: Labelled, run: Replay, scores: Sequence[Tensor]) -> bool:
    """Where the batch axis of a map was read off its shape: the first score must not reach other samples
    there."""
    assumed = [plan for plan in labelled.plans.values() if plan.assumed]
    if not assumed or len(scores) == 1:
        return True
    tapped = {tap_of(plan.site).name: run.tapped[tap_of(plan.site).name] for plan in assumed}
    gradients = gradients_of(scores[0], tapped, retain=True)
    for plan in assumed:
        gradient = gradients.get(tap_of(plan.site).name)
        if gradient is None or not gradient.any():
            continue
        axis, own = plan.batch_line()
        if bool(gradient.narrow(axis, own, gradient.shape[axis] - own).any()):
            return False
    return True


def _relevancy(
    labelled: Labelled,
    run: Replay,
    score: Tensor,
    method: Method,
    steps: Sequence[tuple[Step, int]],
    retain: bool,
) -> Relevancy:
    """The relevancy of one backward pass."""
    gradients = gradients_of(score, run.tapped, retain) if method.gradients else None
    if gradients is not None:
        for name, gradient in gradients.items():
            if gradient is not None and not bool(torch.isfinite(gradient).all()):
                raise NonFiniteError("a gradient is NaN or infinite", where=f"node {name}")
    weights = {
        index: weights_of(plan, run, gradients, method.head_mean) for index, plan in labelled.plans.items()
    }
    blocks = [step_weights(weights[index], labelled.plans[index], step) for step, index in steps]
    return schedule([step for step, _ in steps], blocks, labelled.classified.tokens, method.rules)


def step_weights(weights: Tensor, plan: Plan, step: Step) -> Tensor:
    """The columns of a site's weights that one step takes (a mixed site makes two steps)."""
    if len(step.keys) == len(plan.keys):
        return weights
    return weights[..., torch.searchsorted(plan.keys, step.keys).to(weights.device)]


def _result(
    labelled: Labelled,
    resolved: Resolved,
    relevancies: Sequence[Relevancy],
    method: Method,
    verified: float,
    steps: Sequence[tuple[Step, int]],
) -> Result:
    classified = labelled.classified
    read = reads_of(resolved.slots)
    behind = frozenset(step.index for step, index in steps if index in read)
    everything = frozenset(step.index for step, _ in steps)
    rows, matrices = [], []
    readout = tuple(_renumbered(classified, row) for row in resolved.rows)
    for sample, (relevancy, pairs) in enumerate(zip(relevancies, readout, strict=True)):
        rows.append(_row(relevancy, pairs, behind, classified.tokens))
        if sample == 0 or relevancy is not relevancies[sample - 1]:
            full = relevancy.rows(torch.arange(classified.tokens), everything)
        matrices.append(_matrix(full, sample, pairs, classified))
    read_rows = torch.stack(rows)
    if not bool(torch.isfinite(read_rows).all()):
        raise NonFiniteError(
            "the relevance is NaN or infinite",
            expected="finite maps and gradients",
            found=f"a score of {resolved.scores.detach().abs().max():g}",
            hint="the model's values explode: explain it in a wider dtype, or check its weights",
        )
    relevance = Relevance.from_rows(read_rows, classified.spaces)
    return Result(
        method=method.name,
        score=resolved.scores.detach(),
        target=resolved.target,
        output=resolved.output,
        relevance=relevance,
        relevancy=torch.stack(matrices),
        spaces=classified.spaces,
        streams=classified.streams,
        readout=tuple(tuple((token, 1.0) for _, token in pairs) for pairs in readout),
        attentions=classified.attentions,
        verified=verified,
        notes=_notes(labelled),
    )


def _renumbered(classified: Classified, row: Readout) -> Readout:
    return tuple((sample, int(classified.renumber[token])) for sample, token in row)


def _row(relevancy: Relevancy, pairs: Readout, behind: frozenset[int], tokens: int) -> Tensor:
    """The readout: the sum of the rows that carry the score, each with its own entry set aside."""
    total = None
    for sample, token in pairs:
        row = relevancy.rows(torch.tensor([token]), behind)[min(sample, relevancy.batch - 1), 0].clone()
        row[token] = 0
        total = row if total is None else total + row
    assert total is not None
    return total


def _matrix(full: Tensor, sample: int, pairs: Readout, classified: Classified) -> Tensor:
    """R after all steps for one explained sample; spaces read from another sample come from there."""
    matrix = full[min(sample, len(full) - 1)]
    for owner, token in pairs:
        if owner != sample:
            space = next(s for s in classified.spaces if s.start <= token < s.start + s.size)
            own = slice(space.start, space.start + space.size)
            matrix = matrix.clone()
            matrix[own] = full[owner, own]
    return matrix


def _notes(labelled: Labelled) -> tuple[str, ...]:
    notes = list(labelled.captured.notes)
    if labelled.captured.strategy == "record":
        notes.append("captured by recording one run: the graph holds for this input only")
    for mixing in labelled.classified.mixings:
        streams = f"{mixing.keys.name} -> {mixing.queries.name}"
        notes.append(f"{mixing.op} in {mixing.module or 'the model'} mixes tokens: {streams}")
    for node in labelled.findings.ledger.summaries:
        where = module_path(node) or node.name
        notes.append(f"{where} sums tokens without a token-to-token map: relevancy does not pass it")
    notes += _dropped(labelled)
    return tuple(dict.fromkeys(notes))


def _dropped(labelled: Labelled) -> list[str]:
    """Additions whose second operand had attended, and whose increments are not followed any further."""
    attending = {site.index for site in labelled.classified.sites if site.role == "attention"}
    nodes = [node for node, slot in labelled.findings.ledger.dropped if slot.reads & attending]
    return [
        f"{module_path(node) or node.name} adds different tokens: only the first's relevancy goes on"
        for node in nodes
    ]
