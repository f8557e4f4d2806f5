"""The laws in `fxplain.check` and `explain(check=True)`: they hold where labels and maps are right, and a
claim that was wrong once is found wherever it is made again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxplain
from fxplain.attention.labelled import Labelled, capture_and_label
from fxplain.labels.flows import Site, WrittenOut
from fxplain.labels.labels import Slot
from fxplain.labels.value import Value
from fxplain.laws import step
from fxplain.laws.table import LAWS
from fxplain.verdict import NAMES


class Net(nn.Module):
    """Attention, and what `after` does to its tokens."""

    def __init__(self, after: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.query, self.key, self.value, self.head = (nn.Linear(8, 8) for _ in range(5))
        self.after = after

    def attend(self, x: Tensor) -> Tensor:
        return (self.query(x) @ self.key(x).mT).softmax(-1) @ self.value(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.attend(x)
        return self.head(x[:, 0] if self.after is None else self.after(x))


X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))


def relabelled(monkeypatch: pytest.MonkeyPatch, change: Callable[[Labelled], Labelled]) -> None:
    """From here on, a labelling claims what `change` makes of it."""
    found = "fxplain.traced.capture_and_label"
    monkeypatch.setattr(found, lambda *given: change(capture_and_label(*given)))


def with_sites(labelled: Labelled, change: Callable[[Site], Site]) -> Labelled:
    """The same with other claims of its steps."""
    sites = tuple(change(site) for site in labelled.classified.sites)
    plans = {site.index: replace(labelled.plans[site.index], site=site) for site in sites}
    return replace(labelled, classified=replace(labelled.classified, sites=sites), plans=plans)


def with_values(labelled: Labelled, change: Callable[[Any, Value], Value]) -> Labelled:
    """The same with other labels of its tensors."""
    values = {
        node: value if isinstance(value, tuple) else change(node, value)
        for node, value in labelled.findings.values.items()
    }
    return replace(labelled, findings=replace(labelled.findings, values=values))


def failed(verdict: fxplain.Verdict) -> set[str]:
    return {finding.name for finding in verdict.findings if finding.outcome == "failed"}


@pytest.mark.parametrize(
    "after", [None, lambda x: x.mean(1), lambda x: x.amax(1)], ids=["row", "mean", "max"]
)
def test_each_law_has_a_line_and_holds(after: Any) -> None:
    verdict = fxplain.check(Net(after), X)
    assert {law.name for law in LAWS} <= set(NAMES)
    assert all(verdict.finding(law.name).outcome == "ok" for law in LAWS), str(verdict)
    notes = fxplain.explain(Net(after), X, target=1, check=True).notes
    assert not [note for note in notes if "law" in note]


def test_a_mean_that_is_taken_for_a_row_fails_the_influence_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an Evoformer's outer product was once: a sum over tokens that claims to be of one of them."""

    def change(node: Any, value: Value) -> Value:
        if "mean" not in node.name:
            return value
        (slot,) = value.active
        own = Slot(torch.tensor([[(1 << 40) + 1], [(2 << 40) + 1]]), slot.strength)
        return replace(value, slots=(own,))

    relabelled(monkeypatch, lambda labelled: with_values(labelled, change))
    verdict = fxplain.check(Net(lambda x: x.mean(1)), X)
    assert failed(verdict) >= {"influence"}
    sentence = verdict.finding("influence").sentence
    assert "node mean" in sentence
    assert "test_laws_in_check.py" in sentence
    result = fxplain.explain(Net(lambda x: x.mean(1)), X, target=1, check=True)
    assert any(note.startswith("the influence law is broken: node mean") for note in result.notes)


def columns_moved(site: Site) -> Site:
    return replace(site, cols=replace(site.cols, labels=site.cols.labels.roll(1, -1)))


def of_other_values(site: Site) -> Site:
    """The keys are taken for the values."""
    assert isinstance(site.map, WrittenOut)
    key = next(n for n in site.node.graph.nodes if n.name == "linear_2")
    assert key is not site.map.values
    return replace(site, map=replace(site.map, values=key))


def broken_steps(labelled: Labelled) -> list[str]:
    bound = labelled.captured.bind((X,), {})
    return [str(violation) for violation in step.violations(labelled, bound)]


