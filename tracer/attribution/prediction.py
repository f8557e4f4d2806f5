"""One prediction to be explained: the graph run on the inputs, its target, and what methods ask of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, fx

from fxplain.attention.labelled import Labelled
from fxplain.attention.plan import make_plan
from fxplain.attribution.frame import frame_of
from fxplain.capture.verify import tolerance
from fxplain.errors import NonFiniteError, TargetError, UnknownOpError
from fxplain.labels.labels import reads_of
from fxplain.maps.weights import check_rebuilt
from fxplain.run.broken_gradient import ended, origin
from fxplain.run.checkpoint import checkpointed
from fxplain.run.entries import where_missing
from fxplain.run.libra import balanced
from fxplain.run.replay import NO_SURROGATES, Gradients, Replay, Surrogates, replay
from fxplain.run.target import Readout, Resolved, choose_output, default_output, resolve
from fxplain.schedule.rules_over_steps import Step
from fxplain.schedule.steps import steps_of
from fxplain.where import place_of

Mode = Literal["auto", "rows", "matrix", "checkpoint"]
"""Single rows of R, all of it, or what is cheaper and can be had; rows with activation checkpointing."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """One batch, run and with its target resolved. All methods that are compared share it."""

    labelled: Labelled
    bound: Mapping[str, Tensor]
    """A tensor for each placeholder of the graph."""
    run: Replay
    """With gradients from the first attention on, if any method wants them."""
    resolved: Resolved
    passes: tuple[Tensor, ...]
    """The scores to run backward from: their sum where that serves all samples, else one by one."""
    output: str | None
    """The output that was asked for."""
    surrogates: Surrogates
    """What runs in place of some operations, so that gradients are balanced; none without ``+libra``."""
    chosen: frozenset[int] | None = None
    """Sites of the attentions that a range of layers leaves; None for all."""
    retain: bool = False
    """Whether the graph is kept after a backward pass, for the next method."""
    mode: Mode = "auto"
    """How schedules are to be run."""
    shared: dict[str, Any] = field(default_factory=dict)
    """What one method has worked out and others can use, by a name of theirs."""
    reached: set[str] = field(default_factory=set)
    """The nodes with a gradient, as far as gradients were worked out."""
    given: tuple[Gradients, ...] | None = None
    """:attr:`gradients`, where they were had together with those of other targets."""

    @property
    def batch(self) -> int:
        """How many samples are explained."""
        return len(self.resolved.rows)

    @cached_property
    def steps(self) -> tuple[tuple[Step, int], ...]:
        """Steps in execution order, each with the index of its site; attentions of other layers left out."""
        steps = steps_of(self.labelled.classified, self.labelled.plans)
        if self.chosen is None:
            return tuple(steps)
        mixing = {site.index for site in self.labelled.classified.sites if not site.attends}
        return only(steps, self.chosen | mixing)

    @cached_property
    def gradients(self) -> tuple[Gradients, ...]:
        """The gradients of each of :attr:`passes` to the maps and outputs of all sites.

        Raises:
            NonFiniteError: one of them is NaN or infinite.
        """
        found = list(self.given or ())
        for place, score in enumerate(self.passes[len(found) :], len(found)):
            retain = self.retain or place + 1 < len(self.passes)
            found.append(self.run.gradients(score, retain, self._check_finite))
        for gradients in self.given or ():
            for name in self.run.tapped:
                self._check_finite(name, gradients.get(name))
        if self.run.entries and not any(g.get(name) is not None for g in found for name in self.run.tapped):
            raise _unreached(self.labelled, self.resolved.output)
        return tuple(found)

    def _check_finite(self, name: str, gradient: Tensor | None) -> None:
        if gradient is None:
            return
        self.reached.add(name)
        if bool(torch.isfinite(gradient).all()):
            return
        nodes = self.labelled.captured.graph.graph.nodes
        node = origin(self.labelled, self.bound, self.surrogates, self.resolved) or next(
            node for node in nodes if node.name == name
        )
        raise NonFiniteError(
            "the gradient of the score is NaN or infinite",
            where=place_of(node),
            expected="finite gradients",
            found=f"{int((~gradient.isfinite()).sum())} of {gradient.numel()} entries at node {name} are not",
            hint="the derivative of this operation is not finite in the model itself (an overflow beside a "
            "mask, a root of 0): explain another target or output, or a wider dtype",
        )

    def behind(self, steps: Sequence[tuple[Step, int]]) -> frozenset[int]:
        """Those of some steps that lie behind the node where R is read."""
        sites = reads_of(self.resolved.slots)
        return frozenset(step.index for step, site in steps if site in sites)

    def per_sample(self, of_passes: Sequence[Any]) -> list[Any]:
        """What belongs to each sample, of one value for each pass."""
        return list(of_passes) * (self.batch // len(of_passes))

    @cached_property
    def readout(self) -> tuple[Readout, ...]:
        """Per sample the rows that carry its score, as pairs (sample, token) in the users' numbering."""
        renumber = self.labelled.classified.renumber
        return tuple(
            tuple((sample, int(renumber[token])) for sample, token in row) for row in self.resolved.rows
        )


@dataclass(frozen=True, eq=False)
class Ran:
    """The graph run on one batch, for whatever target."""

    labelled: Labelled
    bound: Mapping[str, Tensor]
    run: Replay
    surrogates: Surrogates
    tracked: bool
    """Whether gradients can be taken."""
    rows: bool
    """Whether methods read rows of attentions."""


