"""One operation of the graph as a transfer function sees it: its operands, their labels, its arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, cast

from torch import Tensor, fx

from fxplain.labels.labels import Slot
from fxplain.labels.notebook import Ledger, Looked
from fxplain.labels.value import NOTHING, Operand, Value, joined


def aten(names: str) -> tuple[str, ...]:
    """Names of ATen operations as their schemas have them.

    >>> aten("mm bmm")
    ('aten::mm', 'aten::bmm')
    """
    return tuple(f"aten::{name}" for name in names.split())


@dataclass(frozen=True)
class Call:
    """One call of an operation during the labelling run, with real tensors and their labels side by side."""

    node: fx.Node
    args: tuple[Any, ...]
    """The arguments with every node replaced by its real value."""
    kwargs: dict[str, Any]
    result: Any
    values: dict[fx.Node, Value]
    ledger: Ledger

    @property
    def op(self) -> str:
        return op_name(self.node)

    @property
    def schema(self) -> Any:
        return cast(Any, self.node.target)._schema

    def argument(self, name: str, default: Any = None) -> Any:
        """The real value of an argument, by its name in the schema."""
        return pick(self.node, self.args, self.kwargs, name, default)

    def operand(self, name: str) -> Operand | None:
        """The tensor argument of that name with its labels; None if it is absent."""
        node = literal(self.node, name)
        real = self.argument(name)
        return self._operand(node, real) if isinstance(real, Tensor) else None

    def operands(self) -> list[Operand]:
        """All tensor arguments in order, those inside lists included."""
        found: list[Operand] = []
        nodes: list[Any] = [*self.node.args, *self.node.kwargs.values()]
        for node, real in zip(nodes, [*self.args, *self.kwargs.values()], strict=True):
            pairs = zip(node, real, strict=True) if isinstance(real, list | tuple) else [(node, real)]
            found += [self._operand(n, r) for n, r in pairs if isinstance(r, Tensor)]
        return found

    def _operand(self, node: Any, real: Tensor) -> Operand:
        value = self.values.get(node, NOTHING) if isinstance(node, fx.Node) else NOTHING
        return Operand(node if isinstance(node, fx.Node) else None, real, value)

    def matched(self, rule: str) -> None:
        """Note that a recognition rule found what it looks for at this node."""
        self.ledger.remarks.looked.append(Looked(self.node, rule))

    def unmatched(self, rule: str, reason: str) -> None:
        """Note that a recognition rule did not find it, and why: ``fxplain inspect --why`` prints that."""
        self.ledger.remarks.looked.append(Looked(self.node, rule, reason))

    def carry(self, *operands: Operand, slots: Sequence[Slot] = (), **changes: Any) -> Value:
        """A value with the provenance of the operands and the given slots."""
        return joined([operand.value for operand in operands]).having(slots=tuple(slots), **changes)

    def made(self, *operands: Operand, slots: Sequence[Slot] = ()) -> Value:
        """A value of tokens that something was made of these operands, and no map or sample any more."""
        return self.carry(*operands, slots=slots, softmaxes=frozenset(), samples=frozenset(), single=())


def pick(
    node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any], name: str, default: Any = None
) -> Any:
    """An argument of a node's call by its name in the schema."""
    if name in kwargs:
        return kwargs[name]
    names = _argument_names(node.target)
    place = names.index(name) if name in names else len(args)
    return args[place] if place < len(args) else default


def _argument_names(target: Any) -> list[str]:
    """From the schema; higher-order operations have none, but a signature."""
    schema = getattr(target, "_schema", None)
    return list(signature(target).parameters) if schema is None else [a.name for a in schema.arguments]


def literal(node: fx.Node, name: str, default: Any = None) -> Any:
    """An argument as it stands in the graph: a literal, or a node."""
    return pick(node, node.args, node.kwargs, name, default)


ALIASES = {
    "aten::subtract": "aten::sub",
    "aten::multiply": "aten::mul",
    "aten::divide": "aten::div",
    "aten::true_divide": "aten::div",
    "aten::negative": "aten::neg",
    "aten::absolute": "aten::abs",
    "aten::clip": "aten::clamp",
    "aten::concat": "aten::cat",
    "aten::concatenate": "aten::cat",
    "aten::special_softmax": "aten::softmax",
    "aten::special_log_softmax": "aten::log_softmax",
    "aten::linalg_matmul": "aten::matmul",
    "aten::ravel": "aten::flatten",
    "aten::arccos": "aten::acos",
    "aten::arctan2": "aten::atan2",
    "aten::special_expit": "aten::sigmoid",
    "aten::special_logit": "aten::logit",
    "aten::special_erf": "aten::erf",
    "aten::special_erfc": "aten::erfc",
    "aten::special_exp2": "aten::exp2",
    "aten::special_expm1": "aten::expm1",
    "aten::special_log1p": "aten::log1p",
    "aten::special_gammaln": "aten::lgamma",
    "aten::special_xlogy": "aten::xlogy",
    "aten::special_sinc": "aten::sinc",
    "aten::special_logsumexp": "aten::logsumexp",
    "aten::greater": "aten::gt",
    "aten::less": "aten::lt",
    "aten::not_equal": "aten::ne",
}
"""Second names of operations; ATen keeps them apart, and tags only the first."""


def op_name(node: fx.Node) -> str:
    schema = getattr(node.target, "_schema", None)
    name = schema.name if schema is not None else str(node.target)
    return ALIASES.get(name, name)
