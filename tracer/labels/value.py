"""What is known of a tensor beside its numbers: labels, what it is made of, and what labels do not tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor, fx

from fxplain.labels.labels import DORMANT, Slot


@dataclass(frozen=True)
class Single:
    """A single token a sample that was added to the tokens of another axis, as a query is to keys."""

    code: int
    strength: int
    reads: frozenset[int]
    products: int = 0
    """How many sums of products its sum went through since."""


@dataclass(frozen=True)
class Coarser:
    """Tokens that were added to finer ones, each to several: queries to the keys picked for each."""

    slot: Slot
    """Laid out as the tensor."""
    products: int = 0
    """How many sums of products its sum went through since."""
    main: Slot | None = None
    """Where all pairs of two tokens lie along one axis: the one of each pair, as ``slot`` is the other."""

    def moved(self, move: Callable[[Slot], Slot]) -> Coarser:
        """The same tokens, laid out otherwise."""
        return replace(self, slot=move(self.slot), main=None if self.main is None else move(self.main))


@dataclass(frozen=True)
class GaveWay:
    """Tokens that a tensor is made of too, though its slots do not name them: others were laid out finer."""

    single: tuple[Single, ...] = ()
    """Single tokens, such as a query that was added to all keys: rows of the scores that are made of it."""
    coarser: Coarser | None = None
    """Tokens of fewer axes: the rows of scores that are made of this tensor."""
    several_single: bool = False
    """Single tokens were added up or multiplied, and stand side by side as slots: the newest comes first."""
    shared_map: bool = False
    """Scores were summed over rows of a grid, whose first the labels name: one map is for all rows."""

    @staticmethod
    def of_all(values: Sequence[Value]) -> GaveWay:
        """What gave way in any of these; whether coarser tokens still do, each operation tells."""
        return GaveWay(
            single=tuple({one.code: one for value in values for one in value.gave_way.single}.values()),
            several_single=any(value.gave_way.several_single for value in values),
            shared_map=any(value.gave_way.shared_map for value in values),
        )


@dataclass(frozen=True)
class Spectrum:
    """Whose spectrum a tensor is: the labels before the transform, the shape they were of, and its node."""

    slots: tuple[Slot, ...]
    shape: tuple[int, ...]
    source: fx.Node | None = None


@dataclass(frozen=True)
class Hidden:
    """Tokens that are hidden in a tensor, until another operation brings them back."""

    spectrum: Spectrum | None = None
    """Set where tokens were transformed to frequencies, until they are transformed back."""
    summaries: frozenset[fx.Node] = frozenset()
    """Products that summed all tokens into features, which this tensor still holds."""
    samples: frozenset[str] = frozenset()
    """Nodes whose samples at points this tensor still holds one by one."""

    @staticmethod
    def of_all(values: Sequence[Value]) -> Hidden:
        """What is hidden in any of these."""
        hidden = [value.hidden for value in values]
        return Hidden(
            spectrum=next((each.spectrum for each in hidden if each.spectrum is not None), None),
            summaries=frozenset().union(*(each.summaries for each in hidden)),
            samples=frozenset().union(*(each.samples for each in hidden)),
        )


@dataclass(frozen=True)
class Multiplied:
    """An elementwise product of two operands, and the node that made it: half of a sum of products."""

    node: fx.Node
    factors: tuple[Operand, Operand]


@dataclass(frozen=True)
class PartialSum:
    """A sum of attentions' outputs, each row times a factor: how far the output of one is put together."""

    factors: dict[int, Tensor]
    """By index of the site, laid out as the tensor; without meaning once it was moved."""
    sums: Tensor
    """What the weights of every row add up to, laid out as the tensor."""
    positive: bool
    """Whether no weight is negative."""
    moved: bool = False


@dataclass(frozen=True)
class PartialSums:
    """Several such sums, side by side along an axis of their own."""

    parts: tuple[PartialSum, ...]
    axis: int


@dataclass(frozen=True)
class Unsummed:
    """What a later operation adds up. It holds tensors, and is forgotten as soon as nothing uses them."""

    product: Multiplied | None = None
    partial: PartialSum | PartialSums | None = None


SETTLED = Unsummed()


@dataclass(frozen=True)
class Value:
    """What is known of one tensor of the graph."""

    slots: tuple[Slot, ...] = ()
    root: str | None = None
    """The input, else the parameter, that the tensor mainly comes from."""
    from_input: bool = False
    origin: str | None = None
    """The node that first held these very numbers in this shape (copies and casts pass it on)."""
    lost: frozenset[str] = frozenset()
    """Nodes upstream at which labels were lost."""
    depth: int = 0
    """How many sums of products the tensor is away from its elements at most."""
    softmaxes: frozenset[str] = frozenset()
    """Softmax-like nodes whose weights this tensor still carries."""
    gave_way: GaveWay = GaveWay()
    hidden: Hidden = Hidden()
    unsummed: Unsummed = SETTLED

    @property
    def active(self) -> tuple[Slot, ...]:
        """The slots that name tokens."""
        return tuple(slot for slot in self.slots if slot.strength > DORMANT)

    @property
    def labelled(self) -> bool:
        return bool(self.active)

    @property
    def is_summary(self) -> bool:
        """Whether all tokens were summed out on the way here: features of none of them, nor of new ones."""
        return self.from_input and not self.labelled and self.depth > 0 and not self.lost

    @property
    def dormant(self) -> Slot | None:
        return next((slot for slot in self.slots if slot.strength == DORMANT), None)

    def having(self, **facts: Any) -> Value:
        """The value with some facts changed, those of its parts by the names that they have there.

        Example:
            >>> Value().having(root="ids", shared_map=True).gave_way.shared_map
            True
        """
        changed = self
        for name in ("gave_way", "hidden", "unsummed"):
            part = getattr(changed, name)
            own = {each.name: facts.pop(each.name) for each in fields(part) if each.name in facts}
            changed = replace(changed, **{name: replace(part, **own)}) if own else changed
        return replace(changed, **facts)


NOTHING = Value()


def joined(values: Sequence[Value]) -> Value:
    """A value without slots that has the provenance of all of these, the first one leading."""
    rooted = [v for v in values if v.root is not None]
    main = next((v for v in rooted if v.from_input), rooted[0] if rooted else NOTHING)
    return Value(
        root=main.root,
        from_input=any(v.from_input for v in values),
        lost=frozenset().union(*(v.lost for v in values)),
        depth=max((v.depth for v in values), default=0),
        softmaxes=frozenset().union(*(v.softmaxes for v in values)),
        gave_way=GaveWay.of_all(values),
        hidden=Hidden.of_all(values),
    )


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
