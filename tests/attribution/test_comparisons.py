"""Comparisons where not every method can be had: the others go on, and each says why it does not."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxplain
from fxplain.attribution.prediction import Prediction
from fxplain.attribution.scheduled import Explained
from fxplain.attribution.table import METHODS
from fxplain.display import Display
from fxplain.errors import NonFiniteError, TargetError, UnknownOpError


class Attend(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(4))
        self.head = nn.Linear(8, 3)

    def between(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(self.embed(x))
        x = x + (self.query(x) @ self.key(x).mT).softmax(-1) @ self.value(x)
        return self.head(x[:, 0])


@torch.library.custom_op("fxplain_tests::stirred", mutates_args=())
def stirred(x: Tensor) -> Tensor:
    return x + x.flip(1)


stirred.register_fake(torch.empty_like)
stirred.register_autograd(lambda _, gradient: gradient + gradient.flip(1))


class Lost(Attend):
    """Token labels are lost before the attention, at an operation that no table has."""

    def between(self, x: Tensor) -> Tensor:
        mixed: Tensor = stirred(x)
        return mixed


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def test_methods_that_need_no_labels_go_on_where_labels_are_lost(x: Tensor) -> None:
    found = fxplain.compare(
        Lost().eval(), x, ["relevancy", "random", "rollout", "gradient_x_input"], target=1
    )
    assert list(found.refused) == ["relevancy", "rollout"]
    assert list(found) == ["random", "gradient_x_input"]
    with pytest.raises(UnknownOpError, match="token labels were lost"):
        found["relevancy"]


def test_methods_without_gradient_go_on_where_none_passes(x: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that it has another quantisation
        model = torch.ao.quantization.quantize_dynamic(Attend().eval(), {nn.Linear}, dtype=torch.qint8)
    found = fxplain.compare(model, x, ["relevancy", "rollout", "random"], target=1)
    assert list(found) == ["rollout", "random"]
    with pytest.raises(UnknownOpError, match="no gradient passes"):
        found["relevancy"]


@pytest.fixture
def explodes() -> Iterator[str]:
    def explode(prediction: Prediction) -> Explained:
        return Explained(torch.full((prediction.batch, 5), torch.inf))

    METHODS["explodes"] = replace(METHODS["random"], name="explodes", explain=explode)
    yield "explodes"
    del METHODS["explodes"]


def test_one_method_that_is_not_finite_spoils_none_of_the_others(x: Tensor, explodes: str) -> None:
    found = fxplain.compare(Attend().eval(), x, ["relevancy", explodes], target=1)
    assert list(found) == ["relevancy"]
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        found[explodes]


def test_all_numbers_are_kept_in_one_file(x: Tensor, tmp_path: Path) -> None:
    found = fxplain.compare(Attend().eval(), x, ["relevancy", "legrad", "lrp", "rollout"], target=1)
    found.save(tmp_path / "a.npz", Display(images={"x": [np.zeros((4, 4, 3), np.uint8)] * 2}))
    with np.load(tmp_path / "a.npz", allow_pickle=False) as data:
        facts = json.loads(str(data["facts"]))
        for name, result in found.items():
            np.testing.assert_array_equal(data[f"{name}/relevance/x"], result.relevance["x"].numpy())
        np.testing.assert_array_equal(data["lrp/inputs/x"], found["lrp"].inputs["x"].numpy())
        assert data["image/x/1"].shape == (4, 4, 3)
    assert list(facts["methods"]) == list(found)
    assert set(facts["refused"]) == set(found.refused)


def test_notes_say_whose_they_are(x: Tensor) -> None:
    found = fxplain.compare(Lost().eval(), x, ["random", "lrp"], target=1)
    assert any(note.startswith("lrp: relevance, per sample") for note in found.notes)
    single = fxplain.compare(Attend().eval(), x, ["lrp"], target=1)
    assert single.notes == single["lrp"].notes


def test_what_is_wrong_for_all_is_an_error(x: Tensor) -> None:
    with pytest.raises(TargetError):
        fxplain.compare(Attend().eval(), x, ["relevancy", "rollout", "random"], target=7)
