"""The backward interpreter: relevance from the output of a captured graph to its inputs, node by node."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxplain.attribution.lrp import affine, attention, moving, normalise, sums  # noqa: F401 (they fill the table)
from fxplain.attribution.lrp.pointwise import pointwise
from fxplain.attribution.lrp.probe import by_experiment
from fxplain.attribution.lrp.rule_sets import RuleSet
from fxplain.attribution.lrp.samples import Samples
from fxplain.attribution.lrp.sides import Sides, is_pointwise
from fxplain.attribution.lrp.table import TABLE, Call, Shares
from fxplain.attribution.lrp.tokens import Reader
from fxplain.errors import MethodError, NonFiniteError
from fxplain.where import place_of

Relevances = list["Tensor | None"]


@dataclass(frozen=True)
class Propagated:
    """What one backward pass of relevance found."""

    tokens: Tensor
    """[sample, token]: what arrived at every token."""
    inputs: Mapping[str, Tensor]
    """Placeholder -> relevance of its elements, for the inputs that tokens are made of."""
    maps: Mapping[str, Tensor]
    """Node -> relevance of an attention's map: the map itself, or a kernel that holds it."""
    constants: Tensor
    """[sample]: what additions gave to position tables and other constants."""


def propagate(
    values: dict[fx.Node, Any],
    start: Mapping[fx.Node, Tensor],
    sides: Sides,
    rules: RuleSet,
    reader: Reader,
    samples: Samples,
    last: bool = False,
) -> Propagated:
    """Hand relevance back from the outputs to tokens and inputs.

    Args:
        values: of every node, as :func:`forward` gives them.
        start: output node -> relevance of its elements.
        sides: what carries relevance.
        rules: the rule set.
        reader: where tokens are read.
        samples: those whose relevance it is.
        last: whether nobody needs the values afterwards: each is let go of once relevance has passed it.

    Raises:
        MethodError, NonFiniteError: see :mod:`fxplain.errors`.
        NotApartError: the relevance of several samples cannot be told apart.
    """
    pending: dict[fx.Node, Relevances] = {}
    tokens, constants = reader.empty(samples), torch.zeros(samples.count, dtype=torch.float64)
    inputs: dict[str, Tensor] = {}
    maps: dict[str, Tensor] = {}
    for node, given in start.items():
        if node in sides.carriers:
            _add(pending, node, 0, wide(given), values)
    for node in _backwards(values, last):
        relevances = pending.pop(node, None)
        if relevances is None:
            continue
        if node in sides.maps and relevances[0] is not None:
            maps[node.name] = relevances[0]
        constants -= reader.born(node, relevances, tokens, samples)
        if node.op == "placeholder" and relevances[0] is not None:
            inputs[node.name] = relevances[0]
        elif node.target is operator.getitem:
            source, place = node.args
            _add(pending, source, place, relevances[0], values)  # type: ignore[arg-type]
        elif node.op == "call_function":
            call = _call(node, values, relevances, sides, rules, maps, samples)
            if not call.carriers:
                continue  # tokens made of ids or parameters: the reader has them
            for operand, share in _apply(call):
                if operand is None:
                    own = share if share.shape == (samples.count,) else samples.sums(share, node)
                    constants += own.to(constants)
                    continue
                reader.crossed(operand, node, share, relevances, tokens, samples)
                _add(pending, operand, 0, share, values)
    return Propagated(tokens, inputs, maps, constants)


def _backwards(values: dict[fx.Node, Any], last: bool) -> Iterator[fx.Node]:
    """The nodes, last to first; each value is dropped behind its node, if this is the last time."""
    for node in reversed(list(values)):
        yield node
        if last:
            del values[node]


def _add(
    pending: dict[fx.Node, Relevances],
    node: fx.Node,
    place: int,
    share: Tensor | None,
    values: Mapping[Any, Any],
) -> None:
    """Relevance that a node gets from several users adds up."""
    value = values[node]
    known = pending.setdefault(node, [None] * (len(value) if isinstance(value, (list, tuple)) else 1))
    old = known[place]
    known[place] = share if old is None or share is None else old + share


def _call(
    node: fx.Node,
    values: Mapping[fx.Node, Any],
    relevances: Sequence[Tensor | None],
    sides: Sides,
    rules: RuleSet,
    maps: dict[str, Tensor],
    samples: Samples,
) -> Call:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda used: wide(values[used]))
    results = wide(values[node])
    results = tuple(results) if isinstance(results, (list, tuple)) else (results,)
    return Call(node, args, kwargs, results, tuple(relevances), sides, rules, maps, samples)


def wide(value: Any) -> Any:
    """Half precision as float32: relevance is a matter of small differences."""
    if isinstance(value, (list, tuple)):
        return type(value)(wide(part) for part in value)
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value


def _apply(call: Call) -> Shares:
    shares = rule_for(call)(call)
    if shares is None:
        raise MethodError(
            f"relevance has no rule for an operation: {call.node.target}",
            where=place_of(call.node),
            expected=f"a rule of the set {call.rules.name!r}",
            found=f"{len(call.carriers)} operands that carry relevance",
            hint="register one with relevance_rule (docs/add-an-lrp-rule.md), or report the operation",
        )
    for operand, share in shares:
        if not _finite(share):
            raise NonFiniteError(
                "relevance is NaN or infinite",
                where=place_of(call.node),
                found=f"the share of {operand.name if operand else 'a constant'}",
                hint="the model's values explode, or the rule divides by what is almost 0",
            )
    return shares


def _finite(share: Tensor) -> bool:
    """Whether all of it is: the sum tells at a pass, unless it overflows."""
    return bool(share.sum().isfinite()) or bool(share.isfinite().all())


def rule_for(call: Call) -> Callable[[Call], Shares | None]:
    """The rule of an operation: the set's own, the one for all sets, that of pointwise functions, or one
    that an experiment finds."""
    for key in ((call.op, call.rules.name), (call.op, "")):
        if key in TABLE:
            return TABLE[key]
    return pointwise if is_pointwise(call.node) else by_experiment
