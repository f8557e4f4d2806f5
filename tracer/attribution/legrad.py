"""LeGrad on a captured graph: each layer's tokens are given to the model's own head in place of the last
layer's, and that score is differentiated to the layer's own map.

A layer's tokens are a *waist* of the graph: a value that everything from its attention to the score goes
through. The last one before the next layer's attention is taken, and the one at the same place behind the
last layer's attention is where the head begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxplain.attention.layers import layers_of
from fxplain.attribution.prediction import Prediction
from fxplain.attribution.scheduled import Explained
from fxplain.errors import MethodError
from fxplain.labels.call import op_name
from fxplain.labels.flows import Site
from fxplain.maps.attentions import map_of
from fxplain.maps.weights import dense
from fxplain.rules.legrad import sensitivity
from fxplain.run.replay import Replay, execute, tap
from fxplain.run.target import rescored


@dataclass(frozen=True, eq=False)
class Tower:
    """Self attentions of one stream, first to last, and the waist that holds the tokens behind each."""

    sites: tuple[Site, ...]
    waists: tuple[fx.Node, ...]

    @property
    def head(self) -> fx.Node:
        """Where the model's head begins."""
        return self.waists[-1]


def legrad(prediction: Prediction) -> Explained:
    """The mean over layers of each one's relevance; a single token that is read has none of its own.

    Raises:
        MethodError: the model attends across streams, or its layers do not repeat one structure.
    """
    towers = towers_of(prediction)
    with torch.enable_grad():
        run = _Run(prediction, towers)
        rows = sum(run.relevance(tower) for tower in towers if run.layers(tower))
    assert isinstance(rows, Tensor)
    alone = all(len(pairs) == 1 for pairs in prediction.readout)
    if alone:
        for sample, pairs in enumerate(prediction.readout):
            rows[sample, pairs[0][1]] = 0
    return Explained(rows, aside=alone)


class _Run:
    """One run of the graph that keeps what the heads of all towers need."""

    def __init__(self, prediction: Prediction, towers: Sequence[Tower]) -> None:
        self.prediction = prediction
        captured = prediction.labelled.captured
        self.inputs = {tower: _boundary(captured.graph.graph, tower.head) for tower in towers}
        sites = [site for tower in towers for site in tower.sites]
        taps = {site.tap for site in sites}
        wanted = set().union(*self.inputs.values(), *(tower.waists for tower in towers))
        operands = {node for site in sites for node in site.keeps}
        self.tapped: dict[str, Tensor] = {}
        self.kept: dict[str, Any] = {}
        self.values: dict[fx.Node, Any] = {}

        def change(node: fx.Node, value: Any) -> Any:
            if node in taps:
                value, self.tapped[node.name] = tap(value, True)
            if node in operands:
                self.kept[node.name] = value
            if node in wanted:
                self.values[node] = value
            return value

        outputs = execute(captured, prediction.bound, change, prediction.surrogates)
        self.replay = Replay(outputs, self.tapped, self.kept)

    def layers(self, tower: Tower) -> list[int]:
        """The layers of a tower that take part."""
        chosen = self.prediction.chosen
        return [n for n, site in enumerate(tower.sites) if chosen is None or site.index in chosen]

    def relevance(self, tower: Tower) -> Tensor:
        """[batch, token]: the mean over the layers of one tower."""
        layers = self.layers(tower)
        return sum((self._layer(tower, n) for n in layers), torch.zeros(())) / len(layers)

    def _layer(self, tower: Tower, layer: int) -> Tensor:
        site = tower.sites[layer]
        tapped = self.tapped[site.tap.name]
        scores = self._scores(tower, layer)
        passes = [scores.sum()] if len(self.prediction.passes) == 1 else list(scores.unbind())
        found = []
        for score in passes:
            (gradient,) = torch.autograd.grad(score, tapped, retain_graph=True, allow_unused=True)
            found.append(self._by_token(site, gradient))
        # a score of its own: all that it reads is its sample's
        alone = len(passes) == self.prediction.batch
        return torch.stack([rows.sum(0) for rows in found]) if alone else found[0]

    def _scores(self, tower: Tower, layer: int) -> Tensor:
        """[batch]: what the head makes of a layer's tokens."""
        prediction = self.prediction
        labelled = prediction.labelled
        known = {node: self.values[node] for node in self.inputs[tower]}
        known[tower.head] = self.values[tower.waists[layer]]
        outputs = execute(
            labelled.captured, prediction.bound, lambda _, value: value, prediction.surrogates, known
        )
        return rescored(prediction.resolved, outputs, labelled.findings, labelled.captured)

    def _by_token(self, site: Site, gradient: Tensor | None) -> Tensor:
        """[batch, token]: the relevance of one layer, from the gradient of its tapped tensor."""
        labelled = self.prediction.labelled
        plan = labelled.plans[site.index]
        maps, gradient = map_of(site, self.replay, gradient)
        rows = torch.zeros(plan.batch, labelled.classified.tokens, dtype=maps.dtype, device=maps.device)
        if gradient is not None:
            queries = plan.scatter(torch.ones(plan.shape), divide=False).sum(-1) > 0
            # the gradient to a masked pair says nothing: the pair has no weight however large it is
            gradient = gradient.detach().masked_fill(maps == 0, 0.0)
            found = sensitivity(dense(plan, gradient), queries.to(maps.device))
            rows = rows.to(found.dtype).index_add_(1, plan.keys.to(maps.device), found)
        return rows


