"""Why a node of the graph is taken for what it is: its labels, its role, and what each rule made of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from fxplain.attention.census import census
from fxplain.attention.labelled import Labelled
from fxplain.errors import InputError
from fxplain.labels.labels import DORMANT, Slot, codes_of
from fxplain.labels.notebook import Looked
from fxplain.labels.value import Value
from fxplain.where import place_of


@dataclass(frozen=True)
class Why:
    """What is known of one node of the graph, and why. Its text is what ``inspect --why`` prints."""

    node: str
    place: str
    """Node, operation, module and source line."""
    operands: tuple[str, ...]
    """Each operand with its shape and tokens, in words."""
    result: str
    role: str
    """An attention, a mixing, an entry of the census; empty where the node only passes tokens on."""
    rules: tuple[Looked, ...]
    """The recognition rules that looked at it; one that did not match has a reason."""

    def __str__(self) -> str:
        lines = [self.place, *(f"  from  {operand}" for operand in self.operands), f"  to    {self.result}"]
        lines += [f"  is    {self.role}"] if self.role else []
        for looked in self.rules:
            told = f"does not match: {looked.reason}" if looked.reason else "matches"
            lines.append(f"  rule  {looked.rule!r} {told}")
        return "\n".join(lines)


def why(labelled: Labelled, name: str) -> Why:
    """What is known of the node of that name.

    Raises:
        InputError: the graph has no such node; the message has some that it has.
    """
    nodes = {node.name: node for node in labelled.captured.graph.graph.nodes}
    if name not in nodes:
        known = [node for node in nodes if name in node] or [step.node for step in labelled.classified.steps]
        raise InputError(
            "the graph has no such node",
            expected=", ".join(known[:8]) + (", ..." if len(known) > 8 else ""),
            found=name,
            hint="inspect --format json lists the nodes of all attentions",
        )
    node = nodes[name]
    return Why(
        node=name,
        place=place_of(node),
        operands=tuple(_described(labelled, used) for used in node.all_input_nodes),
        result=_described(labelled, node),
        role=_role(labelled, node),
        rules=tuple(
            dict.fromkeys(each for each in labelled.findings.ledger.remarks.looked if each.node is node)
        ),
    )


def _described(labelled: Labelled, node: fx.Node) -> str:
    made = node.meta.get("val")
    known = made.shape if isinstance(made, torch.Tensor) else None
    shape = labelled.findings.ledger.shapes.get(node.name, known)
    name = node.name if shape is None else f"{node.name} {list(shape)}"
    parts = [_in_words(labelled, value) for value in labelled.findings.parts(node)]
    return f"{name}: " + "; ".join(dict.fromkeys(parts))


def _in_words(labelled: Labelled, value: Value) -> str:
    tokens = [_slot(labelled, slot) for slot in value.active]
    if tokens:
        return " by ".join(tokens)
    if value.lost:
        return f"labels were lost at {', '.join(sorted(value.lost))}"
    if value.is_summary:
        return "features that all tokens were summed into"
    if any(slot.strength == DORMANT for slot in value.slots):
        return f"elements of {value.root}, which are no tokens yet"
    if value.root is None:
        return "no tokens"
    return f"made of {value.root}" if value.from_input else f"made of the parameter {value.root}"


def _slot(labelled: Labelled, slot: Slot) -> str:
    codes = torch.unique(codes_of(slot.labels))
    ids = torch.unique(labelled.classified.token_ids(slot.labels))
    spaces = [
        space.name
        for space in labelled.classified.spaces
        if bool(((ids >= space.start) & (ids < space.start + space.size)).any())
    ]
    axes = sorted(slot.token_axes)
    name = " and ".join(spaces) or f"{len(codes)} tokens that no attention reads"
    if not axes:
        return f"one token of {name}"
    return f"tokens of {name} along axis {', '.join(map(str, axes))}"


def _role(labelled: Labelled, node: fx.Node) -> str:
    failure = labelled.findings.ledger.remarks.failures.get(node.name)
    if failure is not None:
        return f"an operation whose transfer function failed: {failure}"
    step = next((step for step in labelled.classified.steps if step.node == node.name), None)
    if step is not None:
        kind = f"{step.kind.replace('_', '-')} attention" if step.kind else "mixing"
        ends = (f"{stream.name} [{stream.size}]" for stream in (step.queries, step.keys))
        return f"{kind} {step.index}: {' from '.join(ends)}"
    entries = census(labelled.findings, labelled.classified.sites)
    return next((f"{each.role}: {each.reason}" for each in entries if each.node == node.name), "")
