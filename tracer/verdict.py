"""Is a model understood? One verdict, line by line, on everything that an explanation rests on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx

from fxplain.attention.records import Attention, CensusEntry, Mixing
from fxplain.errors import FxplainError, NoAttentionError, UnknownOpError, VerificationError
from fxplain.labels.call import op_name
from fxplain.laws.table import LAWS, Judgement, shortened
from fxplain.ops.creation import MADE
from fxplain.result import Result
from fxplain.run.wishes import LARGEST
from fxplain.traced import Traced, trace

Outcome = Literal["ok", "failed", "not applicable"]
Answer = Literal["explained", "no attention", "refused"]

NEXT = (
    "next: an explanation may be wrong from there on; please report the model with this line (docs/laws.md)"
)
"""What to do where a law is broken."""

NAMES = ("graph", "census", "labels", "attentions", "maps", "relevancy", *(law.name for law in LAWS))
"""What is looked at, in this order."""


@dataclass(frozen=True)
class Finding:
    """One line of a verdict."""

    name: str
    """One of ``graph``, ``census``, ``labels``, ``attentions``, ``maps``, ``relevancy``, or of a law."""
    outcome: Outcome
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """What holds for one model on one input, and what does not. Made by :func:`check`."""

    answer: Answer
    findings: tuple[Finding, ...]
    error: FxplainError | None = field(default=None, repr=False)
    """Why the model was refused."""
    traced: Traced | None = field(default=None, repr=False)
    """The traced model, unless it could not be captured."""
    result: Result | None = field(default=None, repr=False)
    """The explanation that was looked at, if there is one."""

    @property
    def understood(self) -> bool:
        """Whether nothing failed. A model without attention is understood if every operation in it is."""
        return all(finding.outcome != "failed" for finding in self.findings)

    def finding(self, name: str) -> Finding:
        """The line of that name."""
        return next(finding for finding in self.findings if finding.name == name)

    def __str__(self) -> str:
        width = max(len(name) for name in NAMES)
        heads = [(f"{f.name:<{width}}  {f.outcome:<14}  ", f.sentence) for f in self.findings]
        lines = [head + text.replace("\n", "\n" + " " * len(head)) for head, text in heads]
        return "\n".join([f"{self.answer}, {'' if self.understood else 'not '}understood", *lines])


def check(model: Any, inputs: Any, target: Any = None, output: str | None = None) -> Verdict:
    """Say whether a model is understood on this input: what holds, what does not, and why.

    What is looked at:

    * ``graph``: the captured graph computes what the model computes;
    * ``census``: every softmax-like operation has a role;
    * ``labels``: labelled data met no operation without a transfer function;
    * ``attentions``: every attention has a kind, and its tokens trace back to inputs or parameters;
    * ``maps``: rebuilt maps reproduce the output of their attention;
    * ``relevancy``: that of one explanation is finite, not negative and not all zero;
    * each law: what labels say is what the graph does, seen by running it (docs/laws.md).

    A model that is refused fails at the line the refusal belongs to.

    Args:
        model: any ``torch.nn.Module``, as for :func:`fxplain.trace`.
        inputs: a tensor, tuple, dict or BatchEncoding, just as the model is called.
        target, output: what is explained to see the relevancy, as for :meth:`fxplain.Traced.explain`. Without
            a target it is the largest element of the output; where that is one of a token that sees itself
            alone, the last token's largest.

    Returns:
        The verdict; errors of fxplain are in it. Errors that are none of fxplain's are raised: they are bugs.

    Example:
        >>> import torch
        >>> model = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0).eval()
        >>> verdict = check(model, torch.randn(1, 5, 8))
        >>> verdict.answer, verdict.understood
        ('explained', True)
        >>> verdict.finding("attentions").sentence
        '1 self'
        >>> check(torch.nn.Linear(8, 3), torch.randn(1, 8)).answer
        'no attention'
    """
    try:
        traced = trace(model, inputs)
    except FxplainError as error:
        return Verdict("refused", _complete([_failed("graph", str(error))]), error)
    findings = [_graph(traced), _census(traced), _labels(traced)]
    try:
        result = traced.explain(inputs, LARGEST if target is None else target, output=output)
        if target is None and _first_alone(result):
            result = traced.explain(inputs, (-1,), output=output)
    except NoAttentionError:
        return Verdict("no attention", _complete(findings), None, traced)
    except FxplainError as error:
        return Verdict("refused", _refused(findings, traced, error), error, traced)
    findings += [_attentions(traced), _maps(traced, result), _relevancy(traced, result)]
    findings += _laws(traced, inputs, result)
    return Verdict("explained", tuple(findings), None, traced, result)


def _first_alone(result: Result) -> bool:
    """Whether nothing is relevant to a place of the output that was chosen among others: a first token may
    see none but itself, the last one sees all."""
    chosen = all(isinstance(target, tuple) and len(target) > 1 for target in result.target)
    return chosen and any(not bool(row.any()) for row in _rows(result))


def _rows(result: Result) -> Tensor:
    """The relevance of all tokens: [batch, tokens]."""
    return torch.cat([values.detach() for values in result.relevance.values()], -1)


def _refused(findings: list[Finding], traced: Traced, error: FxplainError) -> tuple[Finding, ...]:
    """The findings so far, and the refusal at the line that it belongs to."""
    if isinstance(error, UnknownOpError):
        return _complete([*findings[:2], _failed("labels", str(error))])
    known = [*findings, _attentions(traced)] if attending(traced) else findings
    place = "maps" if isinstance(error, VerificationError) else "relevancy"
    return _complete([*known, _failed(place, str(error))])


def _complete(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """All lines in order; those that were not reached do not apply."""
    known = {finding.name: finding for finding in findings}
    reason = "the model was refused before" if any(f.outcome == "failed" for f in known.values()) else ""
    return tuple(
        known.get(name, Finding(name, "not applicable", reason or "there is no attention")) for name in NAMES
    )


def _failed(name: str, sentence: str) -> Finding:
    return Finding(name, "failed", sentence)


def _judged(name: str, problems: Iterable[str], fine: str) -> Finding:
    found = list(problems)
    return _failed(name, "\n".join(found)) if found else Finding(name, "ok", fine)


def _graph(traced: Traced) -> Finding:
    captured = traced.captured
    how = f"captured by {captured.strategy}; graph and model differ by {captured.verified:.1e} at most"
    return Finding("graph", "ok", how)


def _census(traced: Traced) -> Finding:
    losses = set(traced.lost)
    entries = [entry for entry in traced.census if entry.node not in losses]
    problems = (_told(entry) for entry in entries if _unclear(entry, traced))
    roles = [e.role if e.role == "attention" else f"{e.role} ({e.reason})" for e in entries]
    return _judged("census", problems, _counted(roles) or "nothing in the model looks like attention")


def _unclear(entry: CensusEntry, traced: Traced) -> bool:
    """A softmax-like operation that nothing explains: without a role, or said to be unused but used."""
    if entry.role == "unknown":
        return True
    return entry.role == "unused" and _reaches_output(traced.captured.graph.graph, entry.node)


def _reaches_output(graph: fx.Graph, name: str) -> bool:
    reached = {name}
    for node in graph.nodes:
        if any(used.name in reached for used in node.all_input_nodes):
            reached.add(node.name)
    return "output" in reached


def _told(entry: CensusEntry) -> str:
    where = f"node {entry.node}, module {entry.module or '(the model itself)'}, {entry.source}"
    return f"{entry.op}: {entry.role}, {entry.reason} ({where})"


def _labels(traced: Traced) -> Finding:
    losses = set(traced.lost)
    problems = (_told(entry) for entry in traced.census if entry.node in losses)
    return _judged("labels", problems, "no token label was lost")


def attending(traced: Traced) -> list[Attention | Mixing]:
    """The steps that add to tokens: attentions, and sampling at points that tokens ask for."""
    return [step for step in traced.steps if step.kind is not None]


def _attentions(traced: Traced) -> Finding:
    fine = _counted(str(step.kind).replace("_", "-") for step in attending(traced))
    return _judged("attentions", untraceable(traced), fine)


def untraceable(traced: Traced) -> Iterator[str]:
    """What is wrong with the tokens of attentions: none at all, or of no input nor parameter."""
    rooted = _rooted(traced)
    for step in attending(traced):
        for side, stream in (("queries", step.queries), ("keys", step.keys)):
            where = f"{side} of {step.name} (node {step.node})"
            if not stream.size:
                yield f"the {where} have no tokens"
            for name in stream.spaces:
                if name not in rooted:
                    yield f"the {where} come from {name}, which is no input, parameter or mixing of them"


def _rooted(traced: Traced) -> set[str]:
    """The token spaces of inputs, parameters and first states (zeros, noise), and those mixed from these."""
    roots = {placeholder.path for placeholder in traced.captured.placeholders}
    roots |= {node.name for node in traced.captured.graph.graph.nodes if op_name(node) in MADE}
    rooted = {space.name for space in traced.spaces if space.origin != "mixing" and space.source in roots}
    made = {space.name for space in traced.spaces if space.origin == "mixing"}
    for step in traced.steps:  # attention that no query asks for makes tokens too
        if rooted.issuperset(step.keys.spaces):
            rooted.update(step.queries.spaces if isinstance(step, Mixing) else made & {*step.queries.spaces})
    return rooted


def _maps(traced: Traced, result: Result) -> Finding:
    fused = [attention for attention in traced.attentions if attention.fused]
    if not fused:
        return Finding("maps", "ok", "every map is a value of the graph itself")
    fine = (
        f"{len(fused)} of {len(traced.attentions)} maps are rebuilt, and reproduce the attention's own output"
    )
    return Finding("maps", "ok", f"{fine}; the largest difference is {result.verified:.1e}")


def _relevancy(traced: Traced, result: Result) -> Finding:
    values = _rows(result)
    problems = list(_wrong(values, result.relevancy))
    empty = [str(sample) for sample, row in enumerate(values) if not bool(row.any())]
    if empty and not problems and not any(step.keys.size > 1 for step in attending(traced)):
        return Finding("relevancy", "not applicable", "no query has more than one key: nothing is weighed")
    if empty:
        problems.append(f"the relevance is all zero (of sample {', '.join(empty)})")
    fine = f"finite, not negative, not zero: {values.shape[1]} tokens, the largest has "
    return _judged("relevancy", problems, fine + f"{float(values.max()):.2g}")


def _wrong(values: Tensor, matrix: Tensor | None) -> Iterator[str]:
    for name, tensor in (("relevance", values), ("relevancy matrix", matrix)):
        if tensor is None:
            continue
        if not bool(tensor.isfinite().all()):
            yield f"the {name} is not finite"
        elif bool((tensor < 0).any()):
            yield f"the {name} is negative: {float(tensor.min()):.2g} at the lowest"


def _laws(traced: Traced, inputs: Any, result: Result) -> list[Finding]:
    """A line for each law; one that a model cannot be held against says why. Errors that are none of
    fxplain's are bugs, and are raised."""
    try:
        return [_law(found) for found in traced.laws(inputs, result)]
    except FxplainError as error:
        why = f"it could not be held against this model: {type(error).__name__}: {error}"
        return [Finding(law.name, "not applicable", why) for law in LAWS]


def _law(found: Judgement) -> Finding:
    fine = found.law.claim
    if found.set_aside:
        places = "place" if len(found.set_aside) == 1 else "places"
        fine += f"; {len(found.set_aside)} {places} set aside: {found.set_aside[0]}"
    broken = shortened(found.broken)
    return _judged(found.law.name, (*broken, NEXT) if broken else (), fine)


def _counted(names: Iterable[str]) -> str:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return "; ".join(f"{count} {name}" for name, count in counts.items())
