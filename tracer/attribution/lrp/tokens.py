"""Where relevance is read as that of tokens: where data that is no token yet becomes tokens.

An embedding of ids makes tokens of nothing that carries relevance: what arrives at its result is its tokens'.
Everywhere else relevance is read on the way from a node without tokens to one that has them, as that
of the tokens its elements become part of: features of a raw input, pixels of a patch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxplain.attention.labelled import Labelled
from fxplain.attribution.lrp.moving import LAYOUT
from fxplain.attribution.lrp.samples import Samples
from fxplain.attribution.lrp.sides import Sides
from fxplain.labels.call import aten, op_name
from fxplain.ops.kernels import KERNELS

FUSED = (*aten(KERNELS), "flex_attention")


class Reader:
    """Reads relevance per token: [sample, token], float64."""

    def __init__(self, labelled: Labelled, sides: Sides, values: Mapping[fx.Node, Any]) -> None:
        spaces = labelled.classified.spaces
        self.count = labelled.classified.tokens
        self._sides, self._values = sides, values
        self._learned = torch.zeros(self.count + 1, dtype=torch.bool)
        for space in spaces:
            self._learned[space.start : space.start + space.size] = space.origin == "parameter"
        self._ids: dict[tuple[fx.Node, fx.Node], Tensor | None] = {}
        graph = labelled.captured.graph.graph
        self._born = {n for n in graph.nodes if n in sides.tokens and not self._sources(n)}

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        return self._sides.sources(node)

    def empty(self, samples: Samples) -> Tensor:
        """Nothing read yet; the last place takes what belongs to no token."""
        return torch.zeros(samples.count, self.count + 1, dtype=torch.float64)

    def born(
        self, node: fx.Node, relevances: Sequence[Tensor | None], tokens: Tensor, samples: Samples
    ) -> Tensor:
        """Reads at a node that makes tokens out of ids, or puts parameters beside others as tokens.

        Returns the sum of what it read of parameters: [sample].
        """
        nothing = tokens.new_zeros(samples.count)
        if node not in self._sides.tokens or relevances[0] is None:
            return nothing
        if node in self._born:
            _pour(tokens, self._sides.tokens[node], relevances[0], node, samples)
        elif op_name(node) in LAYOUT:
            return self._learned_parts(node, relevances[0], tokens, samples)
        return nothing

    def _learned_parts(self, node: fx.Node, relevance: Tensor, tokens: Tensor, samples: Samples) -> Tensor:
        """Parameters that are put beside other tokens as tokens of their own: a class token."""
        before = tokens[:, :-1].sum(1)
        for part in [n for n in node.all_input_nodes if n in self._sides.parameters]:
            numbers = _numbered(node, part, self._values)
            ids = self._sides.tokens[node].expand(relevance.shape)
            if numbers is not None:
                learned = torch.where((numbers >= 0) & self._learned[ids], ids, -1)
                _pour(tokens, learned, relevance, node, samples)
        return tokens[:, :-1].sum(1) - before

    def crossed(
        self,
        operand: fx.Node,
        node: fx.Node,
        share: Tensor,
        relevances: Sequence[Tensor | None],
        tokens: Tensor,
        samples: Samples,
    ) -> None:
        """Reads on the way from raw data to tokens."""
        if operand not in self._sides.raw or node not in self._sides.tokens:
            return
        ids = self._sides.tokens[node]
        own = self._on_operand(operand, node)
        if own is not None:
            _pour(tokens, own, share, operand, samples)
        elif relevances[0] is not None:
            _pour(tokens, ids, relevances[0], node, samples)

    def _on_operand(self, operand: fx.Node, node: fx.Node) -> Tensor | None:
        """The token of every element of an operand, where these go into one token each."""
        if (operand, node) not in self._ids:
            self._ids[operand, node] = self._found(operand, node)
        return self._ids[operand, node]

    def _found(self, operand: fx.Node, node: fx.Node) -> Tensor | None:
        ids, shape = self._sides.tokens[node], tuple(self._values[operand].shape)
        if op_name(node) in FUSED:
            return self._beside(operand, node, shape)
        if op_name(node) in LAYOUT:
            return _carried_back(node, operand, self._values, ids)
        if ids.ndim < len(shape):
            return None
        for axis, size in enumerate(shape, start=ids.ndim - len(shape)):
            if ids.shape[axis] not in (1, size) and size != 1:
                return None
        if len(shape) < ids.ndim or any(ids.shape[a] > 1 and size == 1 for a, size in enumerate(shape)):
            return _narrowed(ids, shape)
        return ids.expand(shape)

    def _beside(self, operand: fx.Node, node: fx.Node, shape: tuple[int, ...]) -> Tensor:
        """Values that are no tokens of their own are those of the keys beside them."""
        for other in node.all_input_nodes:
            real, ids = self._values[other], self._sides.tokens.get(other)
            if ids is not None and other is not operand and tuple(real.shape[:-1]) == shape[:-1]:
                return ids.narrow(-1, 0, 1).expand(shape)
        return torch.tensor(-1).expand(shape)


def _narrowed(ids: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """Labels of a result on an operand that was broadcast; None if its elements go into several tokens."""
    for axis in range(ids.ndim):
        size = shape[axis - ids.ndim + len(shape)] if axis >= ids.ndim - len(shape) else 1
        if ids.shape[axis] > 1 and size == 1:
            first = ids.narrow(axis, 0, 1)
            if bool((ids != first).any()):
                return None
            ids = first
    return ids.reshape(ids.shape[ids.ndim - len(shape) :]).expand(shape)


def _pour(tokens: Tensor, ids: Tensor, relevance: Tensor, node: fx.Node, samples: Samples) -> None:
    """Add relevance, laid out as a node's result, to the tokens that it is of."""
    if relevance.is_complex():
        relevance = relevance.real + relevance.imag
    if not bool((ids >= 0).any()):
        return
    size = tokens.shape[1]
    place = samples.owners(relevance, node).cpu() * size + torch.where(ids >= 0, ids, size - 1)
    flat = relevance.detach().to("cpu", tokens.dtype).reshape(-1)
    tokens.view(-1).index_add_(0, place.expand(relevance.shape).reshape(-1), flat)


def _numbered(node: fx.Node, operand: fx.Node, values: Mapping[fx.Node, Any]) -> Tensor | None:
    """For every element of a layout operation's result, the place in the operand it comes from; else -1."""
    shape = values[operand].shape

    def value(used: fx.Node) -> Any:
        real = values[used]
        if used is operand:
            return torch.arange(1, real.numel() + 1, device=real.device).reshape(shape)
        if isinstance(real, Tensor) and (real.is_floating_point() or real.is_complex()):
            return torch.zeros(real.shape, dtype=torch.int64, device=real.device)
        return real

    args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
    try:
        made = node.target(*args, **kwargs)  # type: ignore[operator]
    except (RuntimeError, TypeError, NotImplementedError):
        return None
    found = made[0] if isinstance(made, (list, tuple)) else made
    return found.cpu() - 1 if isinstance(found, Tensor) else None  # what is padded in is 0


def _carried_back(
    node: fx.Node, operand: fx.Node, values: Mapping[fx.Node, Any], ids: Tensor
) -> Tensor | None:
    numbers = _numbered(node, operand, values)
    if numbers is None:
        return None
    found = torch.full((values[operand].numel(),), -1, dtype=torch.int64)
    inside = numbers >= 0
    found[numbers[inside]] = ids.expand(numbers.shape)[inside]
    return found.reshape(values[operand].shape)
