"""What fxplain finds in a model: token spaces, streams, attentions and the census, as plain frozen
records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["self", "co", "encoder_decoder"]
Origin = Literal["input", "parameter", "mixing"]


@dataclass(frozen=True)
class TokenSpace:
    """Where tokens are born: an input, a parameter, or an operation that mixes tokens into new ones.

    ``start`` is the index of its first token among all tokens of the traced model; the tokens
    ``start .. start + size - 1`` are its own. ``grid`` is the shape the tokens had at birth, ``(T,)`` for
    text, ``(H, W)`` for an image, ``(T, H, W)`` for video; its product is ``size``.
    """

    name: str
    size: int
    start: int
    grid: tuple[int, ...]
    origin: Origin
    source: str
    """The input's, parameter's or node's name that the tokens come from."""


@dataclass(frozen=True, repr=False)
class Stream:
    """The ordered tokens that the rows or columns of an attention range over; may unite several spaces."""

    name: str
    tokens: tuple[int, ...]
    """Token indices, as in :class:`TokenSpace`."""
    spaces: tuple[str, ...]

    @property
    def size(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        return f"Stream({self.name}, {self.size} tokens)"


@dataclass(frozen=True, repr=False)
class Attention:
    """One attention: a *call* of softmax(query keyᵀ) value, not a module (shared modules give several)."""

    index: int
    name: str
    kind: Kind
    queries: Stream
    keys: Stream
    heads: int
    fused: bool
    module: str
    """Path of the module that computes it, e.g. ``encoder.layer.0.attention``."""
    source: str
    """``file.py:line`` of the product with the values."""
    node: str
    """Name of the graph's node whose value is the attention's output."""
    normaliser: str
    """``softmax``, or what else turned scores into weights (``sigmoid``, ``none``)."""
    windows: int = 1
    """How many different sets of keys the queries read: 1 where each query reads all keys."""
    window: tuple[int, int] = (0, 0)
    """Queries and keys of the largest such set: ``(49, 49)`` for windows of 7 x 7 tokens."""
    layer: int = 0
    """Its number for ``layers=``, counted in its tower: see :func:`fxplain.attention.layers.layers_of`."""

    def __repr__(self) -> str:
        where = self.module or "the model itself"
        kind, heads = self.kind.replace("_", "-"), f"{self.heads} head{'' if self.heads == 1 else 's'}"
        return f"Attention({self.index}, {kind}, {_sizes(self.queries, self.keys)}, {heads}, in {where})"


@dataclass(frozen=True, repr=False)
class Mixing:
    """A linear step other than attention: it makes new tokens out of old ones (pooling, patch merging), or
    adds to tokens that exist (sampling at points that they ask for)."""

    index: int
    name: str
    queries: Stream
    keys: Stream
    op: str
    module: str
    source: str
    node: str
    kind: Kind | None = None
    """As of an attention, where the queries are tokens that exist already; None where they are new."""
    layer: int | None = None
    """As of an attention, where it has a kind; None for what always takes part."""

    def __repr__(self) -> str:
        where = self.module or "the model itself"
        return f"Mixing({self.index}, {self.op}, {_sizes(self.queries, self.keys)}, in {where})"


def _sizes(queries: Stream, keys: Stream) -> str:
    return f"{queries.name} [{queries.size}] x {keys.name} [{keys.size}]"


@dataclass(frozen=True)
class CensusEntry:
    """One softmax-like operation, or one that token labels did not survive, with the role it plays."""

    node: str
    op: str
    role: str
    """``attention``, ``router``, ``output distribution``, ``channel attention``, ``unknown``, ..."""
    reason: str
    module: str
    source: str
