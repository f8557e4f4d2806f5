"""The atlas of methods: its judge and its page tell what each method does."""

from __future__ import annotations

from pathlib import Path

import pytest
from atlas import every_method
from atlas.cases import registry
from atlas.method_report import method_report
from atlas.run import finished, run

import fxplain


def test_every_method_runs_on_a_plain_attention_and_the_page_says_so(tmp_path: Path) -> None:
    results = tmp_path / "methods.jsonl"
    run([("atlas.odd_models", "right"), ("atlas.odd_models", "dies")], results, 1, 60, every_method.judge)
    records = finished(results)
    answers = records["atlas.odd_models", "right"]["answers"]
    assert set(answers) == set(every_method.names())
    assert {outcome for outcome, _ in answers.values()} <= {"runs", "not defined"}
    page = method_report(records.values())
    assert "| `relevancy` | 1 | 1 | 0 | 0 | 0 | 0 | 0 | 100.0 % |" in page
    assert "| atlas.odd_models | dies | crashed | the process ended with code N |" in page


def test_what_is_lost_is_refused_and_what_is_not_defined_says_why() -> None:
    verdict = every_method.judge(registry("atlas.odd_models"), "atlas.odd_models", "refused")
    assert verdict.outcome == "refused"
    error = fxplain.errors.MethodError("relevance has no rule for an operation: a")
    assert every_method.answer_of("lrp", error)[0] == "no rule"
    error = fxplain.errors.MethodError("legrad is not defined here")
    assert every_method.answer_of("legrad", error)[0] == "not defined"
    assert every_method.answer_of("legrad", ValueError("no"))[0] == "crashed"


@pytest.mark.parametrize("name", ["lrp", "partial_lrp"])
def test_zeros_are_a_fault_but_of_methods_that_clamp_one_map(name: str) -> None:
    case = registry("atlas.odd_models").build("right", None)
    result = fxplain.explain(case.model, case.inputs)
    assert every_method.fault(name, result) == ""
    for part in result.relevance.values():
        part.zero_()
    assert every_method.fault(name, result) == ("values: all zero" if name == "lrp" else "")
