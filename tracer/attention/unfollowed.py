"""What mixes tokens and is not followed: whether it carries what tokens hold, or scores alone."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from fxplain.labels.findings import Findings
from fxplain.labels.flows import Operator
from fxplain.labels.labels import Value


def carried(findings: Findings) -> Iterator[tuple[fx.Node, str]]:
    """The operations that mix tokens without being followed, and their roles.

    Not those whose results only make scores of queries and keys, as sums of gates do that forget: nothing
    that tokens hold goes that way, and the map is what it is.
    """
    beyond = followed(findings)
    for node, (role, _) in findings.ledger.unfollowed.items():
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
