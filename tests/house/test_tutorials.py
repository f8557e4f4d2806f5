"""Tutorials run from top to bottom, and hold what they printed and drew."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

TUTORIALS = Path(__file__).parent.parent.parent / "docs" / "tutorials"
NOTEBOOKS = sorted(TUTORIALS.glob("*.ipynb"))


def runner() -> Any:
    spec = importlib.util.spec_from_file_location("tutorials_run", TUTORIALS / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_tutorial_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert any(cell["outputs"] for cell in code), "run python docs/tutorials/run.py"
    kept = [len(cell["outputs"]) for cell in code]
    runner().run(notebook, path.stem)
    assert [len(cell["outputs"]) for cell in code] == kept


def test_there_is_one_for_each_job() -> None:
    assert len(NOTEBOOKS) >= 6
