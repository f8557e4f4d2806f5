"""Exported programs: captured without user code, with the paths and lines of the model they came from."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxplain.capture.capture import capture
from fxplain.errors import InputError
from fxplain.where import module_path, source_line

torch.set_num_threads(1)


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.plain = nn.Linear(4, 4), torch.ones(4)
        self.register_buffer("shift", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        y[:, 0] = self.shift  # type: ignore[assignment]
        return torch.softmax(self.q(y) @ y.mT, -1) @ y + self.plain


class Outer(nn.Module):
    """Its child has the name that the export wrapper gives to the model."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Inner()

    def forward(self, x: Tensor, extra: Any, *, scale: float = 1.0) -> Any:
        return {"logits": self.model(x)[:, 0] * scale, "extra": (extra["a"][0] + 1,)}


ARGS = (torch.randn(2, 3, 4), {"a": [torch.randn(2)]})


@pytest.fixture(scope="module", params=["training", "inference", "dynamic"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.manual_seed(0)
    dynamic = None
    if request.param == "dynamic":
        batch = torch.export.Dim("batch", min=2, max=8)
        dynamic = {"x": {0: batch}, "extra": {"a": [None]}, "scale": None}
    exported = torch.export.export(Outer().eval(), ARGS, {"scale": 2.0}, dynamic_shapes=dynamic, strict=False)
    path: Path = tmp_path_factory.mktemp("program") / "model.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old versions, at themselves
        if request.param == "inference":
            exported = exported.run_decompositions()
        torch.export.save(exported, path)
        return torch.export.load(path)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (ARGS, {"scale": 2.0}),
        ((), {"x": ARGS[0], "extra": ARGS[1], "scale": 2.0}),
    ],
)
def test_a_program_is_captured(program: Any, args: Any, kwargs: Any) -> None:
    captured = capture(program, args, kwargs)
    assert captured.strategy == "program"
    assert captured.verified <= 1e-6
    assert captured.outputs == ("logits", "extra.0")
    assert not any("training" in note for note in captured.notes)
    paths = {placeholder.path for placeholder in captured.placeholders}
    assert paths == {"x", "extra.a.0", "model.q.weight", "model.q.bias", "model.shift", "model.plain"}
    calls = [node for node in captured.graph.graph.nodes if node.op == "call_function"]
    softmax = next(node for node in calls if "softmax" in str(node.target))
    assert module_path(softmax) == "model"
    assert "test_program.py" in source_line(softmax)
    assert {"model.q", "model", ""} == {module_path(node) for node in calls}
    assert captured.bind(args, kwargs).keys() == {p.node for p in captured.placeholders}


def test_wrong_inputs_of_a_program(program: Any) -> None:
    with pytest.raises(InputError, match=r"(?s)expected: x, extra, scale.*found: x"):
        capture(program, ARGS[:1], {})
    with pytest.raises(InputError, match="the model raised"):
        capture(program, (torch.randn(9, 3, 4), ARGS[1]), {"scale": 2.0})
