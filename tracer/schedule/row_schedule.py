"""The scheduler in row mode: rows of the readout are carried over the steps, last to first.

A row vector y times R is y plus, for every step s that R has taken in, ``y[queries of s] · ΔR_s``; and that
is other vectors times the R that s has read. So y goes backwards as a few *demands* (a vector, the steps that
its R has taken in), where matrix mode goes forwards with blocks of R: the same rules, the same sums, and
for each step one product of a vector with its map. Of the maps only such products are asked for.

Eq. 10 and its kin need, besides, R times columns among the queries, and among the keys: a sweep over earlier
steps, first to last. Where another such step lies in that sweep's way (co-attention), row mode does not go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from fxplain.rules.adjoint import ColumnReading, Law, Pull, RowReading, Weights
from fxplain.schedule.rules_over_steps import Rules, Step, Unfolded, unfolded
from fxplain.schedule.state import Reach


def obstacle(steps: Sequence[Step], tokens: int, rules: Rules) -> str | None:
    """Why these steps cannot be run in row mode; None if they can."""
    return _Program(steps, tokens, rules).obstacle()


def uses(steps: Sequence[Step], rules: Rules) -> bool:
    """Whether maps are asked for products more than once."""
    laws = [rules.rule(step.kind) for step in steps]
    return any(isinstance(law, Law) and law.nested for law in laws)


def rows_of(
    steps: Sequence[Step],
    weights: Sequence[Weights],
    tokens: int,
    rules: Rules,
    start: Tensor,
    reads: frozenset[int],
) -> Tensor:
    """Row vectors times R.

    Args:
        steps: as for :func:`~fxplain.schedule.rules_over_steps.schedule`; each one's tokens are sorted.
        weights: the map of every step, as far as products with vectors go.
        tokens: how many tokens there are in all.
        rules: the interpretation.
        start: ``[batch, vector, token]``: the vectors, such as one with a 1 at the token that is read.
        reads: the steps that lie behind the node where R is read.

    Returns:
        ``[batch, vector, token]``: ``start · R``.

    Example:
        >>> from fxplain.rules.adjoint import Dense
        >>> from fxplain.schedule.rules_over_steps import RELEVANCY
        >>> text = torch.tensor([0, 1])
        >>> step = Step(0, text, text, "self", frozenset(), frozenset())
        >>> map_ = Dense(torch.tensor([[[0.25, 0.5], [0.0, 1.0]]]))
        >>> rows_of([step], [map_], 2, RELEVANCY, torch.tensor([[[1.0, 0.0]]]), frozenset({0}))
        tensor([[[1.2500, 0.5000]]])
    """
    with torch.no_grad():
        return _Sweep(_Program(steps, tokens, rules), weights, start).run(reads)


class _Program:
    """What is known of the steps before any map is."""

    def __init__(self, steps: Sequence[Step], tokens: int, rules: Rules) -> None:
        self.apart: Unfolded = unfolded(steps, rules)
        self.steps = self.apart.steps
        self.rules = rules
        self.tokens = tokens
        self.reach = Reach(self.steps, tokens)

    def law(self, step: Step) -> Law:
        law = self.rules.rule(step.kind)
        assert isinstance(law, Law)
        return law

    def obstacle(self) -> str | None:
        for step in self.steps:
            if not isinstance(self.rules.rule(step.kind), Law):
                return f"the rule of {self.rules.name} for a step of kind {step.kind} has no form for rows"
            if not self.law(step).nested:
                continue
            for side, reads in ((step.queries, step.query_reads), (step.keys, step.key_reads)):
                if any(self.law(self.steps[s]).column is None for s in self.column_steps(side, side, reads)):
                    return "attention goes both ways between streams (co-attention)"
        return None

    def column_steps(self, rows: Tensor, columns: Tensor, reads: frozenset[int]) -> list[int]:
        """The steps that have written into these columns of what these rows have taken in, in order."""
        support = _mask(columns, self.tokens)
        found: set[int] = set()
        asked = [(rows, reads)]
        while asked:
            rows, reads = asked.pop()
            for s in sorted(reads - found):
                step = self.steps[s]
                if not bool(self.reach.touched[s, rows].any()) or not bool(
                    (self.fills(step) & support).any()
                ):
                    continue
                found.add(s)
                asked += [(step.queries, step.query_reads), (step.keys, step.key_reads)]
        return sorted(found)

    def written(self, step: Step) -> frozenset[int]:
        """The steps that the rows of a step's keys hold."""
        rows = step.keys.cpu()
        return frozenset(s for s in step.key_reads if bool(self.reach.touched[s, rows].any()))

    def fills(self, step: Step) -> Tensor:
        """The columns that a step can change; a cross attention, those that its keys hand on."""
        if self.law(step).replaces == "all":
            return torch.ones(self.tokens, dtype=torch.bool)
        return (self.reach.by_keys if step.kind == "cross" else self.reach.columns)[step.index]