def towers_of(prediction: Prediction) -> tuple[Tower, ...]:
    """The self attentions that the score depends on, by towers, with the waists of the graph behind them.

    Raises:
        MethodError: see :func:`legrad`.
    """
    labelled = prediction.labelled
    captured, classified = labelled.captured, labelled.classified
    explained = set(prediction.resolved.output.split("+"))
    outputs = [n for n in _output(captured.graph.graph).args[0] if isinstance(n, fx.Node)]  # type: ignore[union-attr]
    ends = {node for node, name in zip(outputs, captured.outputs, strict=True) if name in explained}
    paths = Paths(list(captured.graph.graph.nodes), ends)
    living = [
        (site, step)
        for site, step in zip(classified.sites, classified.steps, strict=True)
        if site.attends and paths.reaches(site.node)
    ]
    crossing = [step.name for site, step in living if step.kind != "self" or site.role == "mixing"]
    if crossing:
        raise _refusal(
            "attends across streams, or by sampling", "self attention alone", ", ".join(crossing[:3])
        )
    towers: dict[int, list[Site]] = {}
    numbers = layers_of(classified)
    for site, step in living:
        below = [index for index, tower in towers.items() if any(s.index in site.rows.reads for s in tower)]
        if len(below) > 1 or (
            below and numbers[towers[below[0]][-1].index].number >= numbers[site.index].number
        ):
            raise _refusal("has attentions side by side", "one attention after the other", step.name)
        towers.setdefault(below[0] if below else site.index, []).append(site)
    found = tuple(_tower(tuple(tower), paths) for tower in towers.values())
    shapes = labelled.findings.ledger.shapes
    for tower in found:
        sizes = {str(list(shapes.get(waist.name, ()))) for waist in tower.waists}
        if len(sizes) > 1:
            raise _refusal(
                "changes its tokens between layers", "tokens of one shape", " and ".join(sorted(sizes))
            )
    return found


def _tower(sites: tuple[Site, ...], paths: Paths) -> Tower:
    """The waist behind each attention that the next one reads, and its like behind the last."""
    if len(sites) == 1:
        return Tower(sites, (sites[0].node,))
    chains = [paths.waists(site.node) for site in sites]
    waists: list[fx.Node] = []
    for chain, following in zip(chains, sites[1:], strict=False):
        before = paths.ancestors(following.node)
        read = [node for node in chain if node in before]
        if not read:
            raise _refusal(
                "has layers without a waist between them", "a value that holds all tokens", chain[0].name
            )
        waists.append(read[-1])
    for chain, waist in reversed(list(zip(chains, waists, strict=False))):
        place = chain.index(waist)
        if _kinds(chain[: place + 1]) == _kinds(chains[-1][: place + 1]):
            return Tower(sites, (*waists, chains[-1][place]))
    kinds = " ".join(_kinds(chains[-1])[:8])
    raise _refusal("has a last layer unlike those before it", "layers of one structure", kinds)


def _kinds(nodes: Sequence[fx.Node]) -> list[str]:
    return [op_name(node).removeprefix("aten::") for node in nodes]


def _refusal(what: str, expected: str, found: str) -> MethodError:
    return MethodError(
        f"legrad is not defined here: the model {what}",
        expected=expected,
        found=found,
        hint="use relevancy, which is defined for every attention",
    )


class Paths:
    """How many ways lead from each operation to the explained output."""

    def __init__(self, nodes: Sequence[fx.Node], ends: AbstractSet[fx.Node]) -> None:
        self.nodes = nodes
        self.place = {node: place for place, node in enumerate(nodes)}
        self.ends = ends
        self.onward: dict[fx.Node, int] = {}
        for node in reversed(nodes):
            self.onward[node] = (node in ends) + sum(self.onward.get(user, 0) for user in node.users)

    def reaches(self, node: fx.Node) -> bool:
        """Whether the explained output depends on a node."""
        return self.onward[node] > 0

    def waists(self, start: fx.Node) -> list[fx.Node]:
        """The nodes that every way from ``start`` to the explained output goes through, in order."""
        ways = {start: 1}
        found = []
        for node in self.nodes[self.place[start] + 1 :]:
            count = sum(ways.get(used, 0) for used in node.all_input_nodes)
            if count and node.op != "output":
                ways[node] = count
                if count * self.onward[node] == self.onward[start]:
                    found.append(node)
        return found

    def ancestors(self, node: fx.Node) -> set[fx.Node]:
        """All that a node is computed from."""
        found: set[fx.Node] = set()
        stack = [node]
        while stack:
            for used in stack.pop().all_input_nodes:
                if used not in found:
                    found.add(used)
                    stack.append(used)
        return found


def _output(graph: fx.Graph) -> fx.Node:
    node: fx.Node = next(iter(reversed(graph.nodes)))
    return node


def _boundary(graph: fx.Graph, head: fx.Node) -> set[fx.Node]:
    """What is needed beside the head's own input to run what lies behind it."""
    downstream = {head}
    for node in graph.nodes:
        if node.op != "output" and not downstream.isdisjoint(node.all_input_nodes):
            downstream.add(node)
    behind = {used for node in downstream - {head} for used in node.all_input_nodes}
    return (behind | set(_output(graph).all_input_nodes)) - downstream
