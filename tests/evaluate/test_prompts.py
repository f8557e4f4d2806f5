"""Prompts with known sources, and how intervals are drawn over their templates."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch

TASKS = ["indirect object", "retrieval", "copied name", "agreement"]


def every(words: Sequence[str]) -> list[str]:
    return list(words)


@pytest.mark.parametrize("name", TASKS)
def test_the_source_of_an_answer_stands_once_in_its_prompt(module: Any, name: str) -> None:
    task = module("prompts").TASKS[name]
    for number in range(len(task.templates)):
        for prompt in task.prompts(number, 5, every):
            words = re.findall(r"\w+", prompt.text)
            assert words.count(prompt.source) == 1, prompt
            assert prompt.answer != prompt.other
            assert prompt.source == prompt.answer or name == "agreement"
            assert "{" not in prompt.text


@pytest.mark.parametrize("name", TASKS)
def test_choices_and_reports_share_no_template(module: Any, name: str) -> None:
    task = module("prompts").TASKS[name]
    halves = [set(task.numbers(half)) for half in ("choice", "report")]
    assert not halves[0] & halves[1]
    assert len(set(task.templates)) == len(task.templates) == sum(map(len, halves))


def test_more_prompts_begin_with_the_same(module: Any) -> None:
    task = module("prompts").TASKS["retrieval"]
    few, many = (task.prompts(3, count, every) for count in (4, 9))
    assert many[:4] == few
    assert len({prompt.text for prompt in many}) == 9


def test_intervals_draw_whole_clusters(module: Any) -> None:
    pytest.importorskip("scipy")
    by_clusters = module("language").by_clusters
    clusters = torch.arange(10).repeat_interleave(20)
    alike = by_clusters(torch.tensor([0.0, 1.0]).repeat(100), clusters)
    torch.testing.assert_close(alike, torch.full_like(alike, 0.5))
    apart = by_clusters((clusters < 5).double(), clusters)
    assert apart[0] == 0.5
    assert apart[1:].std() > 3 * (0.25 / len(clusters)) ** 0.5, "200 rows that are 10 units"


def test_where_the_source_is_found(module: Any) -> None:
    language = module("language")
    batch = language.Batch(
        0, torch.zeros(3, 4), *torch.tensor([[1, 2, 0]] * 3), torch.tensor([True, True, False])
    )
    relevance = torch.tensor([[0.1, 0.6, 0.2, 9.0], [0.5, 0.1, 0.4, 9.0], [1.0, 0.0, 0.0, 0.0]])
    found = {name: rows.tolist() for name, rows in language.scored(relevance, batch).items()}
    assert found["source found"] == [1, 0]
    assert found["found, first token aside"] == [1, 1]
    assert found["share on the first token"] == pytest.approx([0.1 / 0.9, 0.5])


def test_rows_are_added_to_a_table_of_the_same_samples_alone(module: Any, tmp_path: Any) -> None:
    jobs, measure = module("jobs"), module("jobs").Table
    from fxplain.evaluate import Measure

    def table(**rows: float) -> Any:
        return measure("t", (Measure("hit"),), {k: {"hit": torch.full((4,), v)} for k, v in rows.items()})

    made = [table(relevancy=0.5, random=0.1), table(relevancy=0.5, net_relevancy=0.7, random=0.1)]
    made += [table(relevancy=0.4, net_relevancy=0.9)]
    job = jobs.Job("t", "m", "t", "t", lambda count: made.pop(0), 4)
    jobs.run(job, folder=tmp_path, images=None)
    jobs.extend(job, folder=tmp_path)
    record = json.loads((tmp_path / "t.json").read_text())
    assert list(record["scores"]) == ["net_relevancy", "relevancy", "random"]
    assert [line.split("`")[1] for line in record["markdown"].split("\n")[2:]] == list(record["scores"])
    assert record["against"]["net_relevancy"][0] == pytest.approx(0.2)
    with pytest.raises(ValueError, match="where the table says"):
        jobs.extend(job, folder=tmp_path)
