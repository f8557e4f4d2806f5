"""What mixes tokens and is not followed: whether it carries what tokens hold, or scores alone; and where
labels say nothing of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, fx

from fxplain.labels.call import op_name
from fxplain.labels.findings import Findings
from fxplain.labels.flows import Operator, Site, Window
from fxplain.labels.labels import Slot, codes_of
from fxplain.labels.notebook import Ledger
from fxplain.labels.value import Value


def carried(findings: Findings) -> Iterator[tuple[fx.Node, str]]:
    """The operations that mix tokens without being followed, and their roles.

    Not those whose results only make scores of queries and keys, as sums of gates do that forget: nothing
    that tokens hold goes that way, and the map is what it is.
    """
    beyond = followed(findings)
    for node, (role, _) in findings.ledger.remarks.unfollowed.items():
        if node not in beyond and not makes_scores(findings, node):
            yield node, role


def followed(findings: Findings) -> set[fx.Node]:
    """All that lies within an operator whose map is had by its gradient."""
    return {n for site in findings.ledger.sites if isinstance(site.map, Operator) for n in site.map.path}


def _is_map(value: Value) -> bool:
    """Whether it has rows and columns; a state that holds several tokens has neither."""
    return len({slot.token_axes for slot in value.active}) > 1


def makes_scores(findings: Findings, node: fx.Node) -> bool:
    """Whether every way from here leads into a tensor of rows and columns."""
    stack, seen = [node], {node}
    while stack:
        for user in stack.pop().users:
            if user in seen or _is_map(findings.value(user)):
                continue
            if user.op == "output":
                return False
            seen.add(user)
            stack.append(user)
    return bool(node.users)


How = Literal["made before", "statistics"]


@dataclass(frozen=True)
class PassedOver:
    """An operation at which tokens come to others while labels say nothing of it."""

    node: fx.Node
    token: int
    """One such token, as users number them."""
    how: How


def passed_over(findings: Findings, renumber: Tensor) -> Iterator[PassedOver]:
    """All of them, in order of execution for each sort; of tokens that users see (``renumber``: token of the
    labelling run -> token for users, or -1)."""
    yield from _made_before(findings, renumber)
    yield from _at(findings, renumber, multiplied(findings), "made before")
    yield from _at(findings, renumber, findings.ledger.remarks.statistics, "statistics")


def _at(findings: Findings, renumber: Tensor, nodes: Iterable[fx.Node], how: How) -> Iterator[PassedOver]:
    """The same thing at each of some nodes whose tokens users see."""
    for node in nodes:
        for slot in findings.value(node).active[:1]:
            tokens = renumber[_present(slot)]
            if bool((tokens >= 0).any()):
                yield PassedOver(node, int(tokens[tokens >= 0][0]), how)


def before_attention(ledger: Ledger, site: Site) -> bool:
    """Whether a mixing comes before any attention: a convolution of a stem, a gate by the mean of all places.

    Tokens there are in the making. What is made of a token may come back to it: it is added to it (a
    convolution of positions, a residual block) or multiplied with it, and its name stays.
    """
    return not site.attends and not ledger.attended(site.cols.reads | site.rows.reads)


def unheard(findings: Findings, renumber: Tensor, steps: Collection[int]) -> list[fx.Node]:
    """The operations that tokens go through without a step: sums of all tokens, what is not followed, and
    windows of a stem.

    Args:
        findings: what the labelling run saw.
        renumber: token of the labelling run -> token for users, or -1.
        steps: indices of the sites that are steps.
    """
    silent = [*findings.ledger.remarks.summaries, *(node for node, _ in carried(findings))]
    return [*silent, *_stems_between(findings, renumber, steps)]


def _stems_between(findings: Findings, renumber: Tensor, steps: Collection[int]) -> Iterator[fx.Node]:
    """Windows before any attention that are no steps, though users see the tokens that they read: an output
    holds these, and another one what a tower of convolutions makes of them."""
    for site in findings.ledger.sites:
        passed = isinstance(site.map, Window) and site.index not in steps
        if passed and bool((renumber[_present(site.cols)] >= 0).any()):
            yield site.node


def _made_before(findings: Findings, renumber: Tensor) -> Iterator[PassedOver]:
    """Where tokens take in what was mixed of them before any attention; no step says so."""
    ledger = findings.ledger
    early = {site.index: site for site in ledger.sites if before_attention(ledger, site)}
    joins = {site.node for site in ledger.sites}
    for node in findings.values:
        slots = findings.value(node).active
        if len(slots) != 1 or node in joins or early.keys().isdisjoint(slots[0].reads):
            continue
        kept = _present(slots[0])
        living = kept[renumber[kept] >= 0]
        mixed = (
            slot
            for used in node.all_input_nodes
            for slot in findings.value(used).active
            if not bool(torch.isin(_present(slot), kept).any())
        )
        if len(living) and any(_made_of(slot, living, early) for slot in mixed):
            yield PassedOver(node, int(renumber[living[0]]), "made before")


def multiplied(findings: Findings) -> Iterator[fx.Node]:
    """Products of tokens with others that were born with them, place by place, before any attention. No step
    says so, for such products are scores where they are summed up."""
    joins = {site.node for site in findings.ledger.sites}
    for node in findings.values:
        slots = [findings.value(used).active for used in node.all_input_nodes]
        met = [own[0] for own in slots if len(own) == 1 and own[0].token_axes]
        early = op_name(node).removesuffix("_") == "aten::mul" and node not in joins and len(met) == 2
        raw = early and not any(slot.reads for slot in met)
        if raw and _are_others(findings, *met) and not makes_scores(findings, node):
            yield node


def _are_others(findings: Findings, one: Slot, other: Slot) -> bool:
    """Whether two slots name different tokens of one space, place by place."""
    space = findings.ledger.tokens.space_of
    if one.labels.shape != other.labels.shape:
        return False
    codes = codes_of(one.labels), codes_of(other.labels)
    known = (codes[0] >= 0) & (codes[1] >= 0)
    ends = [space(int(end)) for each in codes for end in each[known].aminmax()] if bool(known.any()) else []
    return len(set(ends)) == 1 and bool((codes[0] != codes[1])[known].any())


def _made_of(slot: Slot, tokens: Tensor, sites: dict[int, Site]) -> bool:
    """Whether a slot's tokens were mixed of some others."""
    behind = [sites[index] for index in slot.reads if index in sites]
    own = _present(slot)
    made = any(bool(torch.isin(_present(site.rows), own).any()) for site in behind)
    return made and any(bool(torch.isin(_present(site.cols), tokens).any()) for site in behind)


def _present(slot: Slot) -> Tensor:
    codes = torch.unique(codes_of(slot.labels))
    found: Tensor = codes[codes >= 0]
    return found
