"""Documents stay true: every python block of README.md and docs/*.md runs, a file's blocks in one namespace.

Blocks marked text, bash or console are shown only. Paths written there land in a temporary folder.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if path.exists()]


def blocks(text: str) -> list[tuple[int, str]]:
    """The python blocks of a document with the number of lines before each."""
    found: list[tuple[int, str]] = []
    inside: list[str] | None = None
    start, fence = 0, ""
    for number, line in enumerate(text.splitlines(), start=1):
        mark = line.strip()
        if fence and mark == "```":
            if inside is not None:
                found.append((start, "\n".join(inside)))
            inside, fence = None, ""
        elif not fence and mark.startswith("```"):
            fence, start = mark, number
            inside = [] if mark.removeprefix("```").split()[:1] == ["python"] else None
        elif inside is not None:
            inside.append(line)
    assert not fence, f"the block that starts in line {start} never ends"
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_code_blocks_run(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = ModuleType(f"document_{document.stem.replace('-', '_')}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for start, code in blocks(document.read_text(encoding="utf-8")):
        # leading newlines make a traceback's line that of the document
        exec(compile("\n" * start + code, str(document), "exec"), vars(module))


def test_blocks_of_other_languages_are_not_run() -> None:
    text = "```python\na = 1\n```\n\n```bash\nrm x\n```\n\n```text\n```\n\n```python\nb = a\n```\n"
    assert blocks(text) == [(1, "a = 1"), (12, "b = a")]


def test_a_block_without_an_end_is_told() -> None:
    with pytest.raises(AssertionError, match="line 2 never ends"):
        blocks("text\n```python\na = 1\n")
