"""The rules are mathematics: they import torch, the standard library and each other, and nothing else."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

RULES = Path(__file__).parent.parent.parent / "rules"


def imported(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "." * node.level)
    return found


@pytest.mark.parametrize("path", sorted(RULES.glob("*.py")), ids=lambda path: path.name)
def test_a_rule_imports_torch_alone(path: Path) -> None:
    for name in imported(path.read_text(encoding="utf-8")):
        top = name.split(".")[0]
        ours = name == "fxplain.rules" or name.startswith("fxplain.rules.")
        assert ours or top == "torch" or top in sys.stdlib_module_names, f"{path.name} imports {name}"
