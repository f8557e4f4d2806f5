"""What the labelling run finds: token spaces as they are born, and the calls that move information."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, fx

from fxplain.labels.labels import Slot


@dataclass(frozen=True)
class Born:
    """A token space as it is born, before names are given and unused ones are dropped."""

    start: int
    size: int
    grid: tuple[int, ...]
    origin: Literal["input", "parameter", "mixing"]
    source: str
    """The input or parameter that they come from, in the end."""
    node: fx.Node
    filled: bool = False
    """Whether constants fill these places beside those of the source (padding)."""


@dataclass(frozen=True)
class Window:
    """The kernel of a convolution or pooling, the channel axis, and the shape of its output."""

    kernel: tuple[int, ...]
    channel: int
    shape: tuple[int, ...]


Form = Literal[
    "weights", "fused", "pooled", "taps", "sampled", "joined", "gathered", "copied", "operator", "summed"
]


@dataclass(frozen=True)
class Site:
    """A call that moves information between tokens: an attention, or a linear mixing.

    How its token-to-token map is had is said by ``form``: ``weights`` (the map is the value of node
    ``operands[0]``, the values' node is ``operands[1]``), ``fused`` (operands are query, key and value of one
    kernel), ``pooled`` (every element of operand 0 goes into one new token), ``taps`` (a convolution),
    ``sampled`` (operands are samplers of grids at points, whose places lie side by side on the last axis),
    ``joined`` (every element of operand 0, broadcast, meets one of a token that exists already),
    ``gathered`` (all elements of the operands, flat and side by side, go into one new token a sample),
    ``copied`` (a token at another place of the same sequence is a new one, made of that alone),
    ``operator`` (a linear operator between operand 0 and the output, without a matrix: rows lie on the
    output, columns behind them on the operand), ``summed`` (an attention whose output is put together from
    those of its ``parts``).
    ``rows`` and ``cols`` are labels that broadcast against the map, or against operand 0 where pooled.
    """

    index: int
    node: fx.Node
    role: Literal["attention", "mixing"]
    form: Form
    operands: tuple[fx.Node, ...]
    shape: tuple[int, ...]
    rows: Slot
    cols: Slot
    softmaxes: frozenset[str] = frozenset()
    normaliser: str = "softmax"
    """What made weights out of scores: ``softmax``, ``sigmoid`` or ``none``."""
    divided: bool = False
    """The sums of the map's rows divide the output later on, which makes weights of the map in the end."""
    ones: bool = False
    """Those sums come out of the product itself: a feature of the values is 1 for every key."""
    tied: bool = False
    """One map is for several rows of a grid: its first letter is theirs, which the map's node lacks."""
    axes: str = ""
    """Letters of the contraction, ``map,values->output``, where the form is ``weights``."""
    window: Window | None = None
    """Where the form is ``taps``: rows lie on the window's output, columns on operand 0."""
    path: tuple[fx.Node, ...] = ()
    """Where the form is ``sampled``, ``gathered`` or ``operator``: the operations from operands to output, in
    order."""
    pools: bool = False
    """Of an attention that no query asks for: its rows are new tokens, made of those of its columns."""
    adds: bool = False
    """Of a mixing: its rows are tokens that exist already and get an increment, as an attention's do."""

    parts: tuple[Site, ...] = ()
    """Of a sum: the attentions that are added up; their maps lie on each other, or side by side."""
    scales: tuple[Tensor, ...] = ()
    """What the rows of each part are multiplied by, on the map."""
    absorbed: bool = False
    """Whether it is part of a sum, and no attention of its own."""

    @property
    def attends(self) -> bool:
        """Whether queries ask for what is mixed: an attention, or a sampling at points that they ask for."""
        return self.role == "attention" or self.form == "sampled"

    @property
    def makes_tokens(self) -> bool:
        """Whether its rows are new tokens, made of those of its columns."""
        return self.role == "mixing" and not self.adds

    @property
    def by_output(self) -> bool:
        """Whether ∇A comes of the output's gradient: other paths than the product may lead from the map."""
        weighs = self.role == "attention" and self.form == "weights"
        return weighs and (self.divided or self.tied or self.normaliser != "softmax")

    @property
    def column_axes(self) -> tuple[int, ...]:
        """The axes of an attention's map that are summed over."""
        if not self.axes:
            return (len(self.shape) - 1,)
        inputs, output = self.axes.split("->")
        return tuple(axis for axis, letter in enumerate(inputs.split(",")[0]) if letter not in output)


@dataclass(frozen=True)
class Partial:
    """A tensor that is a sum of attentions' outputs, each row times a factor: how far it is put together."""

    factors: dict[int, Tensor]
    """By index of the site, laid out as the tensor; without meaning once it was moved."""
    sums: Tensor
    """What the weights of every row add up to, laid out as the tensor."""
    positive: bool
    """Whether no weight is negative."""
    moved: bool = False


@dataclass(frozen=True)
class Stack:
    """A tensor in which several such sums lie side by side along an axis of their own."""

    parts: tuple[Partial, ...]
    axis: int
