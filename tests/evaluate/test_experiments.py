"""Short versions of the experiments in benchmarks/experiments/, and the page that they write."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fxplain import evaluate

FOLDER = Path(__file__).parent.parent.parent / "benchmarks" / "experiments"
FEW = ["relevancy", "rollout", "raw_attention", "random"]


def test_the_page_is_what_the_results_say(module: Any, jobs: Any, monkeypatch: Any, tmp_path: Any) -> None:
    report = module("report")
    monkeypatch.setattr(report, "PAGE", tmp_path / "results.md")
    monkeypatch.setattr(report, "ROOT", tmp_path)
    report.write(jobs, module("run").about())
    page = FOLDER.parent.parent / "docs" / "results.md"
    assert (tmp_path / "results.md").read_text() == page.read_text(), (
        "run benchmarks/experiments/run.py --page"
    )


NUMBER = re.compile(r"([\d.]+)( ?%)?<!-- ([\w-]+) \| ([^|]+) \| (\S+) -->")
"""A number of a page, with the result that it is: ``0.97<!-- table | measure | method -->``."""


def test_numbers_on_pages_are_those_of_the_results() -> None:
    """A claim that a result contradicts fails here."""
    root, seen = FOLDER.parent.parent, 0
    for page in (root / "README.md", *(root / "docs").glob("*.md")):
        for number, percent, table, measure, method in NUMBER.findall(page.read_text(encoding="utf-8")):
            record = json.loads((FOLDER / "results" / f"{table}.json").read_text())
            value = record["scores"][method][measure][0] * (100 if percent else 1)
            digits = len(number.partition(".")[2])
            assert number == f"{value:.{digits}f}", (
                f"{page.name}: {table} has {value} for {method}, {measure}"
            )
            seen += 1
    assert seen >= 8


def test_verdicts_are_those_of_the_numbers(module: Any) -> None:
    """What a claim comes to, after Holm's correction over its table."""
    for file in sorted((FOLDER / "results").glob("*.json")):
        claims = json.loads(file.read_text())["claims"]
        assert module("jobs").judged(claims) == claims, file.name


def test_many_claims_need_more_than_one(module: Any) -> None:
    jobs = module("jobs")
    assert jobs.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    alone, often = jobs.decided([(0.1, 0.01, 0.19)]), jobs.decided([(0.1, 0.01, 0.19)] * 10)
    assert (alone, often) == ([1], [0] * 10)
    assert jobs.decided([(-1.0, -1.0, -1.0), (0.0, 0.0, 0.0)]) == [-1, 0]


def test_rows_are_kept_beside_those_of_other_methods(module: Any, tmp_path: Path) -> None:
    jobs = module("jobs")
    for name in ("relevancy", "rollout"):
        rows = {name: {"AP": torch.tensor([0.5, 1.0, 0.0])}}
        measures = (evaluate.Measure("AP"),)
        jobs.keep_rows(
            tmp_path / "rows.npz", evaluate.Table("t", measures, rows, units=torch.tensor([0, 0, 1]))
        )
    with np.load(tmp_path / "rows.npz") as kept:
        assert sorted(kept) == ["relevancy | AP", "rollout | AP", "units"]
        assert kept["rollout | AP"].tolist() == [0.5, 1.0, 0.0]


def test_every_experiment_has_results_with_a_floor(jobs: Any) -> None:
    for name, job in jobs.items():
        results = FOLDER / "results" / f"{name}.json"
        if not results.exists():  # the page says that it was not run yet
            continue
        record = json.loads(results.read_text())
        assert "random" in record["scores"]
        assert "relevancy" in record["scores"]
        assert record["samples"] > 1
        assert {claim["text"] for claim in record["claims"]} == {claim.text for claim in job.claims}


@pytest.mark.parametrize("name", ["vit-predicted", "vit-segmentation", "vit-sensitivity"])
def test_a_short_version_of_the_vit(
    module: Any, jobs: Any, monkeypatch: Any, tmp_path: Any, name: Any
) -> None:
    monkeypatch.setattr(module("vit"), "METHODS", FEW)
    table = module("jobs").run(jobs[name], 6, tmp_path, None)
    lead = table.measures[0]
    sign = 1 if lead.higher_is_better else -1
    scores = {method: sign * row[lead.name].value for method, row in table.cells.items()}
    if name == "vit-sensitivity":  # chance is drawn from the picture alone: it does not hear the question
        assert scores["relevancy"] > scores["rollout"] == pytest.approx(scores["random"])
    else:
        assert scores["relevancy"] > scores["random"]
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert all(claim["said"] in ("holds", "does not hold", "not decided") for claim in record["claims"])


