"""In-place operations: out of place where nothing else reads what they write, else by a second trace."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from fxplain.capture.capture import capture


def activations(x: Tensor) -> Tensor:
    return torch.relu_(x @ x.mT).mul_(2).add_(1.0)


def only_a_view_is_read(x: Tensor) -> Tensor:
    return (x * 2).view(-1).add_(1).view(x.shape)


def filled_with_a_mask(x: Tensor) -> Tensor:
    return (x * 2).masked_fill_(x > 0, 0.5)


def its_base_is_read(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 0].add_(1)
    return y


def an_older_view_is_read(x: Tensor) -> Tensor:
    y = x * 2
    view = y.view(-1)
    y.mul_(3)
    return view.view(x.shape) + y


def a_part_of_a_split_is_read(x: Tensor) -> Tensor:
    y = x * 2
    parts = y.chunk(2, 1)
    y.mul_(3)
    return y + parts[1].sum()


def a_dropout_that_is_off(x: Tensor) -> Tensor:
    y = x * 2
    same = nn.functional.dropout(y, training=False)
    same.add_(1)
    return same + 0 * same.view(-1)[0]


def its_own_type_is_kept(x: Tensor) -> Tensor:
    return (x * 2).add_(x.double()).float()


TABLE = torch.ones(2, 4, 4)


def a_constant_is_written(x: Tensor) -> Tensor:
    return x + TABLE.view(-1).mul_(1.0).view(x.shape)


def an_input_is_written(x: Tensor) -> Tensor:
    x.view(-1).add_(1)
    return x * 2


ALONE = [activations, only_a_view_is_read, filled_with_a_mask, a_dropout_that_is_off]
SEEN = [
    its_base_is_read,
    an_older_view_is_read,
    a_part_of_a_split_is_read,
    its_own_type_is_kept,
    an_input_is_written,
]


class Net(nn.Module):
    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x)


@pytest.mark.parametrize("compute", [*ALONE, *SEEN], ids=lambda f: f.__name__)
def test_a_second_trace_only_where_it_is_needed(
    compute: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = []
    decompose = ExportedProgram.run_decompositions
    monkeypatch.setattr(
        ExportedProgram,
        "run_decompositions",
        lambda program, table: traces.append(1) or decompose(program, table),
    )
    x = torch.randn(2, 4, 4)
    captured = capture(Net(compute).eval(), (x,), {})
    assert captured.strategy == "export"
    assert captured.verified == 0
    assert bool(traces) is (compute in SEEN)
    for node in captured.graph.graph.nodes:
        assert not getattr(getattr(node.target, "_schema", None), "is_mutable", False), node


def test_what_outlives_the_run_is_not_written_out_of_place() -> None:
    x = torch.randn(2, 4, 4)
    captured = capture(Net(a_constant_is_written).eval(), (x,), {})
    assert captured.strategy == "record"
    assert captured.verified == 0
