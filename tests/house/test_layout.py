"""The folders tracer/, rules/ and adapters/ are the installed package, file by file."""

from __future__ import annotations

import re
import tomllib
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FOLDERS = {"tracer": "", "rules": "rules", "adapters": "adapters"}
TEST_COMMAND = 'pip install -e ".[dev]" && pytest -q -n 2'
AGAIN = 'the installed fxplain is not what the folders hold; run again: pip install -e ".[dev]"'


def files(folder: Path) -> set[str]:
    """Paths of what a folder holds, without Python's and editors' leavings."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(p) for p in paths if "__pycache__" not in p.parts and not p.name.startswith(".")}


def installed(part: str) -> Path:
    spec = find_spec("fxplain")
    assert spec is not None, AGAIN
    assert spec.origin is not None, AGAIN
    return Path(spec.origin).parent / part


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_file_is_installed(folder: str) -> None:
    missing = files(ROOT / folder) - files(installed(FOLDERS[folder]))
    assert not missing, f"{AGAIN}\nin {folder}/ but not installed: {sorted(missing)}"


def test_nothing_else_is_installed() -> None:
    expected = {str(Path(part) / name) for folder, part in FOLDERS.items() for name in files(ROOT / folder)}
    extra = files(installed("")) - expected
    assert not extra, f"{AGAIN}\ninstalled but in no folder: {sorted(extra)}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_installed_files_are_the_folders(folder: str) -> None:
    for name in sorted(files(ROOT / folder)):
        copy = installed(FOLDERS[folder]) / name
        assert copy.read_bytes() == (ROOT / folder / name).read_bytes(), f"{AGAIN}\n{copy} is another {name}"


def test_pyproject_lists_every_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = {
        ".".join(["fxplain", *filter(None, [part]), *path.parent.relative_to(ROOT / folder).parts])
        for folder, part in FOLDERS.items()
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert set(settings["packages"]) == found
    assert set(settings["package-dir"]) == {"fxplain", "fxplain.rules", "fxplain.adapters"}


def test_readme_and_checks_run_the_same_test_command() -> None:
    assert TEST_COMMAND in (ROOT / "README.md").read_text(encoding="utf-8")
    assert TEST_COMMAND in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_no_path_of_one_machine_in_what_is_shipped() -> None:
    home = re.compile(r"/(home|root|Users|opt|work)/\w+")
    for folder in FOLDERS:
        for name in sorted(files(ROOT / folder)):
            if name.endswith((".py", ".html", ".json", ".md")):
                text = (ROOT / folder / name).read_text(encoding="utf-8")
                assert not home.search(text), f"{folder}/{name} names {home.search(text)}"


def test_the_picture_of_the_rooms_is_that_of_the_code() -> None:
    spec = spec_from_file_location("draw_rooms", ROOT / "docs" / "draw_rooms.py")
    assert spec is not None
    assert spec.loader is not None
    drawing = module_from_spec(spec)
    spec.loader.exec_module(drawing)
    assert drawing.PICTURE.read_text() == drawing.drawn(), "run: python docs/draw_rooms.py"
