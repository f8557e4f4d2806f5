"""The support law: it holds where labels are right, and names the input whose effect has no relevance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxplain
from fxplain.attention.labelled import labelled_by
from fxplain.capture.inputs import normalise
from fxplain.labels import merge
from fxplain.labels.labels import STRONG, Slot, codes_of
from fxplain.laws.support import Violation, violations
from fxplain.ops import elementwise


class Attend(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, reader: Tensor, read: Tensor) -> Tensor:
        return (self.query(reader) @ self.key(read).mT).softmax(-1) @ self.value(read)


class Two(nn.Module):
    """Two attentions over one sequence, read at the first token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)
        self.first, self.second = Attend(), Attend()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x + self.first(x, x)
        x = x + self.second(x, x)
        logits: Tensor = self.head(x[:, 0])
        return logits


IDS = torch.tensor([[7, 3, 12, 5], [1, 2, 3, 4]])


def made(build: Callable[..., nn.Module], *args: Any) -> nn.Module:
    torch.manual_seed(0)
    return build(*args).eval()


def broken(traced: fxplain.Traced, inputs: Any, findings: Any = None, **asked: Any) -> tuple[Violation, ...]:
    captured = traced.captured
    args, kwargs = normalise(inputs)
    labelled = labelled_by(captured, findings or traced._first.findings)
    return violations(labelled, captured.bind(args, kwargs), 1, **asked)


def rows(result: fxplain.Result) -> Tensor:
    return torch.cat(list(result.relevance.values()), 1)


def test_it_holds_for_plain_attention() -> None:
    traced = fxplain.trace(made(Two), IDS)
    assert broken(traced, IDS, relevance=rows(traced.explain(IDS, target=1))) == ()


def test_a_readout_that_forgets_an_attention_is_named() -> None:
    traced = fxplain.trace(made(Two), IDS)
    findings = traced._first.findings
    slots = tuple(replace(slot, reads=frozenset()) for slot in findings.outputs[0].slots)
    wrong = replace(findings, outputs=(replace(findings.outputs[0], slots=slots),))
    (found,) = broken(traced, IDS, wrong)
    assert (found.source, found.places) == ("ids", 3)
    assert "3 tokens of ids move the score" in str(found)
    assert "test_support.py" in str(found)


def test_a_key_that_labels_lose_is_named() -> None:
    traced = fxplain.trace(made(Two), IDS)
    findings = traced._first.findings
    for place, site in enumerate(findings.ledger.sites):
        codes = codes_of(site.cols.labels)
        kept = torch.where(codes == codes.max(), 0, site.cols.labels)
        findings.ledger.sites[place] = replace(site, cols=Slot(kept, site.cols.strength, site.cols.reads))
    (found,) = broken(traced, IDS)
    assert (found.source, found.places) == ("ids", 1)
    assert 0 < found.share < 1


def test_relevance_of_what_does_nothing_is_named() -> None:
    class Half(Two):
        """The last token is never seen by any other."""

        def forward(self, ids: Tensor) -> Tensor:
            x = self.embed(ids)
            seen = x[:, :3]
            return torch.cat([self.head((seen + self.first(seen, seen))[:, 0]), x[:, 3]], -1)

    traced = fxplain.trace(made(Half), IDS)
    honest = rows(traced.explain(IDS, target=1))
    assert broken(traced, IDS, relevance=honest) == ()
    moved = honest.roll(1, -1).clone()
    moved[:, -1] = 1.0
    (found,) = broken(traced, IDS, relevance=moved)
    assert "1 tokens of ids have relevance" in str(found)


class Pairs(nn.Module):
    """Tokens of pairs, to which an outer product of a sequence is added (an Evoformer in small)."""

    def __init__(self) -> None:
        super().__init__()
        self.single, self.pair, self.outer = nn.Linear(7, 8), nn.Linear(5, 12), nn.Linear(64, 12)
        self.attend, self.head = Attend(12), nn.Linear(12, 3)

    def forward(self, seq: Tensor, pair: Tensor) -> Tensor:
        x = self.single(seq)
        z = self.pair(pair) + self.outer(torch.einsum("bic,bjd->bijcd", x, x).flatten(-2))
        logits: Tensor = self.head(z + self.attend(z, z))[:, 2, 1]
        return logits


