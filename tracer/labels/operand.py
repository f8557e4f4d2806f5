"""A tensor argument of an operation, with its real value and its labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, fx

from fxplain.labels.labels import Slot, Value


@dataclass(frozen=True)
class Operand:
    """A tensor argument: its node, its real value and what is known of its labels."""

    node: fx.Node | None
    tensor: Tensor
    value: Value

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def ndim(self) -> int:
        return self.tensor.ndim

    @property
    def is_parameter(self) -> bool:
        """True if it comes from parameters and constants only: a weight, not data."""
        return not self.value.from_input and not self.value.labelled

    def with_slots(self, slots: Sequence[Slot]) -> Operand:
        return replace(self, value=replace(self.value, slots=tuple(slots)))


@dataclass(frozen=True)
class Taken:
    """Tokens that were gathered by an index along an axis: whose they are, place by place."""

    index: Tensor
    axis: int
    size: int
    slot: Slot


@dataclass(frozen=True)
class Weighed:
    """A product of two labelled tensors, and the node that made it."""

    node: fx.Node
    factors: tuple[Operand, Operand]
