"""Copies of one token in windows of their own, which stand side by side later.

A learned query may be laid out once for each picture or frame of a sample, and read each alone. As long as
the copies stay in windows, they are one token, and what they are given adds up (a class token in every
frame). Where the windows are joined to one sequence, each copy holds what its own window gave it: they are
several tokens; and so are copies that stand side by side and read other things each. That is seen only at the
attention, so the graph is labelled once more then, with a token for each copy where they were laid out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from fxplain.labels.call import aten, op_name
from fxplain.labels.flows import Born
from fxplain.labels.labels import DORMANT, Slot, codes_of, compact, completed, encode, samples_of
from fxplain.labels.notebook import Ledger
from fxplain.labels.value import Value
from fxplain.recognise.around import behind
from fxplain.recognise.copies import renamed

if TYPE_CHECKING:
    from fxplain.labels.findings import Findings

LAYING = frozenset(aten("expand expand_as broadcast_to repeat tile repeat_interleave"))


@dataclass(frozen=True)
class LaidOut:
    """How copies are laid out on a tensor: of which sample each is, and which copy of it; size 1 along axes
    where that does not vary."""

    samples: Tensor
    ranks: Tensor


def where_laid_out(findings: Findings) -> dict[str, LaidOut]:
    """The nodes at which copies are laid out that stand side by side later on, and are not alike."""
    ledger, found = findings.ledger, dict[str, LaidOut]()
    several = ledger.tokens.repeated | ledger.tokens.shared_rows
    tokens = torch.tensor(sorted(several), dtype=torch.int64)
    elements = torch.tensor(ledger.tokens.elements_of(several), dtype=torch.int64)
    for node, value in findings.values.items() if len(tokens) else ():
        if op_name(node) not in LAYING or not isinstance(value, Value):
            continue
        for slot in value.slots:
            axes = _laid_along(node, slot, ledger)
            wanted = elements if slot.strength == DORMANT else tokens
            if slot.strength > DORMANT and slot.token_axes:
                continue  # tokens laid along another axis: a bias of pairs, say
            if axes and bool(torch.isin(codes_of(slot.labels), wanted).any()):
                laid_out = _counted(node, axes, tokens, findings)
                if laid_out is not None and int(laid_out.ranks.max()) > 0:
                    found[node.name] = laid_out
    return found


def nowhere_apart(findings: Findings, laid_out: Iterable[str]) -> frozenset[str]:
    """Of the nodes where copies were told apart, those whose copies are on no side of any step: what was
    laid out there are no rows, but features of one (the norm that each is divided by)."""
    sides = [
        torch.unique(codes_of(slot.labels))
        for site in findings.ledger.sites
        for slot in (site.rows, site.cols)
        if site.node.name not in laid_out
    ]
    made = {name: [s for s in findings.ledger.tokens.spaces if s.node.name == name] for name in laid_out}
    return frozenset(
        name
        for name, spaces in made.items()
        if spaces and not any(_several(codes, space) for space in spaces for codes in sides)
    )


def _several(codes: Tensor, space: Born) -> bool:
    return int(((codes >= space.start) & (codes < space.start + space.size)).sum()) > 1


def _laid_along(node: fx.Node, slot: Slot, ledger: Ledger) -> list[int]:
    """The axes along which one place became several."""
    after = ledger.shapes.get(node.name, ())
    before = ledger.shapes.get(node.all_input_nodes[0].name, ())
    before = (1,) * (len(after) - len(before)) + before
    axes = [axis for axis, size in enumerate(after) if size > 1 and slot.labels.shape[axis] == 1]
    return [axis for axis in axes if len(before) == len(after) and before[axis] == 1]


def _counted(node: fx.Node, axes: list[int], tokens: Tensor, findings: Findings) -> LaidOut | None:
    """Which copy each place is: they are counted within a sample, which is known only after they have read
    something."""
    shape = findings.ledger.shapes[node.name]
    for samples in _samples_later(node, shape, axes, tokens, findings):
        laid = [shape[axis] if axis in axes else 1 for axis in range(len(shape))]
        samples = samples.expand(laid)
        flat = samples.reshape(-1)
        earlier = torch.ones(len(flat), len(flat)).tril(-1) * (flat[:, None] == flat[None])
        return LaidOut(samples, earlier.sum(-1).long().view(laid))
    return None


def _samples_later(
    node: fx.Node, shape: tuple[int, ...], axes: list[int], tokens: Tensor, findings: Findings
) -> Iterator[Tensor]:
    """The sample at each place of some axes, from what comes of a node and is laid out like it; at last, like
    it along these axes."""
    shapes = findings.ledger.shapes
    later = [user for user in behind(node) if len(shapes.get(user.name, ())) == len(shape)]
    alike = [user for user in later if shapes[user.name] == shape]
    partly = [user for user in later if all(shapes[user.name][axis] == shape[axis] for axis in axes)]
    for user in (*alike, *partly):
        for slot in findings.value(user).active:
            inside = torch.isin(codes_of(slot.labels), tokens)
            samples = torch.where(inside, completed(samples_of(slot.labels)), -1)
            others = [axis for axis in range(len(shape)) if axis not in axes]
            line = samples.amax(others, keepdim=True) if others else samples
            if bool((line >= 0).all()):
                yield line


def laid_apart(
    node: fx.Node, value: Value, laid_out: LaidOut, shape: tuple[int, ...], ledger: Ledger
) -> Value:
    """The value with a token for each copy."""
    return replace(value, slots=tuple(_apart(node, slot, laid_out, shape, ledger) for slot in value.slots))


def _apart(node: fx.Node, slot: Slot, laid_out: LaidOut, shape: tuple[int, ...], ledger: Ledger) -> Slot:
    labels, ranks = torch.broadcast_tensors(slot.labels, laid_out.ranks)  # type: ignore[no-untyped-call]
    if slot.strength > DORMANT:
        own = replace(slot, labels=labels.contiguous())
        return renamed(node, own, ranks, codes_of(own.labels) >= 0, shape, ledger)
    codes = codes_of(labels)
    (root,) = ledger.tokens.elements.by_root(codes)
    start, sizes = ledger.tokens.elements.around(int(codes.max()))
    count = torch.Size(sizes).numel()
    first = ledger.tokens.elements.reserve(root, (int(ranks.max()) + 1, *sizes))
    copies = torch.where(codes >= 0, first + ranks * count + codes - start, -1)
    return replace(slot, labels=compact(encode(laid_out.samples, copies)))
