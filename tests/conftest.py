"""One thread per test process: the models are tiny, and the processes share the cores."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)
EXPERIMENTS = Path(__file__).parent.parent / "benchmarks" / "experiments"


@pytest.fixture(autouse=True)
def _seed() -> None:
    """What a test draws without a seed of its own is the same in every run."""
    torch.manual_seed(0)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Imports an experiment's module as its scripts do, and forgets it again."""
    names = {path.stem for path in EXPERIMENTS.glob("*.py")}
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    before = {name: sys.modules.pop(name) for name in names & set(sys.modules)}
    yield importlib.import_module
    for name in names & set(sys.modules):
        del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture
def jobs(module: Callable[[str], Any]) -> dict[str, Any]:
    """All experiments by name."""
    found: dict[str, Any] = module("run").jobs()
    return found
