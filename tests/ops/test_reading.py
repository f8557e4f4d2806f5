"""The law for labels: a reading says what a result depends on, and a labelling constant along it survives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fxplain.labels.labels import STRONG, Slot, encode
from fxplain.ops.meeting.table import TABLE
from fxplain.ops.reading import Reading, lettered, moved, reduced

SHAPE = (2, 3, 4)
READINGS: dict[str, tuple[Callable[[Tensor], Tensor], Reading]] = {
    "sum": (lambda x: (x * x).sum(1), reduced(3, [1])),
    "sum, axes kept": (lambda x: (x * x).sum((0, 2), keepdim=True), reduced(3, [0, 2], keep=True)),
    "sum of all": (lambda x: (x * x).sum(), reduced(3, [0, 1, 2])),
    "left of a product": (
        lambda x: torch.einsum("abc,cd->dab", x * x, torch.ones(4, 5)),
        lettered("abc", "dab"),
    ),
    "transposed": (lambda x: (x * x).permute(2, 0, 1), lettered("abc", "cab")),
    "a place's features": (
        lambda x: torch.nn.functional.conv1d(x * x, torch.ones(6, 3, 1)),
        reduced(3, [1], keep=True),
    ),
}


def depends(operation: Callable[[Tensor], Tensor]) -> Tensor:
    """[*result, *operand]: whether a place of the result depends on an element."""
    x = torch.rand(SHAPE, dtype=torch.float64) + 1
    torch.set_default_dtype(torch.float64)
    try:
        jacobian = torch.autograd.functional.jacobian(operation, x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert isinstance(jacobian, Tensor)
    return jacobian != 0


def covered(reading: Reading) -> Tensor:
    """[*result, *operand]: whether an element lies under a place, by the reading."""
    mask = torch.ones((1,) * (len(reading.places) + len(SHAPE)), dtype=torch.bool)
    for axis in (axis for axis in reading.places if axis is not None):
        index = torch.arange(SHAPE[axis]).view([-1 if other == axis else 1 for other in range(len(SHAPE))])
        place = reading.lay(index)
        mask = mask & (place.reshape(*place.shape, *[1] * len(SHAPE)) == index)
    return mask


@pytest.mark.parametrize("name", READINGS)
def test_a_reading_covers_what_a_result_depends_on(name: str) -> None:
    operation, reading = READINGS[name]
    true, said = torch.broadcast_tensors(depends(operation), covered(reading))  # type: ignore[no-untyped-call]
    assert torch.equal(true, said)


@pytest.mark.parametrize("name", READINGS)
def test_a_labelling_survives_if_it_is_constant_along_what_is_summed(name: str) -> None:
    reading = READINGS[name][1]
    for axis, size in enumerate(SHAPE):
        labels = encode(0, torch.arange(size)).view([-1 if other == axis else 1 for other in range(3)])
        survivors = reading.survivors([Slot(labels, STRONG)])
        assert bool(survivors) == (axis in reading.places)
        for slot in survivors:
            assert slot.varies(reading.places.index(axis))
            assert torch.equal(slot.labels.reshape(-1), labels.reshape(-1))


def test_labels_move_by_letters() -> None:
    labels = torch.arange(6).view(2, 3)
    assert torch.equal(moved(labels, "ab", "bca")[:, 0], labels.T)
    assert torch.equal(moved(labels, "ab", "b"), labels[0])


def test_every_case_of_a_meeting_has_a_reason_of_its_own() -> None:
    reasons = [row.reason for row in TABLE]
    assert len(set(reasons)) == len(reasons)
    assert reasons[-1].startswith("scores")
