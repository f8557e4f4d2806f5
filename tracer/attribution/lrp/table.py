"""The table of the backward interpreter: ATen operation -> how relevance passes it.

A *rule* gets a :class:`Call` (one operation with its real operands and the relevance of its results) and
answers with the relevance of its operands. It asks the call's rule set for what papers differ in, so one
rule serves all rule sets; another one for a single set is registered with ``only=``. See
``docs/add-an-lrp-rule.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from fxplain.attribution.lrp.rule_sets import RuleSet
from fxplain.attribution.lrp.samples import Samples
from fxplain.attribution.lrp.sides import Sides
from fxplain.labels.call import literal, op_name, pick

Part = tuple["fx.Node | None", Tensor]
Shares = Sequence[Part]
"""Relevance of operands, of their shapes; what one node gets several times adds up. None: a constant's, of
the result's shape, or one sum for each sample."""
Rule = Callable[["Call"], Shares]

TABLE: dict[tuple[str, str], Rule] = {}
"""(operation, rule set) -> rule; the rule set is ``""`` for one that serves all."""


def relevance_rule(*names: str, only: str = "") -> Callable[[Rule], Rule]:
    """Register a rule for operations, named as in their schemas: ``@relevance_rule("lab::distances")``.

    Args:
        names: operations without the overload.
        only: name of the one rule set it is for; else for all that have none of their own.
    """

    def register(rule: Rule) -> Rule:
        for name in names:
            if (name, only) in TABLE:
                raise ValueError(f"{name} has a relevance rule already")
            TABLE[name, only] = rule
        return rule

    return register


@dataclass(frozen=True, eq=False)
class Call:
    """One operation of the graph on its way back: operands, results, relevance, all in float32 or better."""

    node: fx.Node
    args: tuple[Any, ...]
    """The arguments with every node replaced by its value."""
    kwargs: Mapping[str, Any]
    results: tuple[Any, ...]
    """The result, or the results of an operation that has several."""
    relevances: tuple[Tensor | None, ...]
    """One for each of :attr:`results`; None where nothing came back."""
    sides: Sides
    """What carries relevance, and what is a constant."""
    rules: RuleSet
    maps: dict[str, Tensor]
    """Where rules note the relevance of maps that the graph does not hold, by node."""
    samples: Samples
    """The samples whose relevance is handed back together."""

    @property
    def op(self) -> str:
        return op_name(self.node).removesuffix("_")

    @property
    def result(self) -> Tensor:
        """The (first) result."""
        result: Tensor = self.results[0]
        return result

    @property
    def relevance(self) -> Tensor:
        """The relevance of the (first) result."""
        relevance = self.relevances[0]
        return torch.zeros_like(self.result) if relevance is None else relevance

    def total(self, tensor: Tensor) -> Tensor:
        """For each element of a tensor laid out as the result, the sum over all elements of its sample."""
        return self.samples.spread(self.samples.sums(tensor, self.node), tensor, self.node)

    def argument(self, name: str, default: Any = None) -> Any:
        """The value of an argument, by its name in the schema."""
        return pick(self.node, self.args, self.kwargs, name, default)

    def source(self, name: str) -> fx.Node | None:
        """The node that an argument comes from, by its name in the schema."""
        found = literal(self.node, name)
        return found if isinstance(found, fx.Node) else None

    def carries(self, name: str) -> bool:
        """Whether the argument of that name carries relevance."""
        node = self.source(name)
        return node is not None and node in self.sides.carriers

    @cached_property
    def operands(self) -> list[tuple[fx.Node, Tensor]]:
        """The tensor arguments in order, those inside lists included."""
        found: list[tuple[fx.Node, Tensor]] = []

        def note(node: Any, value: Any) -> None:
            if isinstance(node, fx.Node) and isinstance(value, Tensor):
                found.append((node, value))
            elif isinstance(node, (list, tuple)):
                for one, real in zip(node, value, strict=True):
                    note(one, real)

        note([*self.node.args, *self.node.kwargs.values()], [*self.args, *self.kwargs.values()])
        return found

    @cached_property
    def carriers(self) -> list[tuple[fx.Node, Tensor]]:
        """The operands that carry relevance, each once."""
        used = self.sides.sources(self.node)
        return list({n: (n, v) for n, v in self.operands if n in used}.values())

    def again(self, replaced: Mapping[fx.Node, Any]) -> Any:
        """The operation once more, with other values for some of its operands."""

        def value(node: Any, real: Any) -> Any:
            if isinstance(node, fx.Node):
                return replaced.get(node, real)
            if isinstance(node, (list, tuple)) and isinstance(real, (list, tuple)):
                return type(real)(value(n, r) for n, r in zip(node, real, strict=True))
            return real

        args = [value(n, r) for n, r in zip(self.node.args, self.args, strict=True)]
        kwargs = {name: value(self.node.kwargs[name], real) for name, real in self.kwargs.items()}
        return self.node.target(*args, **kwargs)  # type: ignore[operator]

    def transposed(self, relevances: Sequence[Tensor | None] | None = None) -> list[tuple[fx.Node, Tensor]]:
        """The transpose of the operation, as its derivative has it, applied to its results' relevance."""
        relevances = self.relevances if relevances is None else relevances
        with torch.enable_grad():
            leaves = {node: value.detach().requires_grad_() for node, value in self.carriers}
            made = self.again(leaves)
        results = made if isinstance(made, (list, tuple)) else (made,)
        pairs = [
            (result, given.to(result.dtype))
            for result, given in zip(results, relevances, strict=False)
            if given is not None and isinstance(result, Tensor) and result.requires_grad
        ]
        if not pairs:
            return []
        outputs, seeds = zip(*pairs, strict=True)
        found = torch.autograd.grad(outputs, list(leaves.values()), seeds, allow_unused=True)
        return [(node, part) for node, part in zip(leaves, found, strict=True) if part is not None]
