"""Attention flow: Abnar and Zuidema, *Quantifying Attention Flow in Transformers*, ACL 2020.

The tokens behind every attention are the nodes of a network, and its edges are what rollout multiplies:
``A / (1 + Σ A)`` to each token that is attended to and ``1 / (1 + Σ A)`` to the token's own past, as
capacities. The relevance of an input token is the largest flow that can reach it from the row that is read.
Cross attentions are edges of the same kind; pooled tokens have edges to those that they are pooled from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fxplain.attribution.prediction import Prediction
from fxplain.attribution.scheduled import Explained, step_weights
from fxplain.errors import MethodError
from fxplain.labels.labels import reads_of
from fxplain.maps.weights import attention_weights, mixing_weights
from fxplain.rules.raw_attention import head_mean
from fxplain.schedule.rules_over_steps import Step
from fxplain.schedule.steps import step_members

if TYPE_CHECKING:
    import networkx as nx

    Network = nx.DiGraph["Place"]

Place = tuple[int, frozenset[int]]
"""A token and the steps that have written its row so far."""

MOST_WORK = 10_000_000
"""Edges times input tokens beyond which networkx takes more than some minutes."""


def attention_flow(prediction: Prediction) -> Explained:
    """The largest flow from the rows that are read to every input token; the row's own token is set aside.

    Raises:
        MethodError: the network is too large.
    """
    import networkx as nx
    from networkx.algorithms import flow

    steps = prediction.steps
    weights = _weights(prediction)
    tokens = prediction.labelled.classified.tokens
    sites = reads_of(prediction.resolved.slots)
    behind = frozenset(step.index for step, site in steps if site in sites)
    touching = [step for step, _ in steps]
    rows = []
    for pairs in prediction.readout:
        total = torch.zeros(tokens, dtype=torch.float64)
        for owner, token in pairs:
            owner = min(owner, weights[0].shape[0] - 1)
            network, source = build([map_[owner] for map_ in weights], touching, token, behind)
            ends = [place for place in network if not place[1] and place[0] != token]
            _check_size(network, ends)
            residual = flow.build_residual_network(network, "capacity")
            for end in ends:
                total[end[0]] += nx.maximum_flow_value(
                    network, source, end, flow_func=flow.shortest_augmenting_path, residual=residual
                )
        rows.append(total)
    like = weights[0]
    return Explained(
        torch.stack(rows).to(like.device, torch.promote_types(like.dtype, torch.float32)), aside=True
    )


def build(
    weights: Sequence[Tensor], steps: Sequence[Step], token: int, behind: frozenset[int]
) -> tuple[Network, Place]:
    """The network below the row of one token, and the place of that row.

    Args:
        weights: for every step its map [query, key].
        steps: attentions and mixings in execution order.
        token: whose row is read.
        behind: the steps that lie behind the node where it is read.

    Returns:
        Edges lead from a place to those that it takes in; a place without steps is an input token.
    """
    import networkx as nx

    touches = [frozenset(step.queries.tolist()) for step in steps]
    lists = [map_.tolist() for map_ in weights]
    network: Network = nx.DiGraph()

    def place(token: int, reads: Iterable[int]) -> Place:
        return token, frozenset(step for step in reads if token in touches[step])

    source = place(token, behind)
    network.add_node(source)
    stack = [source]
    while stack:
        current = stack.pop()
        for other, share in _taken(current, steps, lists, place):
            if other not in network:
                stack.append(other)
            if share > 0:
                old = network.get_edge_data(current, other, {"capacity": 0.0})
                network.add_edge(current, other, capacity=old["capacity"] + share)
    return network, source


def _taken(
    current: Place,
    steps: Sequence[Step],
    weights: Sequence[list[list[float]]],
    place: Callable[[int, Iterable[int]], Place],
) -> Iterable[tuple[Place, float]]:
    """What a token takes in last, with its shares: its own past and the tokens attended to, summing to 1.

    Parallel steps, which do not read one another, share in one row.
    """
    token, written = current
    last = [s for s in written if not any(s in steps[other].query_reads for other in written)]
    if not last:
        return
    own = not all(steps[s].kind == "carry" for s in last)
    rows = {s: weights[s][int(torch.searchsorted(steps[s].queries, token))] for s in last}
    whole = own + sum(sum(row) for row in rows.values())
    if own or not whole:
        yield place(token, written.difference(last)), own / whole if whole else 0.0
    for s, row in rows.items():
        for key, weight in zip(steps[s].keys.tolist(), row, strict=True):
            if weight > 0:
                yield place(key, steps[s].key_reads), weight / whole


def _weights(prediction: Prediction) -> list[Tensor]:
    """For every step [batch, query, key]: the head mean of its map; even shares for mixings.

    A capacity is no less than 0: what a map subtracts (mixed heads, differential attention) carries nothing.
    """
    plans, run = prediction.labelled.plans, prediction.run
    found = []
    for step, site in prediction.steps:
        plan = plans[site]
        if plan.site.attends:
            members = step_members(prediction.labelled.classified, plans, site)
            own = [
                share * attention_weights(each, run, None, lambda maps, _, heads: head_mean(maps, heads))
                for each, share in members
            ]
            whole = sum(own[1:], own[0])
        else:
            whole = mixing_weights(plan, run, None)
        found.append(step_weights(whole, plan, step).clamp(min=0))
    return found


def _check_size(network: Network, ends: Sequence[Place]) -> None:
    work = network.number_of_edges() * len(ends)
    if work > MOST_WORK:
        raise MethodError(
            "attention flow takes too long here",
            expected=f"edges times input tokens up to {MOST_WORK:.0e}",
            found=f"{network.number_of_edges()} edges times {len(ends)} tokens",
            hint="take fewer layers (layers=), or rollout, which attention flow is never below",
        )