def test_pairs_that_give_way_to_an_outer_product_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = torch.randn(2, 4, 7), torch.randn(2, 4, 4, 5)
    assert broken(fxplain.trace(made(Pairs), inputs), inputs) == ()
    monkeypatch.setattr(elementwise, "_pair_tokens", lambda *_: None)  # as it was before pairs stayed pairs
    traced = fxplain.trace(made(Pairs), inputs)
    (found,) = broken(traced, inputs)
    assert (found.source, found.node.name) == ("pair", "add")
    assert "test_support.py" in str(found)
    verdict = fxplain.check(made(Pairs), inputs, 1)
    assert verdict.finding("support").outcome == "failed", "a note does not admit it"
    (note,) = (n for n in traced.explain(inputs, target=1).notes if n.startswith("pair has no tokens"))
    assert f"{found.share:.0%}" in note


class Pooling(nn.Module):
    """A learned query pools the tokens and is added to one of them: the score reads both rows."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.pool, self.head = nn.Linear(5, 8), Attend(), nn.Linear(8, 3)
        self.query = nn.Parameter(torch.randn(1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.query.expand(len(x), -1, -1)
        y = y + self.pool(y, x)
        logits: Tensor = self.head(x[:, 0] + y[:, 0])
        return logits


def test_a_row_that_is_not_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 5, 5)
    assert broken(fxplain.trace(made(Pooling), x), x) == ()
    others = elementwise._others
    firm = lambda *given: [slot for slot in others(*given) if slot.strength == STRONG]  # noqa: E731
    monkeypatch.setattr(elementwise, "_others", firm)  # as it was before learned tokens counted
    monkeypatch.setattr(merge, "_other_single_token", lambda *_: False)
    (found,) = broken(fxplain.trace(made(Pooling), x), x)
    assert (found.source, found.places) == ("x", 4)


class Located(nn.Module):
    """A text whose tokens have boxes, kinds and places given beside the ids."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.kinds, self.places = nn.Embedding(20, 8), nn.Embedding(2, 8), nn.Embedding(9, 8)
        self.boxes, self.attend, self.head = nn.Embedding(50, 8), Attend(), nn.Linear(8, 3)

    def forward(self, ids: Tensor, kinds: Tensor, places: Tensor, boxes: Tensor) -> Tensor:
        x = self.words(ids) + self.kinds(kinds) + self.places(places)
        x = x + self.boxes(boxes[..., 0]) + self.boxes(boxes[..., 1])
        logits: Tensor = self.head((x + self.attend(x, x))[:, 0])
        return logits


def located() -> dict[str, Tensor]:
    return {
        "ids": IDS,
        "kinds": torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]]),
        "places": torch.arange(4)[None],
        "boxes": torch.arange(16).view(2, 4, 2),
    }


def by_hand(model: Located, inputs: dict[str, Tensor]) -> dict[str, float]:
    """Each input's part of the sum of |x ds/dx| at the embeddings."""
    parts: dict[str, list[Tensor]] = {}
    tables = {model.words: "ids", model.kinds: "kinds", model.places: "places", model.boxes: "boxes"}
    hooks = [
        table.register_forward_hook(lambda _, __, made, name=name: parts.setdefault(name, []).append(made))
        for table, name in tables.items()
    ]
    score = model(**inputs)[:, 1].sum()
    for hook in hooks:
        hook.remove()
    found = {}
    for name, own in parts.items():
        gradients = torch.autograd.grad(score, own, retain_graph=True)
        found[name] = sum(float((x * g).detach().abs().sum()) for x, g in zip(own, gradients, strict=True))
    return {name: part / sum(found.values()) for name, part in found.items()}


def test_ids_that_are_added_to_other_tokens_are_told_with_their_share() -> None:
    model, inputs = made(Located), located()
    traced = fxplain.trace(model, inputs)
    result = traced.explain(inputs, target=1)
    assert list(result.relevance) == ["ids"]
    assert broken(traced, inputs, relevance=rows(result)) == ()
    assert isinstance(model, Located)
    shares = by_hand(model, inputs)
    for name in ("kinds", "places", "boxes"):
        (note,) = (n for n in result.notes if n.startswith(f"{name} has no tokens of its own"))
        assert "is added to the tokens of ids in the model (tests/laws/test_support.py:" in note
        assert f"{shares[name]:.0%} of the score's gradient x input" in note


