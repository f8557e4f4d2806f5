"""The atlas: a fast sample of it, and that its judge and its driver tell what is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from atlas.cases import REGISTRIES, registry
from atlas.judge import judge
from atlas.report import report
from atlas.run import finished, run, tasks
from versions import newest_names

SAMPLE = {
    "transformers": (
        "albert bart beit bert bigbird_pegasus blenderbot bloom clip convbert convnext deberta-v2 "
        "deformable_detr dinov2 distilbert donut-swin electra fnet gemma3_text git gpt2 gpt_oss "
        "hubert jamba llava llava_next longformer mamba mgp-str mobilevit mpnet nystromformer opt "
        "owlvit patchtst perceiver pvt qwen2_vl segformer siglip t5 timesformer vit wav2vec2 whisper "
    ),
}
"""Models of many kinds: ``python tests/atlas`` runs all the others, with the same judge."""

CASES = [(library, name) for library, names in SAMPLE.items() for name in names.split()]


@newest_names
@pytest.mark.parametrize(("library", "name"), CASES, ids=[f"{library}:{name}" for library, name in CASES])
def test_sample(library: str, name: str) -> None:
    verdict = judge(registry(library), library, name)
    assert verdict.outcome in ("passed", "no_attention"), (verdict.message, verdict.broken)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """The results of a registry where everything goes wrong that can."""
    results = tmp_path_factory.mktemp("atlas") / "results.jsonl"
    # only these two must run out of time, however busy the machine is
    run(tasks(["atlas.odd_models"], "^(?!computes$|waits$)"), results, workers=2, timeout=600)
    run(tasks(["atlas.odd_models"], "^computes$"), results, workers=1, timeout=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("atlas.run.IMPORTS", 0)
        run(tasks(["atlas.odd_models"], "^waits$"), results, workers=1, timeout=0.01)
    return results, {name: record for (_, name), record in finished(results).items()}


def test_every_outcome_is_told(odd: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    _, records = odd
    assert {name: record["outcome"] for name, record in records.items()} == {
        "computes": "timeout",
        "dies": "crashed",
        "lies": "wrong",
        "mlp": "no_attention",
        "not_built": "not_built",
        "raises": "crashed",
        "refused": "refused",
        "right": "passed",
        "waits": "timeout",
    }
    assert "code 3" in records["dies"]["reason"]
    assert "map differs" in records["lies"]["broken"][0]
    assert "atlas.turned" in records["refused"]["message"]
    assert records["right"]["attentions"] == {"self": 1}


def test_results_are_lines_that_are_appended(odd: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    results, records = odd
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(lines) == len(records)
    run([("atlas.odd_models", "right")], results, workers=1, timeout=60)
    assert len(results.read_text().splitlines()) == len(lines) + 1
    assert len(finished(results)) == len(records)


def test_report_has_every_failure(odd: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    _, records = odd
    page = report(records.values(), {"atlas.odd_models": 9})
    assert "| atlas.odd_models | 9 | 9 | 8 |" in page
    for name in ("computes", "dies", "lies", "raises", "refused", "waits"):
        assert f"| atlas.odd_models | {name} |" in page
    assert "needs a package" in page
    assert "records are of one commit" in page


def test_only_takes_a_pattern() -> None:
    assert tasks(["atlas.odd_models"], "^r") == [
        ("atlas.odd_models", name) for name in ("raises", "refused", "right")
    ]


def test_registries_are_modules() -> None:
    assert "transformers" in REGISTRIES
    assert "bert" in registry("transformers").names()