@dataclass(frozen=True, eq=False)
class _Demand:
    """A vector that is to be multiplied with ``R - I`` after some steps, in some columns."""

    rows: Tensor
    """``[batch, vector, token]``."""
    reads: frozenset[int]
    columns: Tensor | None = None
    """``[token]``, bool; None for all."""


@dataclass(frozen=True, eq=False)
class _Visit:
    """One step, and how much the rows of its update count, in some columns."""

    step: Step
    rows: Tensor
    """``[batch, vector, query]``."""
    columns: Tensor | None


class _Columns:
    """R times columns among some tokens: the increments of earlier steps times these, first to last."""

    def __init__(self, sweep: _Sweep, tokens: Tensor, columns: Tensor) -> None:
        self.sweep = sweep
        self.tokens = tokens
        self.start = sweep.spread(tokens, columns)
        self.increments: dict[int, Tensor] = {}

    def excess(self, rows: Tensor, reads: frozenset[int]) -> Tensor:
        """``[batch, vector, n]``: R - I after some steps, in these rows, times the columns."""
        for index in self.sweep.program.column_steps(rows, self.tokens, reads):
            if index not in self.increments:
                self.increments[index] = self._increment(self.sweep.program.steps[index])
        return self._at(torch.zeros_like(self.start), rows, reads)

    def _increment(self, step: Step) -> Tensor:
        law = self.sweep.program.law(step)
        assert law.column is not None
        reading = ColumnReading(
            self.sweep.map_of(step),
            self._at(self.start, step.queries, step.query_reads),
            self._at(self.start, step.keys, step.key_reads),
        )
        return law.column(reading)

    def _at(self, start: Tensor, rows: Tensor, reads: frozenset[int]) -> Tensor:
        total = start.clone()
        for index, increment in self.increments.items():
            if index in reads:
                queries = self.sweep.program.steps[index].queries.to(total.device)
                total.index_add_(-1, queries, increment.to(total.dtype))
        return total.index_select(-1, rows.to(total.device))


