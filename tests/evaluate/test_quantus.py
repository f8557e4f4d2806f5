"""The bridge to Quantus: a function for its metrics. What they do with it is written out, for want of the
package."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxplain
from fxplain.demo import load_demo
from fxplain.demo.held_out import questions
from fxplain.errors import InputError, UnknownNameError
from fxplain.evaluate import ExplainFunc


class Logits(nn.Module):
    """The demo's model as Quantus wants one: pixels in, logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.model = load_demo().model

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=pixel_values).logits
        return logits


@pytest.fixture(scope="module")
def asked() -> Any:
    return questions(4)


@pytest.fixture(scope="module")
def pictures(asked: Any) -> tuple[np.ndarray, np.ndarray]:
    return asked.pixel_values.numpy(), np.asarray(asked.targets)


def as_quantus_asks(explain_func: Any, model: nn.Module, x: np.ndarray, y: np.ndarray, **more: Any) -> Any:
    """What Quantus 0.6 does with it in ``Metric.explain_batch``."""
    a = explain_func(model=model, inputs=x, targets=y, **more)
    assert type(a) is np.ndarray
    assert len(a) == len(x)
    assert a.ndim == x.ndim
    assert np.isfinite(a).all()
    return a


def test_maps_of_pictures(pictures: Any) -> None:
    x, y = pictures
    model = Logits().eval()
    explain = ExplainFunc()
    found = as_quantus_asks(explain, model, x, y, device="cpu")
    assert found.shape == (4, 1, *x.shape[2:])
    result = fxplain.explain(model, torch.from_numpy(x), target=y.tolist())
    cells = nn.functional.adaptive_max_pool2d(torch.from_numpy(found), (8, 8))[:, 0].flatten(1)
    assert torch.equal(cells.argmax(1), result.grid("pixel_values").flatten(1).argmax(1))
    assert as_quantus_asks(explain, model, x[:3], y[:3]).shape[0] == 3, "the last batch is smaller"
    rollout = as_quantus_asks(explain, model, x, y, method="rollout")
    assert not np.allclose(rollout, found)


def test_a_copy_with_other_weights_is_another_model(pictures: Any) -> None:
    x, y = pictures
    model, explain = Logits().eval(), ExplainFunc()
    before = as_quantus_asks(explain, model, x, y)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(parameter.flatten()[torch.randperm(parameter.numel())].view_as(parameter))
    assert not np.allclose(as_quantus_asks(explain, other, x, y), before)
    np.testing.assert_allclose(as_quantus_asks(explain, model, x, y), before, rtol=1e-5, atol=1e-7)


def test_tokens_and_what_is_no_map() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")
    with pytest.raises(UnknownNameError):
        ExplainFunc(space="nothing")(model, x, [(0, 1), (1, 1)])
    assert ExplainFunc()(model, x, [(0, 1), (1, 1)]).shape == (2, 5, 1)
    with pytest.raises(InputError, match="no map of the inputs"):
        ExplainFunc()(nn.Sequential(nn.Flatten(0, 1), model).eval(), x[:, None], None)


@pytest.mark.packages
@pytest.mark.filterwarnings("ignore")
def test_a_metric_of_the_package(pictures: Any, monkeypatch: Any) -> None:
    quantus = pytest.importorskip("quantus")
    monkeypatch.setenv("PYTEST", "1")  # no bar
    x, y = pictures
    metric = quantus.PixelFlipping(features_in_step=1024, perturb_baseline="black", disable_warnings=True)
    curves = {
        name: metric(
            model=Logits().eval(),
            x_batch=x,
            y_batch=y,
            explain_func=ExplainFunc(name),
            explain_func_kwargs={},
            device="cpu",
        )
        for name in ("relevancy", "random")
    }
    assert np.mean(curves["relevancy"]) < np.mean(curves["random"])
