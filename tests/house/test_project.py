"""What a stranger looks for around the code: metadata, links, citation, changelog, hooks, the site."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import pytest

import fxplain

ROOT = Path(__file__).parent.parent.parent
LINK = re.compile(r"\]\((?!#)([^)]+)\)")


def project() -> Any:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_index_shows_absolute_links() -> None:
    facts = metadata("fxplain")
    text: str = facts["Description"] or facts.get_payload()  # type: ignore[attr-defined]
    assert facts["Description-Content-Type"] == "text/markdown"
    links = LINK.findall(text)
    assert len(links) == len(LINK.findall((ROOT / "README.md").read_text(encoding="utf-8")))
    assert all(link.startswith("https://") for link in links)
    repository = project()["urls"]["Repository"]
    assert f"{repository}/raw/main/docs/images/demo.png" in links
    for link in links:
        inside = re.fullmatch(rf"{re.escape(repository)}/(?:raw|blob)/main/([^#]+).*", link)
        assert inside is None or (ROOT / inside[1]).exists(), link


def test_the_metadata_are_whole() -> None:
    facts = project()
    assert {"Repository", "Documentation", "Changelog", "Issues"} <= set(facts["urls"])
    assert facts["keywords"]
    assert (
        f"Programming Language :: Python :: {facts['requires-python'].removeprefix('>=')}"
        in facts["classifiers"]
    )
    assert "Typing :: Typed" in facts["classifiers"]


def test_the_version_is_the_same_everywhere() -> None:
    version = project()["version"]
    assert fxplain.__version__ == version
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert version in headings


def test_both_papers_are_cited() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    for doi in ("10.1109/ICCV48922.2021.00045", "10.1109/CVPR46437.2021.00084"):
        assert f"doi: {doi}" in text


@pytest.mark.parametrize(
    "tool", ["ruff format --check", "ruff check", "mypy", "mypy --config-file tests/mypy.ini", "lint-imports"]
)
def test_hooks_and_checks_run_the_same_tools(tool: str) -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert f"entry: {tool}," in hooks
    assert re.search(rf"^{tool}", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_site_has_every_page() -> None:
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert set(re.findall(r": (\S+\.md)$", site, re.MULTILINE)) == {
        "index.md", *(path.name for path in (ROOT / "docs").glob("*.md")),
        *(f"tutorials/{path.stem}.md" for path in (ROOT / "docs" / "tutorials").glob("*.ipynb")),
    }  # fmt: skip
    assert "mkdocs build --strict" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