class _Sweep:
    """Vectors on their way back over the steps."""

    def __init__(self, program: _Program, weights: Sequence[Weights], start: Tensor) -> None:
        self.program = program
        self.weights = weights
        self.start = start
        self.total = start.clone()
        self.demands: list[_Demand] = []
        self.waiting: list[_Visit] = []
        """Visits whose rules ask for R times columns: those of several steps are had in one sweep."""
        self.among_keys: dict[bytes, _Columns] = {}

    def run(self, reads: frozenset[int]) -> Tensor:
        """The vectors times R after some steps."""
        self.demands = [_Demand(self.start, self.program.apart.behind(reads))]
        for step in reversed(self.program.steps):
            if any(step.index in self.program.written(visit.step) for visit in self.waiting):
                self._answer_waiting()
            self._go_back(step)
        self._answer_waiting()
        return self.total

    def map_of(self, step: Step) -> Weights:
        """The map of a step, as far as products with vectors go."""
        return self.weights[self.program.apart.origins[step.index]]

    def spread(self, tokens: Tensor, values: Tensor) -> Tensor:
        """Values at some tokens as vectors over all: [batch, vector, token]."""
        total = self.start.new_zeros(*values.shape[:2], self.program.tokens)
        return total.index_copy_(-1, tokens.to(total.device), values.to(total))

    def _go_back(self, step: Step) -> None:
        """One step: what it hands on joins the demands, and those that held its increment forget it."""
        law = self.program.law(step)
        hit = [demand for demand in self.demands if step.index in demand.reads]
        self.demands = [demand for demand in self.demands if step.index not in demand.reads]
        replaced = None
        for demand in _merged([replace(demand, reads=frozenset()) for demand in hit]):
            rows = demand.rows.index_select(-1, step.queries.to(self.start.device))
            if not bool(rows.any()):
                continue
            visit = _Visit(step, rows, demand.columns)
            if law.nested and law.replaces == "nothing":
                self.waiting.append(visit)
            else:
                replaced = self._answer([visit])
        for demand in hit:
            older = replace(demand, reads=demand.reads - {step.index})
            self.demands += [older] if replaced is None else self._without(older, step, replaced)
        self.demands = [demand for demand in _merged(self.demands) if demand.reads]

    def _without(self, demand: _Demand, step: Step, replaced: Tensor) -> list[_Demand]:
        """A demand for what was there before a step whose rows took the place of others, identity and all."""
        queries = step.queries.to(self.start.device)
        inside = self.spread(queries, demand.rows.index_select(-1, queries))
        self.total -= _masked(inside, _meet(replaced, demand.columns))
        parts = (
            replace(demand, rows=inside, columns=_meet(~replaced, demand.columns)),
            replace(demand, rows=demand.rows - inside),
        )
        return [part for part in parts if bool(part.rows.any())]

    def _answer_waiting(self) -> None:
        visits, self.waiting = self.waiting, []
        groups: dict[bytes, list[_Visit]] = {}
        for visit in visits:
            groups.setdefault(visit.step.queries.cpu().numpy().tobytes(), []).append(visit)
        for group in groups.values():
            self._answer(group)

    def _answer(self, visits: Sequence[_Visit]) -> Tensor | None:
        """Applies the rules of steps with the same queries; the columns in which rows were replaced."""
        pulls = None
        ones = torch.ones_like(visits[0].rows[:, :1])
        among = _Columns(self, visits[0].step.queries, torch.cat([ones, *(v.rows for v in visits)], 1))
        place = 1
        for visit in visits:
            step, count = visit.step, visit.rows.shape[1]
            at_queries = partial(among.excess, step.queries, step.query_reads)
            own = slice(place, place + count)
            place += count
            pulls = self.program.law(step).row(
                RowReading(
                    weights=self.map_of(step),
                    rows=visit.rows,
                    queries=step.queries.to(self.start.device),
                    keys=step.keys.to(self.start.device),
                    reached=self.program.reach.by_keys[step.index].to(self.start.device),
                    through_queries=partial(_some, at_queries, own),
                    query_sums=partial(_some, at_queries, slice(1)),
                    key_sums=partial(self._key_sums, step),
                )
            )
            for pull in pulls.parts:
                self._pull(visit, pull)
        return None if pulls is None else pulls.replaced

    def _key_sums(self, step: Step) -> Tensor:
        name = step.keys.cpu().numpy().tobytes()
        if name not in self.among_keys:
            ones = self.start.new_ones(self.start.shape[0], 1, step.keys.numel())
            self.among_keys[name] = _Columns(self, step.keys, ones)
        return self.among_keys[name].excess(step.keys, step.key_reads)

    def _pull(self, visit: _Visit, pull: Pull) -> None:
        """What a rule hands on: its identity is taken at once, the rest is a demand."""
        step = visit.step
        tokens, reads = (
            (step.queries, step.query_reads) if pull.of == "queries" else (step.keys, step.key_reads)
        )
        rows, columns = self.spread(tokens, pull.rows), _meet(visit.columns, pull.columns)
        if pull.part != "excess":
            self.total += _masked(rows, columns)
        if pull.part != "identity" and reads:
            self.demands.append(_Demand(rows, reads, columns))


def _some(found: Callable[[], Tensor], vectors: slice) -> Tensor:
    return found()[:, vectors]


def _merged(demands: Iterable[_Demand]) -> list[_Demand]:
    """Demands for the same R in the same columns are one, of the sum of their vectors."""
    found: dict[tuple[frozenset[int], bytes], _Demand] = {}
    for demand in demands:
        columns = demand.columns
        name = demand.reads, b"" if columns is None else columns.cpu().numpy().tobytes()
        known = found.get(name)
        found[name] = demand if known is None else replace(known, rows=known.rows + demand.rows)
    return list(found.values())


def _meet(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return one if other is None else other
    return one & other


def _masked(rows: Tensor, columns: Tensor | None) -> Tensor:
    return rows if columns is None else rows.masked_fill(~columns, 0.0)


def _mask(tokens: Tensor, count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.bool).index_fill_(0, tokens.to("cpu", torch.int64), True)
