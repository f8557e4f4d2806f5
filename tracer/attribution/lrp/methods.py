"""The methods of layer-wise relevance propagation: to the inputs, and through the relevance of maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxplain.attention.layers import Layers
from fxplain.attention.plan import Plan
from fxplain.attribution.lrp.interpret import Propagated, propagate
from fxplain.attribution.lrp.rule_sets import RuleSet
from fxplain.attribution.lrp.samples import NotApartError, Samples, is_apart, tags
from fxplain.attribution.lrp.sides import Sides, analyse
from fxplain.attribution.lrp.tokens import Reader
from fxplain.attribution.prediction import Prediction
from fxplain.attribution.scheduled import Explained, Scheduled, read
from fxplain.errors import MethodError
from fxplain.labels.flows import Kernel
from fxplain.maps.attentions import map_of
from fxplain.maps.weights import HeadMean, folded_heads
from fxplain.run.replay import execute
from fxplain.run.target import rescored
from fxplain.schedule.rules_over_steps import Rules, Step
from fxplain.where import place_of


@dataclass(frozen=True)
class ToInputs:
    """Relevance of the tokens as they come in: embeddings, patches, frames, summed over features."""

    rules: RuleSet

    def __call__(self, prediction: Prediction) -> Explained:
        found = propagated(prediction, self.rules)
        rows = torch.cat([one.tokens[:, :-1] for one in found])
        dtype = torch.promote_types(prediction.resolved.scores.dtype, torch.float32)
        rows = rows.to(prediction.resolved.scores.device, dtype)
        notes = _conservation(prediction, self.rules, rows)
        return Explained(rows, notes=notes, inputs=_of_inputs(prediction, found))


@dataclass(frozen=True)
class ThroughMaps:
    """Weights from the relevance of attention maps instead of the maps themselves."""

    rules: RuleSet
    schedule: Rules
    head_mean: HeadMean
    gradients: bool
    layers: Layers | None = None
    """Layers that the method itself is confined to."""

    def __call__(self, prediction: Prediction) -> Explained:
        found = propagated(prediction, self.rules)
        count = len(prediction.passes)
        gradients = prediction.gradients if self.gradients else (None,) * count
        together = count == 1
        relevancies = []
        steps: Sequence[tuple[Step, int]] = ()
        for place, of_pass in enumerate(gradients):
            part = found if together else found[place : place + 1]
            scheduled = Scheduled(self.schedule, _Weigh(part, self.head_mean), self.gradients, self.layers)
            steps = scheduled.steps(prediction)
            relevancies.append(scheduled.relevancy(prediction, steps, of_pass))
        return read(prediction, steps, prediction.per_sample(relevancies))


@dataclass(frozen=True)
class _Weigh:
    """The weights of an attention from its map's relevance, summed over the samples of one pass."""

    found: list[Propagated]
    head_mean: HeadMean

    def __call__(self, prediction: Prediction, plan: Plan, gradient: Tensor | None) -> Tensor:
        held = plan.site.node if isinstance(plan.site.map, Kernel) else plan.site.map.held
        if held is None:
            raise MethodError(
                "the relevance of a map is asked for, and the graph holds no map that LRP passes",
                where=place_of(plan.site.node),
                expected="attention over all keys, as a map or in one kernel",
                found="attention that samples its keys between tokens",
                hint="use relevancy, or an LRP method to the inputs (lrp, attnlrp)",
            )
        parts = [one.maps[held.name] for one in self.found if held.name in one.maps]
        maps, gradient = map_of(plan.site, prediction.run, gradient)
        relevance = sum(parts[1:], parts[0]).to(maps.dtype) if parts else torch.zeros_like(maps)
        return folded_heads(plan, relevance, gradient, self.head_mean)


def _values(prediction: Prediction) -> dict[fx.Node, Any]:
    """The value of every node of the graph, from the run of the prediction where it kept them.

    Raises:
        MethodError: the graph writes in place.
    """
    captured = prediction.labelled.captured
    for node in captured.graph.graph.nodes:
        _refuse_mutation(node)
    if prediction.run.values:
        return prediction.run.values
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        execute(captured, prediction.bound, lambda node, value: values.setdefault(node, value))
    return values


def _refuse_mutation(node: fx.Node) -> None:
    schema = getattr(node.target, "_schema", None)
    if schema is not None and schema.is_mutable:
        raise MethodError(
            f"the graph writes in place, so the values that relevance passes are gone: {node.target}",
            where=place_of(node),
            hint="explain with a method that needs no values of the past, such as relevancy",
        )


def propagated(prediction: Prediction, rules: RuleSet) -> list[Propagated]:
    """One backward pass of relevance for all samples where they are independent, else one for each; kept for
    other methods with the same rule set."""
    key = f"lrp {rules.name}"
    if key not in prediction.shared:
        values = prediction.shared.get("lrp values")
        if values is None:
            values = _values(prediction)
            prediction.shared["lrp values"] = values
        sides = analyse(prediction.labelled, values)
        reader = Reader(prediction.labelled, sides, values)
        run = _Run(prediction, values, rules, sides, reader)
        whole = run.together()
        prediction.shared[key] = run.one_by_one() if whole is None else [whole]
    found: list[Propagated] = prediction.shared[key]
    return found


