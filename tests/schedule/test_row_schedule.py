"""Row mode does to single rows what matrix mode does to blocks: equal to rounding, or not had at all."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule.test_schedule import (
    DOUBLE,
    TOKENS,
    Part,
    Program,
    bimodal,
    chain,
    close,
    draw,
    everything,
    programs,
)
from torch import Tensor

from fxplain.rules.adjoint import Dense
from fxplain.rules.relevancy import Flags
from fxplain.schedule.row_schedule import obstacle, rows_of
from fxplain.schedule.rules_over_steps import (
    ATTRIBUTION,
    RAW_ATTENTION,
    RELEVANCY,
    ROLLOUT,
    Rules,
    Step,
    relevancy_rules,
    rollout_rules,
    schedule,
)
from fxplain.schedule.state import folded

TABLES = [
    RELEVANCY,
    ROLLOUT,
    RAW_ATTENTION,
    ATTRIBUTION,
    rollout_rules(False),
    *(
        relevancy_rules(Flags(n, s, a))
        for n, s, a in [(False, True, True), (True, False, True), (True, True, False)]
    ),
]


def in_order(program: Program) -> Program:
    """The same steps with sorted tokens."""
    steps, weights = [], []
    for step, map_ in zip(*program, strict=True):
        queries, keys, own = folded(step.queries, step.keys, map_)
        steps.append(Step(step.index, queries, keys, step.kind, step.query_reads, step.key_reads))
        weights.append(own)
    return steps, weights


def by_rows(program: Program, rules: Rules, reads: frozenset[int], start: Tensor) -> Tensor:
    steps, weights = in_order(program)
    return rows_of(steps, [Dense(map_) for map_ in weights], TOKENS, rules, start, reads)


def agree(program: Program, rules: Rules, reads: frozenset[int], start: Tensor) -> None:
    found = by_rows(program, rules, reads, start)
    whole = schedule(*program, TOKENS, rules).rows(torch.arange(TOKENS), reads)
    close(found, start @ whole)


def rowable(program: Program, rules: Rules) -> bool:
    return obstacle(in_order(program)[0], TOKENS, rules) is None


@pytest.mark.parametrize("rules", TABLES, ids=lambda rules: rules.name)
@settings(max_examples=100, deadline=None)
@given(program=programs(), data=st.data())
def test_any_program_equals_matrix_mode_where_it_has_a_row_form(
    rules: Rules, program: Program, data: st.DataObject
) -> None:
    if rowable(program, rules):
        reads = frozenset(data.draw(st.sets(st.integers(0, len(program[0]) - 1))))
        agree(program, rules, reads, draw(2, 3, TOKENS, seed=7) - 0.5)


def encoder_decoder(batch: int = 1) -> Program:
    """Two layers of an encoder, two of a decoder with cross attention, pooled tokens on both sides."""
    e, d = [0, 1, 2], [3, 4, 5]
    parts: list[Part] = [
        (e, e, "self"), (e, e, "self"),
        (d, d, "self"), (d, e, "cross"), (d, d, "self"), (d, e, "cross"), ([6], d, "carry"),
    ]  # fmt: skip
    steps, weights = chain(*parts, batch=batch)
    return steps, weights


@pytest.mark.parametrize("rules", TABLES, ids=lambda rules: rules.name)
def test_encoder_decoder_has_a_row_form(rules: Rules) -> None:
    program = encoder_decoder(2)
    steps = program[0]
    for place in (2, 4):  # the decoder's own steps do not read the encoder's
        own = frozenset(range(2, place))
        steps[place] = Step(place, steps[place].queries, steps[place].keys, "self", own, own)
    for place in (3, 5):
        own = frozenset(range(2, place))
        steps[place] = Step(place, steps[place].queries, steps[place].keys, "cross", own, frozenset({0, 1}))
    if rules.name == "relevancy" and not rowable(program, rules):
        assert rules.self_increment.column is None  # type: ignore[attr-defined]  # replaced rows leave no sum
        return
    assert rowable(program, rules)
    agree(program, rules, everything(steps), draw(2, 2, TOKENS, seed=3))


@pytest.mark.parametrize("rules", TABLES, ids=lambda rules: rules.name)
def test_one_layer_of_co_attention_has_a_row_form_more_have_none(rules: Rules) -> None:
    (steps, weights), a, b = bimodal()
    start = torch.eye(TOKENS, dtype=DOUBLE)[None]
    nested = rules.cross_increment.nested  # type: ignore[attr-defined]
    if rowable((steps, weights), rules):
        agree((steps, weights), rules, everything(steps), start)
    else:
        assert rules.self_increment.column is None  # type: ignore[attr-defined]
    for queries, keys in ((a, b), (b, a), (a, b)):
        reads = everything(steps)
        steps = [*steps, Step(len(steps), torch.tensor(queries), torch.tensor(keys), "cross", reads, reads)]
        weights = [*weights, draw(1, len(queries), len(keys), seed=len(steps))]
    both_ways = "attention goes both ways between streams (co-attention)"
    if rules.name == "relevancy" and nested:
        assert obstacle(steps, TOKENS, rules) == both_ways
    elif rules.name != "rollout":
        agree((steps, weights), rules, everything(steps), start)


def test_a_plain_function_has_no_row_form() -> None:
    from dataclasses import replace

    plain = replace(RELEVANCY, self_increment=RELEVANCY.self_increment.increment)  # type: ignore[attr-defined]
    steps, _ = chain(([0, 1], [0, 1], "self"))
    assert "has no form for rows" in (obstacle(steps, TOKENS, plain) or "")


def test_each_map_is_asked_for_one_product_in_a_chain() -> None:
    asked: list[int] = []

    class Counted(Dense):
        def left(self, rows: Tensor) -> Tensor:
            asked.append(rows.shape[1])
            return super().left(rows)

    layer: Part = ([0, 1, 2], [0, 1, 2], "self")
    steps, weights = chain(*[layer] * 30)
    start = torch.eye(TOKENS, dtype=DOUBLE)[None, :1]
    found = rows_of(steps, [Counted(w) for w in weights], TOKENS, RELEVANCY, start, everything(steps))
    assert asked == [1] * 30
    close(
        found,
        start @ schedule(steps, weights, TOKENS, RELEVANCY).rows(torch.arange(TOKENS), everything(steps)),
    )
