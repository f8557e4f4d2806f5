"""What is public: ``dir(fxplain)``, each name documented, and the API page lists all of them."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import fxplain

API = Path(__file__).parent.parent.parent / "docs" / "api.md"


def test_dir_is_the_public_api() -> None:
    assert dir(fxplain) == sorted(fxplain.__all__)
    assert not {"Any", "TYPE_CHECKING", "annotations", "import_module"} & set(dir(fxplain))
    assert {"Display", "TokenText", "Loaded", "LoadOptions", "adapters", "evaluate"} <= set(dir(fxplain))


def test_every_error_is_public() -> None:
    errors = {name for name, value in vars(fxplain.errors).items() if isinstance(value, type)}
    assert errors <= set(dir(fxplain))


@pytest.mark.parametrize("name", [name for name in fxplain.__all__ if name != "__version__"])
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(fxplain, name)
    assert inspect.getdoc(value)
    # a dataclass without a docstring is given its signature as one
    assert not inspect.getdoc(value).startswith(f"{name}(")  # type: ignore[union-attr]


def test_the_api_page_lists_every_public_name() -> None:
    listed = re.findall(r"^::: fxplain\.(?:[\w.]+\.)?(\w+)$", API.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(listed) == set(fxplain.__all__) - {"__version__"}
