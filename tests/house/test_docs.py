"""Documents stay true: every python block of README.md and docs/*.md runs, a file's blocks in one namespace.

A ``text`` block straight after a python block is what that block prints. Other blocks marked text, bash or
console are shown only. Paths written there land in a temporary folder.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if path.exists()]


@dataclass(frozen=True)
class Block:
    """A python block: the number of lines before its first, and what it prints if the document says so."""

    start: int
    code: str
    printed: str | None = None


def blocks(text: str) -> list[Block]:
    """The python blocks of a document."""
    found: list[Block] = []
    inside: list[str] = []
    start, language, after_code = 0, "", False
    for number, line in enumerate(text.splitlines(), start=1):
        mark = line.strip()
        if language and mark == "```":
            code = "\n".join(inside)
            if language == "python":
                found.append(Block(start, code))
            elif language == "text" and after_code:
                found[-1] = Block(found[-1].start, found[-1].code, code)
            after_code, language = language == "python", ""
        elif not language and mark.startswith("```"):
            language = (mark.removeprefix("```").split() or ["none"])[0]
            inside, start = [], number
        elif language:
            inside.append(line)
        elif mark:
            after_code = False
    assert not language, f"the block that starts in line {start} never ends"
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_code_blocks_run(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    module = ModuleType(f"document_{document.stem.replace('-', '_')}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in blocks(document.read_text(encoding="utf-8")):
        # leading newlines make a traceback's line that of the document
        exec(compile("\n" * block.start + block.code, str(document), "exec"), vars(module))
        printed = capsys.readouterr().out
        if block.printed is not None:
            where = f"{document.name}, the block after line {block.start}"
            assert printed.split() == block.printed.split(), f"{where} prints:\n{printed}"


LINK = re.compile(r"\[[^\]]*\]\(([^)#:\s]+)\)")
PLACE = re.compile(r"`((?:tracer|rules|adapters|tests|docs|benchmarks|\.ci)(?:/[\w.-]+)*/?)`")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    missing = [link for link in LINK.findall(text) if not (document.parent / link).exists()]
    missing += [place for place in PLACE.findall(text) if not (ROOT / place).exists()]
    assert not missing, f"{document.name} names what is not there: {missing}"


def test_blocks_of_other_languages_are_not_run() -> None:
    text = "```python\na = 1\n```\n\n```bash\nrm x\n```\n\n```text\n```\n\n```python\nb = a\n```\n"
    assert blocks(text) == [Block(1, "a = 1"), Block(12, "b = a")]


def test_text_straight_after_code_is_what_it_prints() -> None:
    text = "```python\nprint(1)\n```\n\n```text\n1\n```\nand\n```python\na\n```\nso\n```text\n2\n```\n"
    assert blocks(text) == [Block(1, "print(1)", "1"), Block(9, "a")]


def test_a_block_without_an_end_is_told() -> None:
    with pytest.raises(AssertionError, match="line 2 never ends"):
        blocks("text\n```python\na = 1\n")


def test_the_readme_says_what_an_explanation_costs() -> None:
    """The range over the rows of docs/performance.md that have a ratio to the floor."""
    table = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8").split("## Measured")[1]
    rows = re.findall(r"^\| ([^|]+) \| [\d.]+ s, [^|]+ \| ([\d.]+)", table, re.MULTILINE)
    ratios = [float(ratio) for _, ratio in rows]
    assert len(ratios) >= 6
    low, high = (f"{round(end, 1):.1f}" for end in (min(ratios), max(ratios)))
    assert f"takes {low} to {high} times as long" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_has_the_measured_numbers() -> None:
    measured = json.loads((ROOT / "benchmarks" / "demo_numbers.json").read_text(encoding="utf-8"))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for method, scores in measured["pointing_game"].items():
        row = " | ".join(f"{100 * score:.1f} %" for score in scores.values())
        assert f"| {method} | {row} |" in text
    assert f"on {measured['canvases']} canvases" in text
    assert f"the\n{measured['objects']} objects" in text or f"the {measured['objects']} objects" in text
    assert f"right on {100 * measured['accuracy']:.1f} % of these" in text
