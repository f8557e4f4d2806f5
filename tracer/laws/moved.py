"""Which tokens are moved to see what depends on them, and in which runs of the graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxplain.attention.classify import classify
from fxplain.labels.findings import Findings
from fxplain.labels.flows import Born, Window
from fxplain.labels.labels import codes_of

Moved = tuple[tuple[int, int], ...]
"""Pairs (sample, token) that are moved in one run, at most one of each sample."""

APIECE = 2
"""How many tokens of one input are moved."""


def runs_of(findings: Findings, most: int) -> list[Moved]:
    """The tokens to move: the first and the last of every input.

    The first runs move a token of one sample alone, so that nothing of it may be seen in another sample. The
    others move one in every sample at a time.
    """
    ends = [dict.fromkeys((s.start, s.start + s.size - 1)[:APIECE]) for s in asked_spaces(findings)]
    tokens = [token for pair in ends for token in pair][:most]
    batch = findings.batch
    if batch == 1 or len(tokens) < 2:
        return [((place % batch, token),) for place, token in enumerate(tokens)]
    rest = [tokens[place : place + batch] for place in range(1, len(tokens), batch)]
    return [((0, tokens[0]),), *(tuple((batch - 1 - k, t) for k, t in enumerate(each)) for each in rest)]


def asked_spaces(findings: Findings) -> list[Born]:
    """The spaces of inputs: as they are born, or as a stem of convolutions makes them.

    Convolutions before any attention make tokens and are no steps of an explanation: what they read are no
    tokens yet. Spaces that nothing uses in the end are asked about too: their tokens gave way to others.
    """
    spaces = findings.ledger.tokens.spaces
    classified = classify(findings)
    number = classified.renumber
    names = {space.start: space.origin for space in classified.spaces}
    unmade = _read_by_stems(findings, [site.index for site in classified.sites], number >= 0)
    found = []
    for space in (space for space in spaces if not space.filled):
        alive = int(number[space.start]) if space.start < len(number) else -1
        origin = space.origin if alive < 0 else names.get(alive, space.origin)
        if origin == "input" and (alive >= 0 or not bool(unmade[space.start])):
            found.append(space)
    return found


def _read_by_stems(findings: Findings, living: Sequence[int], used: Tensor) -> Tensor:
    """[token]: those that become other tokens by convolutions which are no steps of an explanation."""
    made = torch.zeros_like(used)
    for site in reversed(findings.ledger.sites):
        if not isinstance(site.map, Window) or site.index in living:
            continue
        rows, cols = (codes_of(slot.labels) for slot in (site.rows, site.cols))
        rows, cols = rows[rows >= 0], cols[cols >= 0]
        if bool((used[rows] | made[rows]).any()):
            made[cols] = True
    return made
