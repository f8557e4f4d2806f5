"""What carries relevance in a graph: what comes from tokens, what is a parameter, what is a constant.

Relevance flows along floating tensors that come from the model's inputs, and along parameters that are
tokens themselves (class tokens, queries, latents). Everything else is held constant: weights, masks, and
inputs that no token was made of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxplain.attention.labelled import Labelled
from fxplain.labels.call import op_name
from fxplain.labels.labels import DORMANT
from fxplain.labels.value import Value
from fxplain.ops.creation import CONSTANT, DERIVED


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


STATISTICS = _names(
    """mean sum var std var_mean std_mean norm linalg_vector_norm amax amin max min logsumexp"""
)
"""Reductions whose results scale or shift what they were taken from."""
GATES = _names("""sigmoid hardsigmoid silu gelu relu tanh softplus hardswish mish elu leaky_relu""")
RESHAPES = _names(
    """view reshape unsqueeze squeeze expand expand_as clone contiguous to _to_copy alias dropout type_as
detach broadcast_to flatten unflatten transpose permute repeat native_dropout"""
)
EMBEDDING = RESHAPES | _names("embedding add mul div layer_norm rms_norm where masked_fill")
"""What embeddings of ids, position tables and their norm are made with."""
VALUELESS = _names(CONSTANT) | _names(DERIVED)
"""Operations whose results depend on shapes alone, or are no numbers to explain."""
LIKE_ANOTHER = _names("type_as expand_as view_as reshape_as")
"""Operations that take the shape or the type alone of their second operand."""
FOLLOWED = 24
"""How many operations back it is looked for the statistic that a factor comes from."""


@dataclass(frozen=True)
class Sides:
    """The analysis of one graph on one layout of inputs."""

    carriers: frozenset[fx.Node]
    parameters: frozenset[fx.Node]
    """Floating nodes that come from parameters, and from no input."""
    raw: frozenset[fx.Node]
    """Carriers that no token has been made of yet: the inputs themselves, as far as layout and scale go."""
    tokens: Mapping[fx.Node, Tensor]
    """Where tokens are: node -> token indices, -1 for none; they broadcast against the node's value."""
    embedded: frozenset[fx.Node]
    """Embeddings of ids, and what is made of them and of parameters alone before anything is contracted."""
    roots: Mapping[fx.Node, fx.Node]
    """Node -> the node that it is a function of, element by element."""
    maps: frozenset[fx.Node]
    """The maps of attentions."""

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """The operands of a node that relevance goes back to."""
        return [used for used in _valued(node) if used in self.carriers]

    def is_statistic(self, node: fx.Node) -> bool:
        """Whether a node is a mean, norm, variance or maximum, scaled or broadcast."""
        for _ in range(FOLLOWED):
            name = short_name(node)
            if name in STATISTICS:
                return True
            sources = self.sources(node)
            follows = name in RESHAPES or node.target is getattr or is_pointwise(node) or name == "getitem"
            if len(sources) != 1 or not follows:
                return False
            node = sources[0]
        return False

    def is_gate(self, node: fx.Node) -> bool:
        """Whether a node is the value of an activation function or a softmax, laid out anew."""
        for _ in range(FOLLOWED):
            name = short_name(node)
            if name in GATES or "softmax" in name:
                return True
            root = self.roots.get(node, node)
            if root is not node:
                return any(short_name(n) in GATES for n in _between(node, root))
            if name not in RESHAPES or not node.all_input_nodes:
                return False
            node = node.all_input_nodes[0]
        return False


def _between(node: fx.Node, root: fx.Node) -> set[fx.Node]:
    """The nodes from a root to what is made of it."""
    found, pending = set(), [node]
    while pending:
        one = pending.pop()
        if one is not root and one not in found:
            found.add(one)
            pending += one.all_input_nodes
    return found


def short_name(node: fx.Node) -> str:
    """The operation without its namespace: ``linear``."""
    if node.op != "call_function":
        return node.op
    name = op_name(node) if hasattr(node.target, "_schema") else getattr(node.target, "__name__", "")
    return str(name).rpartition("::")[2].removesuffix("_")


def is_pointwise(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return torch.Tag.pointwise in tags or short_name(node) in ("gelu", "dropout", "to", "clone", "type_as")


def analyse(labelled: Labelled, values: Mapping[fx.Node, Any]) -> Sides:
    """Find what carries relevance, from the labels and one run's values."""
    graph = labelled.captured.graph.graph
    sources, learned = _placeholders(labelled)
    born: set[fx.Node] = set()
    carriers: set[fx.Node] = set()
    parameters: set[fx.Node] = set()
    embedded: set[fx.Node] = set()
    roots: dict[fx.Node, fx.Node] = {}
    tokens: dict[fx.Node, Tensor] = {}
    for node in graph.nodes:
        if node.op == "output":
            break
        found = token_ids(labelled, node)
        if found is not None:
            tokens[node] = found
        used = _valued(node)
        if found is not None or any(n in born for n in used):
            born.add(node)
        floating = any(_is_floating(part) for part in _parts(values[node]))
        if floating and (node.name in sources or found is not None or any(n in carriers for n in used)):
            carriers.add(node)
        elif floating and (node.name in learned or any(n in parameters for n in used)):
            parameters.add(node)
        held = [n for n in used if n in carriers]
        if node in carriers and short_name(node) in EMBEDDING and all(n in embedded for n in held):
            embedded.add(node)
        roots[node] = _root(node, values, carriers, roots)
    return Sides(
        carriers=frozenset(carriers),
        parameters=frozenset(parameters),
        raw=frozenset(carriers - born),
        tokens=tokens,
        embedded=frozenset(embedded),
        roots=roots,
        maps=frozenset(site.map.held for site in labelled.classified.sites if site.map.held is not None),
    )


def _valued(node: fx.Node) -> list[fx.Node]:
    """The nodes whose values the result depends on, not their shape or type alone."""
    name = short_name(node)
    if name in LIKE_ANOTHER:
        return node.all_input_nodes[:1] if node.args[0] is node.all_input_nodes[0] else []
    return [] if name in VALUELESS else node.all_input_nodes


def _placeholders(labelled: Labelled) -> tuple[set[str], set[str]]:
    """Names of the inputs that tokens are made of, and of the parameters."""
    made_of = {space.source for space in labelled.classified.spaces} | {
        space.source for space in labelled.findings.ledger.tokens.spaces
    }
    placeholders = labelled.captured.placeholders
    sources = {p.node for p in placeholders if p.kind == "input" and p.path in made_of}
    return sources, {p.node for p in placeholders if p.kind == "parameter"}


def token_ids(labelled: Labelled, node: fx.Node) -> Tensor | None:
    """The tokens of a node's elements, as users know them; None where it has none."""
    value: Any = labelled.findings.values.get(node)
    if not isinstance(value, Value) or len(value.slots) != 1:
        return None
    (slot,) = value.slots
    if slot.strength == DORMANT:
        return None
    ids = labelled.classified.token_ids(slot.labels)
    return ids if bool((ids >= 0).any()) else None


def _root(
    node: fx.Node, values: Mapping[fx.Node, Any], carriers: set[fx.Node], roots: Mapping[fx.Node, fx.Node]
) -> fx.Node:
    """What the node is a function of element by element, if that is one node of its shape."""
    if node.op != "call_function" or not is_pointwise(node):
        return node
    found = {roots[used] for used in node.all_input_nodes if used in carriers}
    if len(found) != 1:
        return node
    (root,) = found
    same = isinstance(values[root], Tensor) and values[root].shape == getattr(values[node], "shape", None)
    return root if same else node


def _parts(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
