"""The comparison of graph and model, and where nodes come from."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxplain
from fxplain.attribution import prediction
from fxplain.capture.capture import capture
from fxplain.capture.verify import check, check_finite_outputs, difference, tolerance, verify
from fxplain.errors import InputError, NonFiniteError, VerificationError
from fxplain.maps import kernels
from fxplain.where import module_path, source_line

INF = float("inf")


@pytest.mark.parametrize(
    ("found", "expected", "gap"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.0], [1.0, 4.0], 0.5),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([1e-9], [0.0], INF),
        ([-INF, 1.0], [-INF, 1.0], 0.0),
        ([-INF, 1.0], [-INF, 2.0], 0.5),
        ([0.0, 1.0], [-INF, 1.0], INF),
        ([float("nan")], [1.0], INF),
        ([INF], [1.0], INF),
        ([float("nan"), 1.0], [float("nan"), 1.0], 0.0),
        ([], [], 0.0),
        ([1.0], [1.0, 2.0], INF),
    ],
)
def test_difference(found: list[float], expected: list[float], gap: float) -> None:
    result = difference(torch.tensor(found), torch.tensor(expected))
    assert result == gap


def test_difference_of_other_types() -> None:
    assert difference(torch.tensor([True]), torch.tensor([True])) == 0
    assert difference(torch.tensor([1, 2]), torch.tensor([1, 4])) == 0.5
    assert difference(torch.tensor([1j]), torch.tensor([2j])) == 0.5
    assert difference(torch.tensor([1]), torch.tensor([1.0])) == INF


def test_tolerance_is_that_of_the_coarsest_type() -> None:
    single, half, ids = torch.ones(1), torch.ones(1, dtype=torch.bfloat16), torch.ones(1, dtype=torch.long)
    assert tolerance([single, ids]) == 1e-5
    assert tolerance([single], [half]) == tolerance([half])
    assert tolerance([single.double()]) == 1e-10
    assert tolerance([ids]) == 1e-5


def test_check_refuses_nan_and_other_counts() -> None:
    one = torch.ones(1)
    with pytest.raises(VerificationError, match="output 'a'"):
        check([one * float("nan")], [("a", one)], 1e-5, "export")
    with pytest.raises(VerificationError, match="2 outputs instead of 1"):
        check([one, one], [("a", one)], 1e-5, "export")


def test_finite_outputs() -> None:
    check_finite_outputs([("masked", torch.tensor([-INF, 0.0])), ("ids", torch.tensor([1]))])
    for bad in (INF, float("nan")):
        with pytest.raises(NonFiniteError, match=r"(?s)output 'logits'.*1 of 2"):
            check_finite_outputs([("logits", torch.tensor([bad, 0.0]))])


class Clamp(nn.Module):
    """Takes another way for large inputs, which a trace does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.limit = nn.Linear(2, 2), 10.0

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.lin(x)
        return y * (2.0 if self.limit < 10 else 1.0)


def test_verify_notices_that_the_model_has_changed() -> None:
    model, x = Clamp(), torch.ones(1, 2)
    captured = capture(model, (x,), {})
    assert verify(captured, (x * 3,), {}) <= 1e-6
    model.limit = 1.0
    with pytest.raises(VerificationError, match=r"0\.5"):
        verify(captured, (x,), {})
    with pytest.raises(InputError, match="differs"):
        verify(captured, (torch.ones(2, 2),), {})


def test_where() -> None:
    graph = torch.fx.Graph()
    node = graph.placeholder("x")
    assert (module_path(node), source_line(node)) == ("", "")
    torch_file = torch.nn.functional.__file__
    inner = f'  File "{torch_file}", line 7, in linear\n'
    node.meta["stack_trace"] = inner
    assert source_line(node) == "torch/nn/functional.py:7"
    node.meta["stack_trace"] = f'  File "/lib/site-packages/pack/mod.py", line 3, in f\n{inner}'
    assert source_line(node) == "pack/mod.py:3"
    node.meta["stack_trace"] = (
        f'  File "/elsewhere/net.py", line 12, in f\n{inner}  File "<eval>", line 1, in g\n'
    )
    assert source_line(node) == "/elsewhere/net.py:12"


def test_rebuilt_maps_are_looked_at_once_for_a_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    real = prediction.check_rebuilt  # type: ignore[attr-defined]
    monkeypatch.setattr(prediction, "check_rebuilt", lambda *args: looks.append(1) or real(*args))
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    traced = fxplain.trace(layer, torch.randn(1, 4, 8))
    first = traced.explain(torch.randn(1, 4, 8), target=(0, 1))
    again = traced.explain(torch.randn(1, 4, 8), target=(0, 1))
    assert len(looks) == 1
    assert 0 < first.verified == again.verified
    traced.explain(torch.randn(1, 6, 8), target=(0, 1))
    traced.explain(torch.randn(1, 4, 8), target=(0, 1), verify=True)
    assert len(looks) == 3


class Sharp(nn.Module):
    """Attention with scores of some thousands, which are rounded by more than scores of the usual size."""

    def forward(self, x: Tensor) -> Tensor:
        query, key = 20 + 0.2 * x, 20 + 0.06 * x
        y: Tensor = nn.functional.scaled_dot_product_attention(query, key, x)
        return y.mean(1)


def test_large_scores_are_rounded_by_more(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 64, 32, generator=torch.Generator().manual_seed(0))
    sharp = Sharp().eval()
    result = fxplain.explain(sharp, x, 0)
    assert bool(torch.isfinite(result.relevance["x"]).all())
    # what is no rounding is still told
    monkeypatch.setattr(kernels, "_scale", lambda *_: 0.1)
    with pytest.raises(VerificationError, match="does not reproduce"):
        fxplain.explain(sharp, x, 0)
