"""The scheduler against a dense reference that adds whole N x N increments up, and what must always hold."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxplain.rules.relevancy import Flags
from fxplain.schedule import state
from fxplain.schedule.rules_over_steps import (
    RAW_ATTENTION,
    RELEVANCY,
    ROLLOUT,
    Relevancy,
    Rules,
    Step,
    StepKind,
    relevancy_rules,
    rollout_rules,
    schedule,
)

TOKENS = 7
ALL = torch.arange(TOKENS)
DOUBLE = torch.float64
Program = tuple[list[Step], list[Tensor]]
Part = tuple[list[int], list[int], StepKind]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def chain(*parts: Part, batch: int = 1, seed: int = 0) -> Program:
    """Steps that each have all earlier ones behind them, with random maps."""
    steps, weights = [], []
    for index, (queries, keys, kind) in enumerate(parts):
        reads = frozenset(range(index))
        steps.append(Step(index, torch.tensor(queries), torch.tensor(keys), kind, reads, reads))
        weights.append(draw(batch, len(queries), len(keys), seed=seed + index))
    return steps, weights


def everything(steps: list[Step]) -> frozenset[int]:
    return frozenset(range(len(steps)))


def dense(program: Program, rules: Rules = RELEVANCY, tokens: int = TOKENS) -> Tensor:
    steps, weights = program
    return schedule(steps, weights, tokens, rules).rows(torch.arange(tokens), everything(steps))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


# ------------------------------------------------ the dense reference, relevancy, one sample


def reference(program: Program, sample: int, flags: Flags, reads: frozenset[int]) -> Tensor:
    """R = I + the sum of the increments of ``reads``, each an N x N matrix from loops over single numbers."""
    deltas: list[Tensor] = []

    def state(behind: frozenset[int]) -> Tensor:
        return torch.eye(TOKENS, dtype=DOUBLE) + sum(deltas[s] for s in sorted(behind))

    for step, map_ in zip(*program, strict=True):
        whole = torch.zeros(TOKENS, TOKENS, dtype=DOUBLE)
        for i, q in enumerate(step.queries.tolist()):
            for j, k in enumerate(step.keys.tolist()):
                whole[q, k] += map_[sample, i, j]
        if step.kind == "carry":
            for q in range(TOKENS):
                whole[q] /= float(whole[q].sum()) or 1.0
        delta = whole @ state(step.key_reads)
        if step.kind == "cross":
            keys = sorted(set(step.keys.tolist()))
            delta[:, keys] = _eq_10(whole, step, state(step.query_reads), state(step.key_reads), flags)[
                :, keys
            ]
        deltas.append(delta)
    return state(reads)


def _eq_10(whole: Tensor, step: Step, at_queries: Tensor, at_keys: Tensor, flags: Flags) -> Tensor:
    if not flags.self_in_rule_10:
        return whole
    left = _among(at_queries, set(step.queries.tolist()), flags)
    right = _among(at_keys, set(step.keys.tolist()), flags)
    return left.T @ whole @ right


def _among(relevancy: Tensor, tokens: set[int], flags: Flags) -> Tensor:
    """R̄ between some tokens (eqs. 8, 9), the identity elsewhere."""
    out = torch.eye(TOKENS, dtype=DOUBLE)
    for i in tokens:
        total = math.fsum(float(relevancy[i, j]) - (i == j) for j in tokens)
        for j in tokens:
            hat = float(relevancy[i, j]) - (i == j)
            if flags.normalize_self_attention:
                hat = hat / total if total else 0.0
            out[i, j] += hat
    return out


@st.composite
def programs(draw_: st.DrawFn) -> Program:
    """Any steps over any tokens, in any order and repeated, with any earlier steps behind them."""
    tokens = st.lists(st.integers(0, TOKENS - 1), min_size=1, max_size=6)
    steps, weights = [], []
    for index in range(draw_(st.integers(1, 5))):
        behind = st.sets(st.integers(0, index - 1)) if index else st.just(set[int]())
        kind: StepKind = draw_(st.sampled_from(["self", "cross", "carry"]))
        queries, keys = torch.tensor(draw_(tokens)), torch.tensor(draw_(tokens))
        steps.append(Step(index, queries, keys, kind, frozenset(draw_(behind)), frozenset(draw_(behind))))
        seed = draw_(st.integers(0, 1000))
        weights.append((draw(2, len(queries), len(keys), seed=seed) - 0.4).clamp(min=0))
    return steps, weights


FLAGS = st.sampled_from([Flags(n, s) for n in (True, False) for s in (True, False)])


@settings(max_examples=60, deadline=None)
@given(program=programs(), flags=FLAGS, data=st.data())
def test_any_program_equals_the_dense_reference(program: Program, flags: Flags, data: st.DataObject) -> None:
    steps, weights = program
    reads = frozenset(data.draw(st.sets(st.integers(0, len(steps) - 1))))
    wanted = torch.tensor(data.draw(st.lists(st.integers(0, TOKENS - 1), min_size=1, max_size=9)))
    found = schedule(steps, weights, TOKENS, relevancy_rules(flags)).rows(wanted, reads)
    for sample in range(2):
        close(found[sample], reference(program, sample, flags, reads)[wanted])


# ------------------------------------------------ what always holds


def relabelled(program: Program, order: Tensor) -> Program:
    steps = [replace(s, queries=order[s.queries], keys=order[s.keys]) for s in program[0]]
    return steps, program[1]


@settings(max_examples=30, deadline=None)
@given(program=programs(), order=st.permutations(range(TOKENS)))
@pytest.mark.parametrize("rules", [RELEVANCY, ROLLOUT, RAW_ATTENTION], ids=lambda rules: rules.name)
def test_permuting_tokens_permutes_relevance(rules: Rules, program: Program, order: list[int]) -> None:
    new = torch.tensor(order)
    close(dense(relabelled(program, new), rules)[:, new][:, :, new], dense(program, rules))


@settings(max_examples=30, deadline=None)
@given(program=programs())
@pytest.mark.parametrize("rules", [RELEVANCY, ROLLOUT, RAW_ATTENTION], ids=lambda rules: rules.name)
def test_a_batch_equals_its_samples_one_by_one(rules: Rules, program: Program) -> None:
    both = dense(program, rules)
    for sample in range(2):
        close(dense((program[0], [w[sample : sample + 1] for w in program[1]]), rules), both[sample][None])


@settings(max_examples=30, deadline=None)
@given(program=programs())
@pytest.mark.parametrize("rules", [RELEVANCY, RAW_ATTENTION], ids=lambda rules: rules.name)
def test_relevance_is_never_negative(rules: Rules, program: Program) -> None:
    assert (dense(program, rules) >= 0).all()


@settings(max_examples=30, deadline=None)
@given(program=programs(), data=st.data())
def test_a_map_of_zeros_changes_nothing(program: Program, data: st.DataObject) -> None:
    steps, weights = program
    off = data.draw(st.integers(0, len(steps) - 1))
    zeroed = [w * (i != off) for i, w in enumerate(weights)]
    without = everything(steps) - {off}
    found = schedule(steps, zeroed, TOKENS, RELEVANCY)
    assert torch.equal(found.rows(ALL, everything(steps)), found.rows(ALL, without))


@settings(max_examples=30, deadline=None)
@given(program=programs())
def test_untouched_tokens_keep_identity_rows(program: Program) -> None:
    written = {t for step in program[0] for t in step.queries.tolist()}
    rows = dense(program)
    for token in set(range(TOKENS)) - written:
        assert torch.equal(rows[:, token], torch.eye(TOKENS, dtype=DOUBLE)[token].expand(2, -1))


@pytest.mark.parametrize("rules", [RELEVANCY, ROLLOUT, RAW_ATTENTION], ids=lambda rules: rules.name)
def test_disjoint_streams_do_not_mix(rules: Rules) -> None:
    a, b = [0, 1, 2], [3, 4, 5, 6]
    both = dense(chain((a, a, "self"), (b, b, "self"), (a, a, "self"), (b, b, "self")), rules)[0]
    assert not both[:3, 3:].any()
    assert not both[3:, :3].any()


def test_masked_keys_take_no_relevance_at_all() -> None:
    layer: Part = (list(range(TOKENS)), list(range(TOKENS)), "self")
    steps, weights = chain(*[layer] * 4)
    for map_ in weights:
        map_[:, :, 5:] = 0
    for rules in (RELEVANCY, ROLLOUT, RAW_ATTENTION):
        assert not dense((steps, weights), rules)[0, :5, 5:].any()


# ------------------------------------------------ the shapes of real models


def test_windows_equal_one_block_diagonal_attention() -> None:
    whole = draw(1, 6, 6)
    whole[:, :3, 3:], whole[:, 3:, :3] = 0, 0
    tokens = list(range(6))
    once = chain((tokens, tokens, "self"), (tokens, tokens, "self"))
    steps = [
        Step(0, torch.tensor([2, 0, 1]), torch.tensor([1, 2, 0]), "self", frozenset(), frozenset()),
        Step(1, torch.tensor([3, 4, 5]), torch.tensor([3, 4, 5]), "self", frozenset(), frozenset()),
        Step(2, torch.arange(6), torch.arange(6), "self", frozenset({0, 1}), frozenset({0, 1})),
    ]
    pieces = [whole[:, [2, 0, 1]][:, :, [1, 2, 0]], whole[:, 3:6, 3:6], once[1][1]]
    close(dense((steps, pieces)), dense((once[0], [whole, once[1][1]])))


def test_keys_may_hold_more_tokens_than_queries() -> None:
    steps, weights = chain(([0, 1, 2, 3], [0, 1, 2, 3], "self"), ([0], [0, 1, 2, 3], "self"))
    first = torch.eye(4, dtype=DOUBLE) + weights[0][0]
    close(dense((steps, weights), tokens=4)[0, 0], first[0] + weights[1][0, 0] @ first)


def test_a_third_stream_is_handed_on_by_a_cross_attention() -> None:
    steps, weights = chain(([2, 3], [4, 5], "cross"), ([0, 1], [2, 3], "cross"))
    close(dense((steps, weights))[0, :2, 4:6], weights[1][0] @ weights[0][0])


def test_parallel_co_attentions_both_read_the_old_state() -> None:
    a, b, none = torch.tensor([0, 1]), torch.tensor([2, 3]), frozenset[int]()
    weights = [draw(1, 2, 2), draw(1, 2, 2, seed=1)]
    parallel = [Step(0, a, b, "cross", none, none), Step(1, b, a, "cross", none, none)]
    rows = dense((parallel, weights), tokens=4)[0]
    close(rows[2:, :2], weights[1][0])
    close(rows[2:, 2:], torch.eye(2, dtype=DOUBLE))
    sequential = [parallel[0], Step(1, b, a, "cross", frozenset({0}), frozenset({0}))]
    close(
        dense((sequential, weights), tokens=4)[0, 2:, 2:],
        torch.eye(2, dtype=DOUBLE) + weights[1][0] @ weights[0][0],
    )


def test_merged_tokens_start_as_means_of_the_old_ones() -> None:
    steps, weights = chain(([0, 1, 2, 3], [0, 1, 2, 3], "self"), ([4, 5], [0, 1, 2, 3], "carry"))
    weights[1] = torch.tensor([[[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]], dtype=DOUBLE)
    rows = dense((steps, weights))[0]
    close(rows[4, :4], rows[:2, :4].mean(0))
    assert rows[4, 4] == 1
    assert torch.equal(rows[5], torch.eye(TOKENS, dtype=DOUBLE)[5])


def test_float32_keeps_increments_that_one_would_swallow() -> None:
    steps, weights = chain(([0, 1], [0, 1], "self"), ([2], [0, 1], "cross"))
    weights = [weights[0].float() * 1e-9, weights[1].float()]
    found = schedule(steps, weights, 3, RELEVANCY)
    exact = schedule(steps, [w.double() for w in weights], 3, RELEVANCY)
    reads = everything(steps)
    assert found.rows(ALL[:3], reads).dtype == torch.float32
    torch.testing.assert_close(
        found.excess(ALL[:3], reads).double(), exact.excess(ALL[:3], reads), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_scheduled_in_float32(half: torch.dtype) -> None:
    steps, weights = chain(([0, 1], [0, 1], "self"))
    assert (
        schedule(steps, [weights[0].to(half)], 2, RELEVANCY).rows(ALL[:2], frozenset()).dtype == torch.float32
    )


# ------------------------------------------------ the baselines and the ablation, over two streams


def bimodal(batch: int = 1) -> tuple[Program, list[int], list[int]]:
    """Self attentions, a layer of parallel co-attentions, self attentions, a last cross, a last self."""
    a, b = [0, 1, 2], [3, 4, 5, 6]
    parts: list[Part] = [
        (a, a, "self"), (b, b, "self"), (a, b, "cross"), (b, a, "cross"),
        (a, a, "self"), (b, b, "self"), (a, b, "cross"), (a, a, "self"),
    ]  # fmt: skip
    steps, weights = chain(*parts, batch=batch)
    before = frozenset({0, 1})
    steps[3] = replace(steps[3], query_reads=before, key_reads=before)
    return (steps, weights), a, b


def rolled(maps: list[Tensor]) -> Tensor:
    out = torch.eye(maps[0].shape[-1], dtype=DOUBLE)
    for map_ in maps:
        factor = map_[0] + torch.eye(len(out), dtype=DOUBLE)
        out = factor / factor.sum(-1, keepdim=True) @ out
    return out


def test_rollout_multiplies_self_attentions_and_takes_the_last_cross_by_eq_12() -> None:
    (steps, w), a, b = bimodal()
    rows = dense((steps, w), ROLLOUT)[0]
    close(rows[a][:, a], rolled([w[0], w[4], w[7]]))
    close(rows[b][:, b], rolled([w[1], w[5]]))
    close(rows[a][:, b], rolled([w[0], w[4]]).T @ w[6][0] @ rolled([w[1], w[5]]))


def test_rollout_as_printed_does_not_normalise() -> None:
    steps, w = chain(([0, 1], [0, 1], "self"), ([0, 1], [0, 1], "self"))
    identity = torch.eye(2, dtype=DOUBLE)
    close(
        dense((steps, w), rollout_rules(normalise=False), tokens=2)[0],
        (identity + w[1][0]) @ (identity + w[0][0]),
    )


def test_rollout_goes_through_two_cross_attentions_in_a_row() -> None:
    steps, w = chain(([2, 3], [4, 5, 6], "cross"), ([2, 3], [2, 3], "self"), ([0, 1], [2, 3], "cross"))
    rows = dense((steps, w), ROLLOUT)[0]
    close(rows[2:4, 4:], w[0][0])
    close(rows[:2, 4:], w[2][0] @ w[0][0])


def test_raw_attention_is_the_last_map_of_every_pair_of_streams() -> None:
    (steps, w), a, b = bimodal()
    rows = dense((steps, w), RAW_ATTENTION)[0]
    close(rows[a][:, a], w[7][0])
    close(rows[a][:, b], w[6][0])
    close(rows[b][:, b], w[5][0])
    close(rows[b][:, a], w[3][0])


def test_raw_attention_over_merged_tokens_reaches_the_old_ones_by_merging_alone() -> None:
    old, new = [0, 1, 2, 3], [4, 5]
    steps, w = chain((old, old, "self"), (new, old, "carry"), (new, new, "self"), ([6], new, "carry"))
    rows = dense((steps, w), RAW_ATTENTION)[0]
    merge, pool = (m[0] / m[0].sum(-1, keepdim=True) for m in (w[1], w[3]))
    close(rows[new][:, new], w[2][0])
    close(rows[new][:, old], w[2][0] @ merge)
    close(rows[6, :4], (pool @ w[2][0] @ merge)[0])
    close(rows[old][:, old], w[0][0])


def test_without_aggregation_every_step_replaces_its_rows() -> None:
    (steps, w), _, _ = bimodal()
    rows = dense((steps, w), relevancy_rules(Flags(aggregate=False)))[0]
    r = torch.eye(TOKENS, dtype=DOUBLE)
    for step, map_ in zip(steps, w, strict=True):
        q, k = step.queries, step.keys
        if step.index != 3:
            old = r.clone()
        addition = map_[0] @ old[k]
        if step.kind == "cross":
            whole = torch.zeros(TOKENS, TOKENS, dtype=DOUBLE)
            whole[q[:, None], k] = map_[0]
            addition[:, k] = _eq_10(whole, step, old, old, Flags())[q][:, k]
        r[q] = addition
    close(rows, r)


# ------------------------------------------------ cost, purity and misuse


def count_sums(relevancy: Relevancy) -> int:
    return sum(len(block.sums) for block in relevancy._state._blocks.values())


def test_a_long_chain_adds_every_increment_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = state._apply

    def counted(increment: state.Increment, block: Tensor, total: Tensor) -> None:
        calls.append(increment.step)
        real(increment, block, total)

    monkeypatch.setattr(state, "_apply", counted)
    layer: Part = ([0, 1, 2], [0, 1, 2], "self")
    steps, weights = chain(*[layer] * 40)
    found = schedule(steps, weights, 3, RELEVANCY)
    found.rows(torch.arange(3), everything(steps))
    assert calls == list(range(40))
    assert count_sums(found) <= state.KEPT


def test_results_are_the_callers_own() -> None:
    steps, weights = chain(([0, 1], [0, 1], "self"))
    found = schedule(steps, weights, 2, RELEVANCY)
    before = found.rows(ALL[:2], frozenset({0}))
    found.rows(ALL[:2], frozenset({0})).zero_()
    found.excess(ALL[:2], frozenset({0})).zero_()
    assert torch.equal(found.rows(ALL[:2], frozenset({0})), before)


def test_maps_are_left_as_they_were() -> None:
    for rules in (RELEVANCY, ROLLOUT, RAW_ATTENTION, relevancy_rules(Flags(aggregate=False))):
        (steps, weights), _, _ = bimodal()
        before = [w.clone() for w in weights]
        schedule(steps, weights, TOKENS, rules)
        assert all(torch.equal(x, y) for x, y in zip(before, weights, strict=True))


def test_no_steps_and_empty_maps_are_the_identity() -> None:
    assert torch.equal(schedule([], [], 2, RELEVANCY).rows(ALL[:2], frozenset())[0], torch.eye(2))
    steps, weights = chain(([], [0, 1], "cross"), ([0], [], "cross"))
    assert torch.equal(dense((steps, weights), tokens=2)[0], torch.eye(2, dtype=DOUBLE))


def broken(index: int = 0, kind: StepKind = "self", top: int = 1, reads: int | None = None) -> list[Step]:
    behind = frozenset() if reads is None else frozenset({reads})
    return [Step(index, torch.tensor([0, top]), torch.tensor([0, 1]), kind, behind, behind)]


@pytest.mark.parametrize(
    ("steps", "shape", "message"),
    [
        (broken(index=3), (1, 2, 2), "step 0 .self. has index 3"),
        (broken(reads=0), (1, 2, 2), "reads steps that have not run: .0."),
        (broken(), (1, 2, 3), "needs a map of shape .1, 2, 2., found .1, 2, 3."),
        (broken(top=2), (1, 2, 2), "has a query token outside 0 to 1"),
        ([], (1, 2, 2), "0 steps came with 1 maps"),
    ],
)
def test_misuse_is_told_apart(steps: list[Step], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule(steps, [torch.zeros(shape)], 2, RELEVANCY)