def run_graph(
    labelled: Labelled,
    bound: Mapping[str, Tensor],
    gradients: bool,
    libra: bool = False,
    rows: bool = True,
    verify: bool = False,
    own_scores: bool = False,
    mode: Mode = "auto",
    values: bool = False,
) -> Ran:
    """Run the graph, with gradients to attentions if methods want them; those that read no ``rows``
    differentiate by themselves, and to resolve targets that are functions (``own_scores``) takes some, too.
    The ``values`` of all nodes are kept where methods want them.

    Maps that are rebuilt are held against their attentions' outputs the first time, and to ``verify``.

    Raises:
        VerificationError, UnknownOpError: see :mod:`fxplain.errors`.
    """
    if gradients:
        _check_differentiable(labelled.findings.ledger.without_gradient)
    surrogates = balanced(labelled) if libra else NO_SURROGATES
    tracked = (gradients and rows) or own_scores or _assumes(labelled)
    plain = gradients and rows and not libra and not own_scores
    sites = labelled.classified.sites
    if mode == "checkpoint":
        shapes = labelled.findings.ledger.shapes
        run = checkpointed(labelled.captured, bound, sites, shapes, tracked, surrogates)
    else:
        entries = where_missing(labelled, bound) if plain else None
        run = replay(labelled.captured, bound, sites, tracked, surrogates, entries, values and not libra)
    if verify or not labelled.rebuilt:
        labelled.rebuilt.append(check_rebuilt(labelled.plans, run, 10 * tolerance(run.outputs)))
    return Ran(labelled, bound, run, surrogates, tracked, rows)


def aim(ran: Ran, target: Any, output: str | None, **options: Any) -> Prediction:
    """Resolve one target of a run, which must have rows to read if any method reads rows.

    Raises:
        TargetError, NonFiniteError: see :mod:`fxplain.errors`.
    """
    labelled, run = ran.labelled, ran.run
    captured, findings = labelled.captured, labelled.findings
    wanted = output_of(ran, output)
    frame = None
    if not callable(target):
        place = choose_output(captured.outputs, run.outputs, wanted)
        frame = frame_of(labelled, ran.bound, run.outputs, place)
    with torch.set_grad_enabled(ran.tracked):
        resolved = resolve(
            run.outputs,
            findings.outputs,
            captured.outputs,
            target,
            wanted,
            findings.batch,
            captured.rebuild,
            frame,
        )
        scores, total = resolved.scores.unbind(), resolved.scores.sum()
    if ran.tracked and ran.rows and not resolved.scores.requires_grad:
        raise _unreached(labelled, resolved.output)
    if ran.rows:
        _check_readout(resolved)
    if _assumes(labelled) and resolved.scores.requires_grad:
        labelled = _without_wrong_assumptions(labelled, run, scores)
    passes = (total,) if _separable(labelled, resolved) else scores
    return Prediction(
        labelled, ran.bound, run, resolved, passes, output, surrogates=ran.surrogates, **options
    )


def output_of(ran: Ran, output: str | None) -> str | None:
    """The output that is explained: the one that is named, else the one that is meant by none."""
    labelled = ran.labelled
    attending = frozenset(site.index for site in labelled.classified.sites if not site.makes_tokens)
    names, found = labelled.captured.outputs, labelled.findings.outputs
    return output or default_output(names, ran.run.outputs, found, attending)


def _unreached(labelled: Labelled, output: str) -> TargetError:
    return TargetError(
        "the score depends on no attention",
        where=f"output {output!r}",
        expected="an output behind an attention",
        found=ended(labelled, output),
        hint="explain another output= or target=",
    )


def _assumes(labelled: Labelled) -> bool:
    """Whether the samples of some map are read off its shape alone."""
    return labelled.findings.batch > 1 and any(plan.assumed for plan in labelled.plans.values())


def _check_differentiable(blocked: Sequence[fx.Node]) -> None:
    if blocked:
        node = blocked[0]
        raise UnknownOpError(
            f"no gradient passes an operation: {node.target}",
            where=place_of(node),
            expected="operations with a derivative, for a method with gradients",
            found=f"{len(blocked)} operations without",
            hint="explain the model before it is quantised, or take a method without gradients (rollout)",
        )


def only(steps: Sequence[tuple[Step, int]], sites: frozenset[int]) -> tuple[tuple[Step, int], ...]:
    """The steps of some sites alone, numbered anew; what they read of others is left out."""
    numbers: dict[int, int] = {}
    kept: list[tuple[Step, int]] = []
    for step, site in steps:
        if site not in sites:
            continue
        numbers[step.index] = len(kept)
        reads = [
            frozenset(numbers[r] for r in old if r in numbers) for old in (step.query_reads, step.key_reads)
        ]
        kept.append((Step(len(kept), step.queries, step.keys, step.kind, reads[0], reads[1]), site))
    return tuple(kept)


def _check_readout(resolved: Resolved) -> None:
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


def _without_wrong_assumptions(labelled: Labelled, run: Replay, scores: Sequence[Tensor]) -> Labelled:
    """Where the batch axis of a map was read off its shape, no score may reach another sample there.

    If one does, the map is of no sample, or of all: it counts for every one, each by its own gradient.
    """
    assumed = {index: plan for index, plan in labelled.plans.items() if plan.assumed}
    tapped = {plan.site.tap.name: run.tapped[plan.site.tap.name] for plan in assumed.values()}
    plans = dict(labelled.plans)
    for sample, score in enumerate(scores):
        gradients = replace(run, tapped=tapped, entries=()).gradients(
            score, True, lambda name, gradient: None
        )
        for index, plan in reversed(assumed.items()):
            gradient = gradients.get(plan.site.tap.name)
            if gradient is not None and not plan.only(sample, gradient):
                plans[index] = make_plan(plan.site, labelled.classified, plan.batch, assume=False)
    return replace(labelled, plans=plans)
