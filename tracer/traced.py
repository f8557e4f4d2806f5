"""The pipeline, once through: capture, find, classify; then target, gradients, weights, schedule, result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fxplain.attention_graph import attention_graph
from fxplain.attentions import Attention, CensusEntry, Mixing, Stream, TokenSpace
from fxplain.capture import capture
from fxplain.captured import Captured
from fxplain.census import census
from fxplain.classify import Classified, classify
from fxplain.errors import InputError, NoAttentionError, NonFiniteError, TargetError, UnknownOpError
from fxplain.find import Findings, find
from fxplain.guard import untouched
from fxplain.inputs import Layout, normalise
from fxplain.inputs import flatten as flatten_inputs
from fxplain.labels import reads_of
from fxplain.maps import Plan, check_rebuilt, make_plan, per_head, weights_of
from fxplain.method_table import Method, method_named
from fxplain.replay import Replay, gradients_of, replay, tap_of
from fxplain.result import Relevance, Result
from fxplain.schedule import Relevancy, Step, schedule
from fxplain.steps import steps_of
from fxplain.target import Readout, Resolved, resolve
from fxplain.verify import tolerance, verify
from fxplain.where import module_path, source_line

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True)
class Labelled:
    """A captured graph with everything known of its tokens, for one layout of inputs."""

    captured: Captured
    findings: Findings
    classified: Classified
    plans: Mapping[int, Plan]
    """By index of the site."""

    @property
    def reusable(self) -> bool:
        """Whether other inputs of the same layout have the same labels."""
        return not (self.findings.ledger.data_dependent or self.captured.specialised)


def label(captured: Captured, bound: Mapping[str, Tensor]) -> Labelled:
    """Find and classify all attentions of a captured graph on these tensors."""
    _check_not_empty(captured, bound)
    findings = find(captured, bound)
    classified = classify(findings)
    plans = {site.index: make_plan(site, classified, findings.batch) for site in classified.sites}
    return Labelled(captured, findings, classified, plans)


def _check_not_empty(captured: Captured, bound: Mapping[str, Tensor]) -> None:
    for placeholder in captured.placeholders:
        if placeholder.kind == "input" and 0 in bound[placeholder.node].shape[:1]:
            raise InputError(
                f"the input {placeholder.path!r} is empty",
                expected="at least one sample",
                found=str(list(bound[placeholder.node].shape)),
            )


@dataclass(frozen=True)
class Traced:
    """A model that has been captured, and whose attentions have been found and typed. Made by :func:`trace`."""

    model: Any
    _first: Labelled = field(repr=False)
    _layouts: dict[str, Labelled] = field(default_factory=dict, repr=False)

    @property
    def captured(self) -> Captured:
        """The graph that stands for the model."""
        return self._first.captured

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """All attentions, in order of execution."""
        return self._first.classified.attentions

    @property
    def mixings(self) -> tuple[Mixing, ...]:
        """All other steps that move information between tokens."""
        return self._first.classified.mixings

    @property
    def spaces(self) -> tuple[TokenSpace, ...]:
        """Where tokens are born."""
        return self._first.classified.spaces

    @property
    def streams(self) -> tuple[Stream, ...]:
        """What attentions range over."""
        return self._first.classified.streams

    def maps(self, inputs: Any) -> tuple[Tensor, ...]:
        """The attention maps on these inputs, also where the model's attention is fused.

        Returns:
            One tensor [batch, head, query, key] for each of :attr:`attentions`; queries and keys in the order of
            the attention's streams.

        Example:
            >>> model = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
            >>> x = torch.randn(1, 5, 8)
            >>> trace(model, x).maps(x)[0].shape
            torch.Size([1, 2, 5, 5])
        """
        args, kwargs = normalise(inputs)
        with untouched(None):
            labelled, bound, _ = self._for(args, kwargs, False)
            run = replay(labelled.captured, bound, labelled.classified.sites, gradients=False)
            sites = [site for site in labelled.classified.sites if site.role == "attention"]
            return tuple(
                per_head(labelled.plans[site.index], run, attention)
                for site, attention in zip(sites, labelled.classified.attentions, strict=True)
            )

    @cached_property
    def census(self) -> tuple[CensusEntry, ...]:
        """Every softmax-like operation with its role and the reason for it."""
        return census(self._first.findings, self._first.classified.sites)

    @cached_property
    def graph(self) -> nx.MultiDiGraph[str]:
        """Streams and attentions as a graph, see :func:`fxplain.attention_graph.attention_graph`."""
        return attention_graph(self._first.classified, self.captured.outputs)

    def explain(
        self,
        inputs: Any,
        target: Any = None,
        method: str = "relevancy",
        output: str | None = None,
        verify: bool = False,
    ) -> Result:
        """Explain one prediction for each sample of the inputs.

        Args:
            inputs: a tensor, tuple, dict or BatchEncoding, just as the model is called.
            target: what to explain: None for the arg max of every sample; an int, the place on the last axis; a
                tuple that indexes one sample's output, such as (query, class) or (position, token); a tensor or
                list with one target per sample; a callable from the model's output to one score per sample.
            method: one of :func:`fxplain.methods`.
            output: name of the output to explain; ``logits`` or the first floating one by default.
            verify: compare graph and model on these inputs, also where this layout was compared before.

        Raises:
            InputError, TargetError, MethodError, NoAttentionError, UnknownOpError, NonFiniteError,
            VerificationError: see :mod:`fxplain.errors`.
        """
        chosen = method_named(method)
        args, kwargs = normalise(inputs)
        with untouched(None):
            labelled, bound, verified = self._for(args, kwargs, verify)
            return _explain(labelled, bound, target, chosen, output, verified)

    def _for(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], check: bool
    ) -> tuple[Labelled, dict[str, Tensor], float]:
        """The labelled graph for these inputs: a known one of their layout, or a new capture."""
        if self.captured.model is None:
            bound = self.captured.bind(args, kwargs)
            known = self._first if self._first.reusable else label(self.captured, bound)
            return known, bound, self.captured.verified
        _, layout = flatten_inputs(self.captured.model, args, kwargs)
        known = self._layouts.get(_key(layout))
        if known is None or known.captured.specialised:
            captured = capture(self.model, args, kwargs)
            bound = captured.bind(args, kwargs)
            known = label(captured, bound)
            self._layouts[_key(layout)] = known
            return known, bound, captured.verified
        bound = known.captured.bind(args, kwargs)
        verified = verify(known.captured, args, kwargs) if check else known.captured.verified
        if not known.reusable:
            known = label(known.captured, bound)
        return known, bound, verified


def _key(layout: Layout) -> str:
    return f"{layout.args!r} {sorted(layout.kwargs.items())!r} {layout.tensors!r}"


def trace(model: Any, inputs: Any) -> Traced:
    """Capture a model and find its attentions, once.

    Args:
        model: any ``torch.nn.Module`` (or a program saved by ``torch.export.save``, once loaded).
        inputs: a tensor, tuple, dict or BatchEncoding, just as the model is called.

    Raises:
        InputError, CaptureError, VerificationError, NonFiniteError, DeviceError: see :mod:`fxplain.errors`.

    Example:
        >>> model = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> traced = trace(model, torch.randn(1, 5, 8))
        >>> [(a.kind, a.queries.name, a.queries.size, a.heads) for a in traced.attentions]
        [('self', 'src', 5, 2)]
    """
    args, kwargs = normalise(inputs)
    captured = model if isinstance(model, Captured) else capture(model, args, kwargs)
    with untouched(None):
        labelled = label(captured, captured.bind(args, kwargs))
    return Traced(
        captured.model if captured.model is not None else model, labelled, _known(captured, labelled)
    )


def _known(captured: Captured, labelled: Labelled) -> dict[str, Labelled]:
    return {_key(captured.layout): labelled}


def explain(
    model: Any, inputs: Any, target: Any = None, method: str = "relevancy", output: str | None = None
) -> Result:
    """Explain one prediction of any PyTorch transformer: :func:`trace`, then :meth:`Traced.explain`.

    Example:
        >>> model = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> result = explain(model, torch.randn(1, 5, 8), target=(0, 3))
        >>> result.relevance["src"].shape
        torch.Size([1, 5])
    """
    method_named(method)  # a wrong name is told before the model is captured
    return trace(model, inputs).explain(inputs, target, method, output)


def _explain(
    labelled: Labelled,
    bound: Mapping[str, Tensor],
    target: Any,
    method: Method,
    output: str | None,
    verified: float,
) -> Result:
    _check_understood(labelled)
    captured, findings, sites = labelled.captured, labelled.findings, labelled.classified.sites
    needs_gradients = method.gradients or callable(target)
    run = replay(captured, bound, sites, needs_gradients)
    check_rebuilt(labelled.plans, run, 10 * tolerance(run.outputs))
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
    return _result(labelled, resolved, relevancies, method, verified, steps)


def _check_understood(labelled: Labelled) -> None:
    """Refuse where labels were lost on the way to an attention, or where there is none."""
    findings = labelled.findings
    if not labelled.classified.attentions:
        seen = census(findings, labelled.classified.sites)
        raise NoAttentionError(
            "the model has no attention to explain",
            expected="a softmax, or another weighting, of products of queries and keys, times values",
            found="; ".join(f"{e.op} in {e.module or 'the model'}: {e.role}" for e in seen)
            or "no softmax at all",
            hint="fxplain inspect shows the census of what was looked at",
        )
    values = findings.values
    reached = [values[site.node] for site in labelled.classified.sites] + list(findings.outputs)
    lost = {name for value in reached if not isinstance(value, tuple) for name in value.lost}
    for name in sorted(lost):
        _refuse(labelled, name)


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
    """Where the batch axis of a map was read off its shape: the first score must not reach other samples there."""
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
    everything = torch.arange(classified.tokens)
    rows, matrices = [], []
    readout = tuple(_renumbered(classified, row) for row in resolved.rows)
    for sample, (relevancy, pairs) in enumerate(zip(relevancies, readout, strict=True)):
        rows.append(_row(relevancy, pairs, behind, classified.tokens))
        matrices.append(_matrix(relevancy, everything, steps, sample, pairs, classified))
    relevance = Relevance.from_rows(torch.stack(rows), classified.spaces)
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


def _matrix(
    relevancy: Relevancy,
    everything: Tensor,
    steps: Sequence[tuple[Step, int]],
    sample: int,
    pairs: Readout,
    classified: Classified,
) -> Tensor:
    """R after all steps for one explained sample; spaces read from another sample come from there."""
    full = relevancy.rows(everything, frozenset(step.index for step, _ in steps))
    matrix = full[min(sample, relevancy.batch - 1)]
    for owner, token in pairs:
        if owner != sample:
            space = next(s for s in classified.spaces if s.start <= token < s.start + s.size)
            matrix = matrix.clone()
            matrix[space.start : space.start + space.size] = full[
                owner, space.start : space.start + space.size
            ]
    return matrix


def _notes(labelled: Labelled) -> tuple[str, ...]:
    notes = list(labelled.captured.notes)
    if labelled.captured.strategy == "record":
        notes.append("captured by recording one run: the graph holds for this input only")
    for mixing in labelled.classified.mixings:
        notes.append(
            f"{mixing.op} in {mixing.module or 'the model'} mixes tokens: {mixing.keys.name} -> {mixing.queries.name}"
        )
    for node in labelled.findings.ledger.summaries:
        notes.append(
            f"{module_path(node) or node.name} sums tokens without a token-to-token map: relevancy does not pass it"
        )
    return tuple(dict.fromkeys(notes))
