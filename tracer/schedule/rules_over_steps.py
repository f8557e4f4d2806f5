"""The scheduler: runs one table of rules over the attentions of a model, in the order of its dataflow.

It knows which step reads which rows after which other steps, and no formula; the rules know formulas and no
step. The relevancy of a token at a node of the graph is the identity plus the increments of the steps that
are the node's ancestors, so every step says which steps its queries and its keys have behind them. Parallel
attentions of a layer then both read the old state, sequential ones do not, with no special case.

An interpretation (relevancy, rollout, raw attention) is one frozen :class:`Rules`; nothing has a default.
Here whole blocks of R are kept, *matrix mode*; :mod:`fxplain.schedule.row_schedule` carries single rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from fxplain.rules import adjoint, raw_attention, relevancy, rollout, transformer_attribution
from fxplain.rules.adjoint import Law
from fxplain.rules.rows import Reading, Rule, carry, join
from fxplain.schedule.state import Increment, Reach, State, folded, ordered

StepKind = Literal["self", "cross", "carry", "join"]
KINDS: frozenset[StepKind] = frozenset({"self", "cross", "carry", "join"})


@dataclass(frozen=True, eq=False)
class Step:
    """One attention, or linear mixing of tokens, in execution order. Tokens may come in any order and repeat.

    ``carry`` is mixing: rows of new tokens become weighted means of the rows of old ones. ``join`` is mixing
    into tokens that exist: a residual branch comes back to the tokens it left.
    """

    index: int
    """Position in the list of steps."""
    queries: Tensor
    """int64 ``[nq]``: token indices, the rows of its map."""
    keys: Tensor
    """int64 ``[nk]``: token indices, the columns of its map."""
    kind: StepKind
    query_reads: frozenset[int]
    """Steps whose increments the queries' rows hold at this step's own inputs."""
    key_reads: frozenset[int]
    """Likewise for the keys' rows."""


@dataclass(frozen=True)
class Rules:
    """One interpretation of the attentions: a rule for every kind of step, and what the steps see.

    Steps of the kinds in ``isolated`` read a relevancy that only steps of the kinds in ``seen`` have written
    (attention rollout multiplies self attentions alone, however many cross attentions lie between them).
    """

    name: str
    self_increment: Rule
    cross_increment: Rule
    carry_increment: Rule
    join_increment: Rule
    isolated: frozenset[StepKind]
    seen: frozenset[StepKind]

    def rule(self, kind: StepKind) -> Rule:
        """The rule for one kind of step."""
        rules = {
            "self": self.self_increment,
            "cross": self.cross_increment,
            "carry": self.carry_increment,
            "join": self.join_increment,
        }
        return rules[kind]


CARRY = Law(carry, adjoint.carry_row, adjoint.carry_column)
JOIN = Law(join, adjoint.hand_on, adjoint.hand_on_column)
PLACE = Law(raw_attention.place, raw_attention.place_row, replaces="reached")


def relevancy_rules(flags: relevancy.Flags = relevancy.METHOD) -> Rules:
    """Eqs. 6 to 11 of Chefer et al., ICCV 2021, with the ablation flags of its authors."""
    return Rules(
        name="relevancy",
        self_increment=Law(
            partial(relevancy.self_increment, flags=flags),
            partial(relevancy.self_row, flags=flags),
            adjoint.hand_on_column if flags.aggregate else None,
            replaces="nothing" if flags.aggregate else "all",
        ),
        cross_increment=Law(
            partial(relevancy.cross_increment, flags=flags),
            partial(relevancy.cross_row, flags=flags),
            nested=flags.self_in_rule_10,
            replaces="nothing" if flags.aggregate else "all",
        ),
        carry_increment=CARRY,
        join_increment=JOIN,
        isolated=frozenset(),
        seen=KINDS,
    )