def test_the_reviews_are_told_as_well_as_is_said(module: Any) -> None:
    """The stored accuracy, on the snippets that lie beside the weights, none of which was trained on."""
    reviews = module("reviews")
    record = json.loads(reviews.HELD_OUT.read_text(encoding="utf-8"))
    numbers = {word: n for n, word in enumerate(reviews.VOCABULARY.read_text(encoding="utf-8").split("\n"))}
    snippets = [reviews.Snippet(text, valence) for valence, text in record["snippets"]]
    found = module("train_reviews").accuracy(reviews.load(), snippets, numbers)
    assert found == pytest.approx(record["accuracy"]["bundled"], abs=0.01)
    assert record["accuracy"]["all"] > 0.74
    weights = reviews.FOLDER / "reviews.safetensors"
    assert weights.stat().st_size < 2_000_000


def test_marked_words_are_of_the_side_of_the_label(module: Any) -> None:
    reviews = module("reviews")
    held_out, lexicon = reviews.held_out(20), json.loads(reviews.HELD_OUT.read_text())["lexicon"]
    for words, marked, label in zip(held_out.texts, held_out.marked, held_out.labels.tolist(), strict=True):
        found = [word for word, mark in zip(words, marked[1:], strict=False) if mark]
        assert found
        assert all((lexicon[word] > 0) == bool(label) for word in found)
    assert not (held_out.marked & ~held_out.counted).any()


@pytest.mark.parametrize("name", ["bert-words", "bert-deleted", "bert-masked"])
def test_a_short_version_of_bert(module: Any, jobs: Any, monkeypatch: Any, tmp_path: Any, name: Any) -> None:
    monkeypatch.setattr(module("bert"), "METHODS", ["relevancy", "gradient_x_input+libra"])
    table = module("jobs").run(jobs[name], 24, tmp_path, None)
    lead = table.measures[0].name
    assert table.difference(lead, "gradient_x_input+libra", "random").low > 0
    assert table.cells["relevancy"][lead].value > table.cells["random"][lead].value


def test_a_short_version_of_the_true_class(module: Any, jobs: Any, monkeypatch: Any, tmp_path: Any) -> None:
    monkeypatch.setattr(module("bert"), "SPECIFIC", ("relevancy", "relevancy+libra", "rollout"))
    table = module("jobs").run(jobs["bert-true-class"], 24, tmp_path, None)
    rows = {name: cells["SRG"].value for name, cells in table.cells.items()}
    assert rows["relevancy+libra"] > rows["relevancy+libra, predicted class"]
    assert rows["rollout"] == rows["rollout, predicted class"], "it knows no class"


def test_an_atom_of_the_product_is_the_one_it_was(module: Any) -> None:
    alignments = module("alignments")
    found = list(alignments.reactions())
    assert len(found) > 400
    for atom in found:
        assert atom.text[atom.place] == atom.text[atom.source]
        assert atom.others[atom.source]
        assert not atom.others[atom.place]
        assert atom.source < atom.text.index(">>") < atom.place
    # the same order before and after: no two atoms of a product have one source
    first = [(atom.place, atom.source) for atom in found if atom.text == found[0].text]
    assert first == sorted(first)
    assert len({source for _, source in first}) == len(first)


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_samples_are_drawn(module: Any, tmp_path: Any, name: Any) -> None:
    (draw,) = module(name).SAMPLES.values()
    draw(tmp_path / "sample.png")
    assert (tmp_path / "sample.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.packages
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["rxnmapper-atoms", "annalog-copies", "lightglue-matches"])
def test_a_short_version_of_other_authors_models(
    module: Any, jobs: Any, monkeypatch: Any, tmp_path: Any, name: Any
) -> None:
    alignments, others = module("alignments"), module("others")
    few = ["relevancy", "relevancy+libra", "random"]
    monkeypatch.setattr(alignments, "ACROSS", few)
    monkeypatch.setattr(alignments, "WITHIN", few)
    try:
        table = module("jobs").run(jobs[name], 6, tmp_path, None)
    except others.NotInstalledError as error:
        pytest.skip(str(error))
    for method in few[:2]:
        assert table.cells[method]["AP"].value > table.cells["random"]["AP"].value