@pytest.mark.parametrize("mode", ["rows", "matrix", "checkpoint"])
def test_the_notes_change_no_number(mode: Any) -> None:
    """Gradients from the inputs on, beside those from the first attention on."""
    model, inputs = made(Located), located()
    traced = fxplain.trace(model, inputs)
    found = traced.explain(inputs, target=1, mode=mode)
    one, other = traced.explain_targets(inputs, [1, 2], mode=mode)
    torch.testing.assert_close(one.relevance["ids"], found.relevance["ids"])
    if mode != "checkpoint":
        assert set(one.notes) == set(found.notes)
        assert set(other.notes) != set(found.notes)  # each score has its own shares
    told = [n for n in found.notes if "has no tokens of its own" in n]
    assert len(told) == 3
    assert all(("gradient x input" in n) == (mode != "checkpoint") for n in told)


class Marked(nn.Module):
    """A second input whose numbers come into one attention, one way or another."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.words, self.table = nn.Embedding(20, 8), nn.Embedding(10, 8)
        self.places, self.attend, self.head = nn.Linear(4, 8), Attend(), nn.Linear(8, 3)

    def forward(self, ids: Tensor, marks: Tensor) -> Tensor:
        x = self.words(ids)
        if self.how == "scaled":
            x = x * marks[..., None].float()
        elif self.how == "cut to ids":
            x = x + self.table((marks * 10).long()[..., 0])
        scores = self.attend.query(x) @ self.attend.key(x).mT
        if self.how == "coordinates of keys":
            scores = self.attend.query(x) @ self.attend.key(x + self.places(marks)).mT
        elif self.how == "looked up as distances":
            scores = scores + self.table(marks[:, None] - marks[:, :, None] + 4)[..., 0]
        elif self.how == "a mask":
            scores = scores + (1.0 - marks[:, None].float()) * -1e9
        logits: Tensor = self.head((scores.softmax(-1) @ self.attend.value(x))[:, 0])
        return logits


BOXES, COUNTS = (
    torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)),
    torch.tensor([[0, 1, 2, 1]] * 2),
)
WEIGHING = "marks has no tokens of its own, and so no relevance: it only makes weights between tokens"


@pytest.mark.parametrize(
    ("how", "marks", "told"),
    [
        ("scaled", COUNTS, "it goes into the tokens of ids in the model"),
        ("cut to ids", BOXES, "it is added to the tokens of ids in the model"),
        ("coordinates of keys", BOXES, WEIGHING),
        ("looked up as distances", COUNTS, WEIGHING),
        ("a mask", COUNTS.clamp(max=1), None),
    ],
)
def test_numbers_that_come_to_others_are_told(how: str, marks: Tensor, told: str | None) -> None:
    result = fxplain.explain(made(Marked, how), (IDS, marks), target=1)
    notes = [note for note in result.notes if note.startswith("marks")]
    assert list(result.relevance) == ["ids"]
    assert not notes if told is None else told in notes[0]


def test_an_input_that_does_not_move_the_score_needs_no_note() -> None:
    model, inputs = made(Located), located()
    assert isinstance(model, Located)
    with torch.no_grad():
        model.kinds.weight.zero_()
    result = fxplain.explain(model, inputs, target=1)
    assert not any(note.startswith("kinds") for note in result.notes)
    assert any(note.startswith("places") for note in result.notes)


class Recurrent(nn.Module):
    """An attention, then a recurrence; the score reads its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attend, self.head = nn.Embedding(20, 8), Attend(), nn.Linear(8, 3)
        self.cell = nn.LSTM(8, 8, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = torch.cat([x[:, :2] + self.attend(x[:, :2], x[:, :2]), x[:, 2:]], 1)
        logits: Tensor = self.head(self.cell(x)[0][:, -1])
        return logits


def test_what_a_recurrence_hides_is_told_with_its_share() -> None:
    model = made(Recurrent)
    traced = fxplain.trace(model, IDS)
    result = traced.explain(IDS, target=1)
    (note,) = (n for n in result.notes if "no relevance reaches" in n)
    assert "tokens of ids" in note
    assert "cell (" in note
    assert broken(traced, IDS) == ()


def test_no_attention_behind_the_score_is_refused_as_before() -> None:
    class Before(Located):
        def forward(self, ids: Tensor, kinds: Tensor) -> Any:  # type: ignore[override]
            x = self.words(ids) + self.kinds(kinds)
            return {"logits": self.head(x[:, 0]), "other": self.head((x + self.attend(x, x))[:, 0])}

    inputs = {name: located()[name] for name in ("ids", "kinds")}
    traced = fxplain.trace(made(Before), inputs)
    with pytest.raises(fxplain.TargetError, match="depends on no attention"):
        traced.explain(inputs, target=1, output="logits")
    assert traced.explain(inputs, target=1, output="other").relevance["ids"].any()
