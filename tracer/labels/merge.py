"""Merging: which tokens the result of a pointwise operation belongs to, where its operands' labels meet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from fxplain.labels.labels import DORMANT, Slot, codes_of, compact, fill_samples


def merge(operands: Iterable[Sequence[Slot]], additive: bool = False) -> tuple[Slot, ...]:
    """The slots of a pointwise operation's result, from those of its operands in order, aligned.

    Slots that vary along the same axes are one: a slot of inputs beats one of parameters, else the first
    wins. A slot that varies along fewer axes gives way to the finer. Slots on other axes stand side by side,
    and so do different single tokens that are added up (the mean of two class tokens' logits). Rows and
    columns of a map outlive a bias that is laid out more finely.
    """
    operands = sorted(operands, key=lambda slots: -_is_map(slots))
    kept: list[Slot] = []
    for slots in operands:
        own: list[Slot] = []
        for slot in slots:
            earlier = [old for old in kept if not any(old is mine for mine in own)]
            if additive and _other_single_token(slot, earlier):
                kept, added = [*kept, slot], [slot]
            else:
                kept, added = _admit(kept, slot, earlier)
            own += added
    if any(slot.strength > DORMANT for slot in kept):
        kept = [slot for slot in kept if slot.strength > DORMANT]
    return tuple(_distinct(kept, operands))


def _is_map(slots: Sequence[Slot]) -> bool:
    """Whether rows and columns stand side by side."""
    return sum(slot.strength > DORMANT and bool(slot.token_axes) for slot in slots) > 1


def _distinct(slots: Sequence[Slot], operands: Sequence[Sequence[Slot]]) -> list[Slot]:
    """Without repeats that no operand has: rows and columns may be the same where each token meets itself."""
    found: list[Slot] = []
    for slot in slots:
        alike = [n for n, old in enumerate(found) if torch.equal(old.labels, slot.labels)]
        times = max(1, *(sum(torch.equal(s.labels, slot.labels) for s in theirs) for theirs in operands))
        if not slot.token_axes or len(alike) < times:
            found.append(slot)
        else:
            found[alike[0]] = replace(found[alike[0]], reads=found[alike[0]].reads | slot.reads)
    return found


def _admit(kept: list[Slot], new: Slot, earlier: list[Slot]) -> tuple[list[Slot], list[Slot]]:
    """What is kept, and what of it the new slot has added."""
    axes = new.token_axes
    rivals = [old for old in earlier if _comparable(old.token_axes, axes)]
    if not rivals:
        return [*kept, new], [new]
    reads = frozenset().union(new.reads, *(old.reads for old in rivals))
    if _new_wins(rivals, new, axes, _is_map(earlier)):
        others = [old for old in kept if not any(old is rival for rival in rivals)]
        added = replace(_fill(new, rivals), reads=reads)
        return [*others, added], [added]
    if len(rivals) == 1:
        winner = replace(_fill(rivals[0], [new]), reads=reads)
        return [winner if old is rivals[0] else old for old in kept], []
    first = next((old for old in rivals if torch.equal(old.labels, new.labels)), rivals[0])
    return [replace(old, reads=old.reads | new.reads) if old is first else old for old in kept], []


def _other_single_token(new: Slot, earlier: Sequence[Slot]) -> bool:
    """Whether all are single tokens of a sample, as firmly named, and the new one is not among them."""
    return bool(earlier) and all(
        old.strength == new.strength > DORMANT
        and not (old.token_axes or new.token_axes)
        and not torch.equal(compact(codes_of(old.labels)), compact(codes_of(new.labels)))
        for old in earlier
    )


def _comparable(one: frozenset[int], other: frozenset[int]) -> bool:
    return one <= other or other <= one


def _new_wins(rivals: list[Slot], new: Slot, axes: frozenset[int], of_map: bool) -> bool:
    strongest = max(old.strength for old in rivals)
    covered = frozenset().union(*(old.token_axes for old in rivals))
    if DORMANT in (strongest, new.strength) and strongest != new.strength:
        return new.strength > strongest
    if axes == covered and len(rivals) == 1:
        return new.strength > strongest
    if new.strength < strongest:
        # a table of parameters names the tokens only where the input has one token a sample
        return not covered and bool(axes)
    if axes <= covered or of_map:
        # finer labels stay, unless they are a parameter's and the new ones are an input's tokens
        return new.strength > strongest and bool(axes)
    return True


def _fill(winner: Slot, losers: Sequence[Slot]) -> Slot:
    """Complete missing labels and samples of the winner from slots that vary along the same axes."""
    labels = winner.labels
    for loser in losers:
        if loser.strength != winner.strength or not (loser.axes <= winner.axes or loser.axes == winner.axes):
            continue
        if bool((labels == 0).any()) and loser.token_axes == winner.token_axes:
            labels = torch.where(labels == 0, loser.labels, labels)
    return replace(winner, labels=fill_samples(labels, [loser.labels for loser in losers]))