def rollout_rules(normalise: bool = True) -> Rules:
    """Attention rollout; cross attentions by eq. 12. ``normalise=False`` is eq. 16 as printed."""
    factor = partial(rollout.self_increment, normalise=normalise)
    law = (
        Law(factor, rollout.self_row, rollout.self_column)
        if normalise
        else Law(factor, adjoint.hand_on, adjoint.hand_on_column)
    )
    return Rules(
        name="rollout",
        self_increment=law,
        cross_increment=Law(rollout.cross_increment, rollout.cross_row, nested=True, replaces="reached"),
        carry_increment=CARRY,
        join_increment=law,
        isolated=frozenset({"self"}),
        seen=frozenset({"self", "carry", "join"}),
    )


RELEVANCY = relevancy_rules()
ROLLOUT = rollout_rules()
RAW_ATTENTION = Rules(
    name="raw_attention",
    self_increment=PLACE,
    cross_increment=PLACE,
    carry_increment=CARRY,
    join_increment=JOIN,
    isolated=frozenset({"self", "cross"}),
    seen=frozenset({"carry"}),
)

ATTRIBUTION = Rules(
    name="transformer_attribution",
    self_increment=Law(
        partial(rollout.self_increment, normalise=False), adjoint.hand_on, adjoint.hand_on_column
    ),
    cross_increment=Law(
        transformer_attribution.cross_increment, transformer_attribution.cross_row, replaces="reached"
    ),
    carry_increment=CARRY,
    join_increment=JOIN,
    isolated=frozenset({"self", "cross"}),
    seen=frozenset({"self", "carry", "join"}),
)


@dataclass(frozen=True)
class Unfolded:
    """Steps that each read one state alone, where isolated ones read what others do not: a step that both
    see stands twice, once for each."""

    steps: tuple[Step, ...]
    origins: tuple[int, ...]
    """For each of them the step that it stands for."""
    reads: tuple[frozenset[int], ...]
    """For each step, what stands for its increment in the whole state."""

    def behind(self, steps: frozenset[int]) -> frozenset[int]:
        """What stands for the increments of some steps."""
        return frozenset().union(*(self.reads[step] for step in steps))


def unfolded(steps: Sequence[Step], rules: Rules) -> Unfolded:
    """The steps, with those apart that others must not see (see :class:`Rules`)."""
    kinds = {step.kind for step in steps}
    if not kinds & rules.isolated or kinds <= rules.seen:
        return Unfolded(tuple(steps), tuple(range(len(steps))), tuple(frozenset({s.index}) for s in steps))
    found: list[Step] = []
    origins: list[int] = []
    whole: dict[int, int] = {}
    seen: dict[int, int] = {}

    def stands(step: Step, state: dict[int, int]) -> int:
        reads = [frozenset(state[r] for r in old if r in state) for old in (step.query_reads, step.key_reads)]
        found.append(replace(step, index=len(found), query_reads=reads[0], key_reads=reads[1]))
        origins.append(step.index)
        return len(found) - 1

    for step in steps:
        if step.kind in rules.seen:
            seen[step.index] = stands(step, seen)
        if step.kind not in rules.isolated:
            whole[step.index] = stands(step, whole)
        else:
            whole[step.index] = seen[step.index] if step.kind in rules.seen else stands(step, seen)
    return Unfolded(tuple(found), tuple(origins), tuple(frozenset({whole[s.index]}) for s in steps))


class Relevancy:
    """The relevancy matrix R of a model's tokens after any set of its steps, a block of rows at a time.

    Made by :func:`schedule`. ``tokens`` is the number of tokens, ``batch`` that of samples.
    """

    def __init__(self, state: State, unfolded: Unfolded) -> None:
        self._state = state
        self._unfolded = unfolded
        self.tokens = state.tokens
        self.batch = state.batch

    def excess(self, tokens: Tensor, reads: frozenset[int]) -> Tensor:
        """Rows of ``R - I``: the increments alone, which keep their digits beside no 1 of the diagonal.

        Args and result as in :meth:`rows`.
        """
        with torch.no_grad():
            block, inverse = ordered(tokens)
            excess = self._state.excess(block, self._unfolded.behind(reads))
            return excess.clone() if inverse is None else excess.index_select(1, inverse.to(excess.device))

    def rows(self, tokens: Tensor, reads: frozenset[int]) -> Tensor:
        """Rows of R: the identity plus the increments of the steps in ``reads`` that touch them.

        Args:
            tokens: ``[n]``, int64, the tokens whose rows are wanted, in any order, repeats allowed.
            reads: the steps that lie behind the node where R is read.

        Returns:
            ``[batch, n, tokens]``.
        """
        rows = self.excess(tokens, reads)
        rows[:, torch.arange(tokens.numel(), device=rows.device), tokens.to(rows.device)] += 1
        return rows