@dataclass(frozen=True)
class _Run:
    """All that relevance needs on its way back, for whichever samples."""

    prediction: Prediction
    values: dict[fx.Node, Any]
    rules: RuleSet
    sides: Sides
    reader: Reader

    def one_by_one(self) -> list[Propagated]:
        count = self.prediction.batch
        starts = _starts(self.prediction, self.values, self.rules, torch.eye(count))
        done = not self.prediction.retain  # no other method comes that reads the values
        return [self._pass(s, Samples(), done and n + 1 == count) for n, s in enumerate(starts)]

    def _pass(self, start: Mapping[fx.Node, Tensor], samples: Samples, last: bool = False) -> Propagated:
        return propagate(self.values, start, self.sides, self.rules, self.reader, samples, last)

    def together(self) -> Propagated | None:
        """All samples in one pass; None if they are not independent, or nothing tells whose an element is.

        A second pass shows that once for a layout and a rule set: see :mod:`fxplain.attribution.lrp.samples`.
        """
        batch, labelled = self.prediction.batch, self.prediction.labelled
        alike = labelled.findings.batch == batch > 1 and len(self.prediction.passes) == 1
        if not alike or not labelled.apart.get(self.rules.name, True):
            return None
        samples, marks = Samples(batch, labelled.findings), tags(batch)
        known = self.rules.name in labelled.apart
        weights = torch.ones(1, batch) if known else torch.stack([torch.ones(batch), marks])
        try:
            starts = _starts(self.prediction, self.values, self.rules, weights)
            found = [self._pass(start, samples) for start in starts]
            if not known:
                one, other = (self._with_owners(each, samples) for each in found)
                labelled.apart[self.rules.name] = is_apart(one, other, marks)
        except NotApartError:
            labelled.apart[self.rules.name] = False
        return found[0] if labelled.apart[self.rules.name] else None

    def _with_owners(self, found: Propagated, samples: Samples) -> dict[str, tuple[Tensor, Tensor]]:
        """All that one pass found, each with the sample of its elements."""
        nodes = {node.name: node for node in self.values}
        laid_out = {**found.inputs, **found.maps}
        owned = {name: (part, samples.owners(part, nodes[name])) for name, part in laid_out.items()}
        each = torch.arange(samples.count)
        return {**owned, "token rows": (found.tokens, each[:, None]), "constants": (found.constants, each)}


def _starts(
    prediction: Prediction, values: Mapping[fx.Node, Any], rules: RuleSet, weights: Tensor
) -> Iterator[dict[fx.Node, Tensor]]:
    """For sums of the samples' scores by ``weights`` [sum, sample] the relevance of the outputs: where it is
    read, 1 or what it adds to the score.

    Of a callable target that is what the gradient says: exact where the target is linear in the outputs.
    """
    nodes = _outputs(prediction)
    with torch.enable_grad():
        leaves = [values[node].detach() for node in nodes]
        leaves = [leaf.clone().requires_grad_() if leaf.is_floating_point() else leaf for leaf in leaves]
        labelled = prediction.labelled
        scores = rescored(prediction.resolved, leaves, labelled.findings, labelled.captured)
    floating = [leaf for leaf in leaves if leaf.requires_grad]
    for weight in weights.to(scores):
        gradients = iter(torch.autograd.grad(scores, floating, weight, allow_unused=True, retain_graph=True))
        start: dict[fx.Node, Tensor] = {}
        for node, leaf in zip(nodes, leaves, strict=True):
            gradient = next(gradients) if leaf.requires_grad else None
            if gradient is not None:
                relevance = gradient if rules.seed == "one" else gradient * leaf.detach()
                start[node] = start[node] + relevance if node in start else relevance
        yield start


def _outputs(prediction: Prediction) -> list[fx.Node]:
    output = next(n for n in prediction.labelled.captured.graph.graph.nodes if n.op == "output")
    assert isinstance(output.args[0], (list, tuple))
    return [node for node in output.args[0] if isinstance(node, fx.Node)]


def _of_inputs(prediction: Prediction, found: list[Propagated]) -> dict[str, Tensor]:
    """Relevance of the elements of the floating inputs, each sample's own."""
    paths = {p.node: p.path for p in prediction.labelled.captured.placeholders if p.kind == "input"}
    parts: dict[str, Tensor] = {}
    for one in found:
        for node, relevance in one.inputs.items():
            if node in paths:
                known = parts.get(paths[node])
                parts[paths[node]] = relevance if known is None else known + relevance
    return parts


def _conservation(prediction: Prediction, rules: RuleSet, rows: Tensor) -> tuple[str, ...]:
    seeds = torch.ones_like(rows[:, 0]) if rules.seed == "one" else prediction.resolved.scores.detach()
    found = propagated(prediction, rules)
    constants = torch.cat([one.constants for one in found])
    # what would not change a sum of the relevance is a rounding, and not the same in another batch
    least = 16 * torch.finfo(rows.dtype).eps * (rows.abs().sum(-1) + seeds.abs().to(rows))
    constants = torch.where(constants.abs() > least.to(constants), constants, 0)
    told = [
        f"{float(row.sum()):.4g} of {float(seed):.4g} reached the tokens, {float(constant):.4g} constants"
        for row, seed, constant in zip(rows, seeds, constants, strict=True)
    ]
    return ("relevance, per sample: " + "; ".join(told),)
