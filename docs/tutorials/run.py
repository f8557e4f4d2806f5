"""Runs the notebooks beside this file from top to bottom and keeps what they print and draw.

    python docs/tutorials/run.py            # all
    python docs/tutorials/run.py sounds     # one

The tests run them as well, and keep nothing (``tests/house/test_tutorials.py``).
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).parent


def run(notebook: dict[str, Any], name: str) -> None:
    """Run all code cells in one namespace, in the current folder; outputs go into the cells."""
    module = ModuleType(f"tutorial_{name.replace('-', '_')}")
    sys.modules[module.__name__] = module
    count = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            count += 1
            cell["execution_count"] = count
            cell["outputs"] = list(_cell("".join(cell["source"]), vars(module), f"{name}, cell {count}"))


def _cell(code: str, names: dict[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """Run one cell; what it prints, and its last line's value as text or as a picture."""
    tree = ast.parse(code, where)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    value = None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, where, "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), where, "eval"), names)
    if printed.getvalue():
        yield {"output_type": "stream", "name": "stdout", "text": printed.getvalue().splitlines(True)}
    if value is not None:
        data: dict[str, Any] = {"text/plain": repr(value).splitlines(True)}
        if hasattr(value, "savefig"):
            buffer = io.BytesIO()
            value.savefig(buffer, format="png", dpi=70)
            data = {
                "image/png": base64.b64encode(buffer.getvalue()).decode("ascii"),
                "text/plain": ["a figure"],
            }
        yield {"output_type": "execute_result", "execution_count": None, "metadata": {}, "data": data}


def main() -> None:
    """Run the notebooks that are named, or all, and write them back."""
    chosen = [HERE / f"{name}.ipynb" for name in sys.argv[1:]] or sorted(HERE.glob("*.ipynb"))
    for path in chosen:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        with tempfile.TemporaryDirectory() as folder:
            before = Path.cwd()
            os.chdir(folder)
            try:
                run(notebook, path.stem)
            finally:
                os.chdir(before)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(path.name)


if __name__ == "__main__":
    main()