def schedule(steps: Sequence[Step], weights: Sequence[Tensor], tokens: int, rules: Rules) -> Relevancy:
    """Runs the rules over the steps, first to last.

    Args:
        steps: attentions and mixings in execution order.
        weights: for every step ``[batch, nq, nk]``: its map without heads (Ā of eq. 5 for relevancy, the
            head mean for rollout and raw attention), or the non-negative weights of a mixing.
        tokens: how many tokens there are in all.
        rules: the interpretation.

    Returns:
        R after any set of steps; float32, or float64 where a map is.

    Raises:
        ValueError: a map does not fit its step, or a step reads one that has not run.

    Example:
        >>> text = torch.tensor([0, 1])
        >>> step = Step(0, text, text, "self", frozenset(), frozenset())
        >>> weights = torch.tensor([[[0.25, 0.5], [0.0, 1.0]]])
        >>> schedule([step], [weights], 2, RELEVANCY).rows(torch.tensor([0]), frozenset({0}))
        tensor([[[1.2500, 0.5000]]])
    """
    _check(steps, weights, tokens)
    dtype = torch.float32
    for map_ in weights:
        dtype = torch.promote_types(dtype, map_.dtype)
    with torch.no_grad():
        apart = unfolded(steps, rules)
        return Relevancy(_run(apart, [map_.to(dtype) for map_ in weights], tokens, rules), apart)


def _run(unfolded: Unfolded, weights: Sequence[Tensor], tokens: int, rules: Rules) -> State:
    state = State(unfolded.steps, weights, tokens)
    reach = Reach(unfolded.steps, tokens)
    for step, origin in zip(unfolded.steps, unfolded.origins, strict=True):
        _take(state, reach, step, weights[origin], rules.rule(step.kind))
    return state


def _take(state: State, reach: Reach, step: Step, weights: Tensor, rule: Rule) -> None:
    """Reads one step's rows, applies its rule, and gives the update to the state."""
    if weights.numel() == 0:
        return
    queries, keys, weights = folded(step.queries, step.keys, weights)
    reading = Reading(
        weights=weights,
        queries=queries.to(weights.device),
        keys=keys.to(weights.device),
        query_excess=state.excess(queries, step.query_reads),
        key_excess=state.excess(keys, step.key_reads),
        reached=reach.by_keys[step.index].to(weights.device),
    )
    state.add(Increment(step.index, queries, rule(reading)))


def _check(steps: Sequence[Step], weights: Sequence[Tensor], tokens: int) -> None:
    if len(steps) != len(weights):
        raise ValueError(f"{len(steps)} steps came with {len(weights)} maps")
    for position, (step, map_) in enumerate(zip(steps, weights, strict=True)):
        where = f"step {position} ({step.kind})"
        if step.index != position:
            raise ValueError(f"{where} has index {step.index}")
        late = [read for read in step.query_reads | step.key_reads if not 0 <= read < position]
        if late:
            raise ValueError(f"{where} reads steps that have not run: {sorted(late)}")
        expected = (weights[0].shape[0], step.queries.numel(), step.keys.numel())
        if tuple(map_.shape) != expected:
            raise ValueError(f"{where} needs a map of shape {expected}, found {tuple(map_.shape)}")
        for name, indices in (("query", step.queries), ("key", step.keys)):
            if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < tokens:
                raise ValueError(f"{where} has a {name} token outside 0 to {tokens - 1}")
