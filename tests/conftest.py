"""One thread per test process: the models are tiny, and the processes share the cores."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # what would be fetched fails at once, and not after retries
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


# -- which tests share a process, under pytest-xdist: those that share what was traced

SHARING = re.compile(r"\b(from zoo import .*\btraced\b|from references import .*\bexactly_traced\b)")
ALONE = ("attention/test_atlas.py::test_sample", "house/test_docs.py", "evaluate/test_experiments.py")
"""Long tests that share nothing."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler.loadscope import LoadScopeScheduling

    class ByWhatIsShared(LoadScopeScheduling):  # type: ignore[misc]
        """A process takes whole files; those on the traced models of the zoo are one."""

        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return nodeid if any(part in nodeid for part in ALONE) else group_of(path)

    return ByWhatIsShared(config, log)


@cache
def group_of(path: str) -> str:
    """The group of a test file, named by its path from the root."""
    file = Path(__file__).parent.parent / path
    return "zoo" if file.exists() and SHARING.search(file.read_text(encoding="utf-8")) else path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium is installed")
    with api.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()
