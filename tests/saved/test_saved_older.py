"""Files that earlier versions saved still load, and explain as the model does."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import pytest
import torch

import fxplain

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What version 0.1 saved of a model with a map of nearly each kind, with torch 2.11."""
    path: Path = tmp_path_factory.mktemp("older") / "every_map.pt2"
    path.write_bytes(gzip.decompress((DATA / "every_map_0.1.pt2.gz").read_bytes()))
    return path


def test_the_maps_of_0_1_are_those_of_today(file: Path) -> None:
    sites = fxplain.load(file)._first.classified.sites
    assert Counter(type(site.map).__name__ for site in sites) == {
        "Kernel": 2,
        "WrittenOut": 2,
        "Sum": 1,
        "EdgeList": 1,
        "Sampled": 1,
        "Operator": 1,
        "Window": 1,
        "Matrix": 1,
        "Elementwise": 3,
        "Gathered": 2,
    }


def test_an_explanation_is_that_of_the_program_traced_anew(file: Path) -> None:
    x = torch.linspace(-1, 1, 64).view(1, 1, 8, 8).sin()
    old = fxplain.load(file).explain(x, target=1)
    new = fxplain.trace(torch.export.load(str(file)), x).explain(x, target=1)
    torch.testing.assert_close(old.score, new.score)
    for name, other in zip(old.relevance, new.relevance, strict=True):  # the program has other names
        torch.testing.assert_close(old.relevance[name], new.relevance[other])
    assert bool(old.relevance["x"].all())
