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
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).parent
WIDEST = 620
"""Pixels of a picture that is kept: notebooks stay small."""


def run(notebook: dict[str, Any], name: str) -> None:
    """Run all code cells in one namespace, in the current folder; outputs go into the cells."""
    module = ModuleType(f"tutorial_{name.replace('-', '_')}")
    sys.modules[module.__name__] = module
    if not Path("toys.py").exists():
        shutil.copy(HERE / "toys.py", "toys.py")
    sys.path.insert(0, str(HERE))  # as a notebook finds what lies beside it
    try:
        for count, cell in enumerate((c for c in notebook["cells"] if c["cell_type"] == "code"), 1):
            cell["execution_count"] = count
            cell["outputs"] = list(_cell("".join(cell["source"]), vars(module), f"{name}, cell {count}"))
            for out in cell["outputs"]:
                if out["output_type"] == "execute_result":
                    out["execution_count"] = count
    finally:
        sys.path.remove(str(HERE))


def _cell(code: str, names: dict[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """Run one cell; what it prints, and its last line's value as text or as a picture."""
    printed = io.StringIO()
    value = None
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        if code.startswith("!fxplain "):
            line = re.sub(r"\{(\w+)\}", lambda found: str(names[found[1]]), code.removeprefix("!fxplain "))
            _command(line, where)
        else:
            tree = ast.parse(code, where)
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, where, "exec"), names)
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), where, "eval"), names)
    if printed.getvalue():
        yield {"output_type": "stream", "name": "stdout", "text": printed.getvalue().splitlines(True)}
    if value is not None and not code.rstrip().endswith(";"):
        data: dict[str, Any] = {"text/plain": repr(value).splitlines(True)}
        if hasattr(value, "savefig"):
            data = {"image/png": _drawn(value), "text/plain": ["a figure"]}
        yield {"output_type": "execute_result", "execution_count": None, "metadata": {}, "data": data}


def _command(line: str, where: str) -> None:
    """A command line of fxplain, in this process: what it loads is loaded already."""
    from fxplain.cli import app

    try:
        code = app(shlex.split(line), prog_name="fxplain")
    except SystemExit as end:
        code = end.code
    if code:
        raise RuntimeError(f"{where}: fxplain {line} ended with {code}")


def _drawn(figure: Any) -> str:
    """A figure as a PNG of a palette, which takes a third of the place."""
    from PIL import Image

    buffer, small = io.BytesIO(), io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    picture = Image.open(buffer).convert("RGB")
    picture.thumbnail((WIDEST, 10 * WIDEST))
    picture.quantize(128).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode("ascii")


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
        print(path.name, path.stat().st_size // 1000, "kB")


if __name__ == "__main__":
    main()
