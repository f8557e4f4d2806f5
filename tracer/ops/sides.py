"""The operands of a sum of products, with a letter for each axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from string import ascii_letters
from typing import Any

from torch import Tensor, fx

from fxplain.labels import Slot
from fxplain.ops.table import Call, Operand, aten, op_name

LAYING = aten(
    "view reshape _unsafe_view permute transpose t unsqueeze squeeze flatten unflatten expand clone "
    "contiguous detach dropout alias to _to_copy mT numpy_T movedim adjoint swapaxes swapdims moveaxis"
)
"""Operations after which all numbers of a map are still there, laid out otherwise."""

SPREADING = aten("expand expand_as repeat expand_copy clone contiguous")
"""Operations whose result holds copies of the same numbers along axes where the operand has one."""


def letters_for(count: int, skip: str = "") -> str:
    return "".join([letter for letter in ascii_letters if letter not in skip][:count])


@dataclass(frozen=True)
class Side:
    """One operand of a contraction with the letters of its axes, and its slots sorted by what the sum
    does."""

    operand: Operand
    letters: str
    summed: str

    @property
    def slots(self) -> tuple[Slot, ...]:
        return self.operand.value.active

    def over(self, slot: Slot) -> str:
        """The summed letters along which a slot varies."""
        return "".join(
            letter for axis, letter in enumerate(self.letters) if letter in self.summed and slot.varies(axis)
        )

    @property
    def killed(self) -> list[Slot]:
        return [slot for slot in self.slots if self.over(slot)]

    @property
    def alive(self) -> list[Slot]:
        return [slot for slot in self.slots if not self.over(slot)]

    def axes_of(self, letters: str) -> list[int]:
        return [axis for axis, letter in enumerate(self.letters) if letter in letters]

    def moved(self, slot: Slot, target: str) -> Slot:
        """The slot with its axes in the order of ``target``; letters it lacks get size 1."""
        return replace(slot, labels=moved(slot.labels, self.letters, target))


def sizes_of(*sides: Side) -> dict[str, int]:
    """The size of the axis of each letter, the larger where one is broadcast."""
    sizes: dict[str, int] = {}
    for side in sides:
        for letter, size in zip(side.letters, side.operand.shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return sizes


def moved(labels: Tensor, letters: str, target: str) -> Tensor:
    drop = [axis for axis, letter in enumerate(letters) if letter not in target]
    for axis in drop:
        labels = labels.narrow(axis, 0, min(1, labels.shape[axis]))
    present = [letter for letter in letters if letter in target]
    labels = labels.reshape([size for axis, size in enumerate(labels.shape) if axis not in drop])
    order = [present.index(letter) for letter in target if letter in present]
    labels = labels.permute(order)
    return labels.reshape(
        [labels.shape[[t for t in target if t in present].index(c)] if c in present else 1 for c in target]
    )


def before(node: fx.Node, operations: Sequence[str]) -> list[fx.Node]:
    """A node and those whose numbers it holds, however laid out by these operations; the last comes first."""
    found = [node]
    while op_name(node) in operations and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
        found.append(node)
    return found


def run_on(node: fx.Node, operand: Any) -> Any:
    """What an operation with one operand gives on another one."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda _: operand)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def unexpanded(call: Call, weights: Operand, values: Operand) -> Operand:
    """Softmaxed weights as they were before they were copied along features of the values: one map, and not
    one for each feature."""
    source = weights.node
    while weights.value.softmaxes and source is not None and op_name(source) in SPREADING:
        source = source.all_input_nodes[0]
        sizes = call.ledger.shapes.get(source.name, ())
        if len(sizes) != weights.ndim or not all(
            a in (b, 1) for a, b in zip(sizes, weights.shape, strict=True)
        ):
            break
        copied = [axis for axis, size in enumerate(sizes) if size != weights.shape[axis]]
        behind = [axis - weights.ndim + values.ndim for axis in copied]
        if any(
            slot.varies(axis) for slot in values.value.slots if slot.strength for axis in behind if axis >= 0
        ):
            break
        tensor = weights.tensor
        for axis in copied:
            tensor = tensor.narrow(axis, 0, 1)
        weights = Operand(source, tensor, call.values[source])
    return weights