def replanned(labelled: Labelled, change: Callable[[Site], Site]) -> Labelled:
    from fxplain.attention.plan import make_plan

    found = with_sites(labelled, change)
    batch = found.findings.batch
    plans = {s.index: make_plan(s, found.classified, batch) for s in found.classified.sites}
    return replace(found, plans=plans)


@pytest.mark.parametrize("change", [columns_moved, of_other_values])
def test_a_map_on_other_tokens_fails_the_step_law(change: Callable[[Site], Site]) -> None:
    labelled = fxplain.trace(Net(), X)._first
    assert broken_steps(labelled) == []
    (told, *_) = broken_steps(replanned(labelled, change))
    assert "by its map" in told or "does not lead to it" in told
    assert "node matmul_1" in told


def test_rows_that_are_taken_for_others_fail_the_step_law() -> None:
    labelled = fxplain.trace(Net(), X)._first
    moved = replanned(
        labelled, lambda site: replace(site, rows=replace(site.rows, labels=site.rows.labels.roll(1, 1)))
    )
    (told, *_) = broken_steps(moved)
    assert "goes elsewhere" in told


def test_a_normaliser_that_is_no_softmax_fails_the_step_law() -> None:
    class Gated(Net):
        def attend(self, x: Tensor) -> Tensor:
            return (self.query(x) @ self.key(x).mT).sigmoid() @ self.value(x)

    labelled = fxplain.trace(Gated(), X)._first
    (site,) = labelled.classified.sites
    assert isinstance(site.map, WrittenOut)
    assert site.map.normaliser == "sigmoid"
    assert broken_steps(labelled) == []
    node = site.map.weights
    labelled.findings.ledger.remarks.softmaxes[node.name] = node, "tokens"
    softmaxed = replace(site.map, normaliser="softmax")
    changed = with_sites(labelled, lambda s: replace(s, map=softmaxed, softmaxes=frozenset({node.name})))
    (told, *_) = broken_steps(changed)
    assert "is taken for a softmax and is none" in told


def test_rows_that_are_added_up_fail_the_step_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads that choose their keys had one row for all of them: it summed to the number of heads."""

    class Chosen(Net):
        def attend(self, x: Tensor) -> Tensor:
            q, k, v = (
                t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (self.query(x), self.key(x), self.value(x))
            )
            own = k.norm(dim=-1).topk(3).indices[..., None].expand(-1, -1, -1, 4)
            k, v = k.gather(2, own), v.gather(2, own)
            return ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)

    traced = fxplain.trace(Chosen(), X)
    (maps,) = traced.maps(X)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 2, 5))
    assert broken_steps(traced._first) == []
    from fxplain.attention.lines import line_ranks

    monkeypatch.setattr(
        "fxplain.maps.weights._head_of", lambda plan: line_ranks(plan.site, plan.batch, plan.sampled)[0]
    )
    (told, *_) = broken_steps(traced._first)
    assert "sums to 2" in told


def test_an_input_that_a_note_gives_away_is_no_failure() -> None:
    class Boxes(Net):
        def __init__(self) -> None:
            super().__init__()
            self.boxes = nn.Linear(4, 8)

        def forward(self, x: Tensor, boxes: Tensor) -> Tensor:  # type: ignore[override]
            x = self.embed(x) + self.boxes(boxes)
            return self.head((x + self.attend(x))[:, 0])

    inputs = X, torch.randn(2, 5, 4)
    verdict = fxplain.check(Boxes(), inputs)
    assert verdict.finding("influence").outcome == "ok"
    assert "2 places set aside: " in verdict.finding("influence").sentence
    assert verdict.traced is not None
    assert any(note.startswith("boxes has no tokens of its own") for note in verdict.traced.notes)


def test_ids_that_are_added_to_tokens_of_another_input_are_told() -> None:
    class Segments(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.kinds, self.net = nn.Embedding(9, 8), nn.Embedding(2, 8), Net()

        def forward(self, words: Tensor, kinds: Tensor) -> Tensor:
            return self.net(self.words(words) + self.kinds(kinds))  # type: ignore[no-any-return]

    traced = fxplain.trace(Segments(), (torch.arange(5)[None], torch.tensor([[0, 0, 1, 1, 1]])))
    assert any(note.startswith("kinds has no tokens of its own") for note in traced.notes)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
