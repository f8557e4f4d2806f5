"""What the labelling run finds: token spaces as they are born, and the calls that move information."""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_letters
from typing import ClassVar, Literal

from torch import Tensor, fx

from fxplain.labels.axes import Axes, kernel_axes
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


Role = Literal["attention", "mixing"]


@dataclass(frozen=True)
class Map:
    """How the weights between the rows and the columns of a site are had; each kind is a class of its own.

    A map says which values have to be kept for it and of which tensor the score's gradient is needed. What
    is computed of these is said in ``fxplain.maps``, in a function for each kind.
    """

    role: ClassVar[Role] = "mixing"

    @property
    def operands(self) -> tuple[fx.Node, ...]:
        """The nodes that meet here: weights and values, or what goes into the tokens."""
        return tuple(value for value in vars(self).values() if isinstance(value, fx.Node))

    @property
    def path(self) -> tuple[fx.Node, ...]:
        """The operations from operands to output, in order, where they are several."""
        return ()

    @property
    def parts(self) -> tuple[Site, ...]:
        """The attentions that are added up in it."""
        return ()

    @property
    def held(self) -> fx.Node | None:
        """The node whose value the map is; None where the graph holds none."""
        return None

    @property
    def tapped(self) -> fx.Node | None:
        """That node, where the map's gradient is had there; None where it is had by that of the output."""
        return self.held

    @property
    def normaliser(self) -> str:
        """What made weights out of scores: ``softmax``, ``sigmoid`` or ``none``."""
        return "softmax"

    def axes(self, ndim: int) -> Axes:
        """The axes of a map that has so many."""
        return kernel_axes(ndim)

    def first(self, output: fx.Node) -> fx.Node:
        """The first of its operations, where ``output`` is the node that holds what was mixed."""
        return output

    def keeps(self, output: fx.Node) -> list[fx.Node]:
        """The nodes whose values are needed to rebuild the map."""
        return [*output.all_input_nodes, *self.operands, output]


@dataclass(frozen=True)
class Product(Map):
    """Weights and the values that they multiply are nodes of the graph."""

    weights: fx.Node
    values: fx.Node


@dataclass(frozen=True)
class WrittenOut(Product):
    """An attention that is written out: a product of weights and values, with a letter for each axis."""

    role = "attention"
    layout: Axes
    normaliser: str = "softmax"
    divided: bool = False
    """The sums of the map's rows divide the output later on, which makes weights of the map in the end."""
    ones: bool = False
    """Those sums come out of the product itself: a feature of the values is 1 for every key."""

    @property
    def held(self) -> fx.Node:
        return self.weights

    @property
    def tapped(self) -> fx.Node | None:
        """None where other paths than the product may lead from the map."""
        apart = self.divided or self.shared or self.normaliser != "softmax"
        return None if apart else self.weights

    @property
    def shared(self) -> bool:
        """Whether one matrix is the map of several rows of a grid, whose axis it lacks."""
        return self.layout.map != self.layout.weights

    def axes(self, ndim: int) -> Axes:
        return self.layout


class EdgeList(Product):
    """An attention along the edges of a graph: the map has a place for each, and none is summed over."""

    role = "attention"

    @property
    def held(self) -> fx.Node:
        return self.weights

    def axes(self, ndim: int) -> Axes:
        return Axes(*(ascii_letters[:ndim],) * 4)


@dataclass(frozen=True)
class Kernel(Map):
    """An attention in one kernel: the map is rebuilt from queries and keys."""

    role = "attention"
    query: fx.Node
    key: fx.Node
    value: fx.Node


@dataclass(frozen=True)
class Sum(Map):
    """An attention whose output is put together from those of others: their maps lie on each other, or side
    by side."""

    role = "attention"
    parts: tuple[Site, ...] = ()
    scales: tuple[Tensor, ...] = ()
    """What the rows of each part are multiplied by, on the map."""
    normaliser: str = "softmax"

    @property
    def operands(self) -> tuple[fx.Node, ...]:
        return tuple(node for part in self.parts for node in part.map.operands)

    def keeps(self, output: fx.Node) -> list[fx.Node]:
        return [node for part in self.parts for node in part.map.keeps(part.node)]


@dataclass(frozen=True)
class Matrix(Product):
    """A linear map over the token axis: the entries of a matrix, mostly a parameter, are the weights."""

    layout: Axes


@dataclass(frozen=True)
class Elementwise(Map):
    """Each element of an operand, laid out as the map, goes into one token: a mean, a sum of two tokens."""

    operand: fx.Node


@dataclass(frozen=True)
class Window(Map):
    """A convolution or pooling: labels of rows lie on the output, those of columns on the operand."""

    operand: fx.Node
    kernel: tuple[int, ...]
    channel: int
    """The axis of the channels."""
    shape: tuple[int, ...]
    """That of the output."""


class Copied(Map):
    """A token at another place of the same sequence is a new one, made of that alone."""


@dataclass(frozen=True)
class Several(Map):
    """Several operations, which are run again for the gradient that goes through them alone."""

    operands: tuple[fx.Node, ...] = ()
    path: tuple[fx.Node, ...] = ()

    def first(self, output: fx.Node) -> fx.Node:
        return self.path[0]

    def keeps(self, output: fx.Node) -> list[fx.Node]:
        beside = [used for node in self.path for used in node.all_input_nodes if used not in self.path]
        return [*beside, *(used for node in self.operands for used in node.all_input_nodes)]


class Gathered(Several):
    """All elements of the operands, flat and side by side, go into one token a sample: a state."""


class Operator(Several):
    """A linear operator without a matrix: rows lie on the output, columns behind them on the operand."""


class Sampled(Several):
    """Operands sample grids at points that queries ask for; the map's last axis has the places of all."""

    def first(self, output: fx.Node) -> fx.Node:
        return self.operands[0]


@dataclass(frozen=True)
class Site:
    """A call that moves information between tokens: an attention, or a linear mixing."""

    index: int
    node: fx.Node
    """What holds the mixed tokens, or their product."""
    map: Map
    shape: tuple[int, ...]
    """That of the map; of a window, that of its operand."""
    rows: Slot
    """Labels that broadcast against the map, as those of the columns do."""
    cols: Slot
    softmaxes: frozenset[str] = frozenset()
    new_rows: bool = False
    """Whether its rows are new tokens, made of those of its columns; others exist, and get an increment."""
    absorbed: bool = False
    """Whether it is part of a sum, and no attention of its own."""

    @property
    def role(self) -> Role:
        """Whether weights depend on the data, or make a linear mixing."""
        return self.map.role

    @property
    def attends(self) -> bool:
        """Whether queries ask for what is mixed: an attention, or a sampling at points that they ask for."""
        return self.role == "attention" or isinstance(self.map, Sampled)

    @property
    def makes_tokens(self) -> bool:
        """Whether it is a mixing whose rows are new tokens."""
        return self.role == "mixing" and self.new_rows

    @property
    def axes(self) -> Axes:
        """The axes of an attention's map."""
        return self.map.axes(len(self.shape))

    @property
    def tap(self) -> fx.Node:
        """The node whose gradient is needed: its map where the graph holds one, else its output."""
        return self.map.tapped or self.node

    @property
    def keeps(self) -> list[fx.Node]:
        """The nodes whose values are needed to rebuild its map."""
        return [self.tap] if self.map.tapped is not None else self.map.keeps(self.node)
