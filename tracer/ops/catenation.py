"""Tensors laid side by side: tokens one after the other, or features of the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fxplain.labels.call import Call
from fxplain.labels.labels import DORMANT, Slot, codes_of, compact, fill_samples, reads_of
from fxplain.labels.merge import merge
from fxplain.labels.value import Operand, Value
from fxplain.ops.elementwise import coarser_among, single_among, taken_in
from fxplain.ops.names import with_tokens
from fxplain.ops.table import transfer
from fxplain.ops.tokens import taken_place


@transfer("aten::cat", "aten::stack", "aten::hstack", "aten::vstack")
def cat(call: Call) -> Value:
    """Concatenate the labels; parts without any are completed from their neighbours or wake up."""
    operands = call.operands()
    axis = int(call.argument("dim", 0)) % call.result.ndim
    if call.op in ("aten::hstack", "aten::vstack"):
        if any(operand.ndim != call.result.ndim for operand in operands):
            raise ValueError("stacks vectors as rows")
        axis = 1 if call.op == "aten::hstack" and call.result.ndim > 1 else 0
    stacked = call.op == "aten::stack"
    return side_by_side(call, [unsqueezed(o, axis) if stacked else o for o in operands], axis)


def side_by_side(call: Call, parts: Sequence[Operand], axis: int) -> Value:
    """The value of parts laid one after the other along an axis."""
    operands = call.operands()
    full = [part for part in parts if part.tensor.numel()]  # what is empty adds nothing
    parts = full or [part for part in parts if part.ndim == call.result.ndim]
    lead = _lead(parts, axis)
    if lead is None:
        return call.carry(*operands)
    if _of_features(lead, axis):
        parts = with_tokens(call, parts, axis)
    if _pairs(parts, axis):
        return call.carry(*operands, slots=merge([part.value.active for part in parts]))
    slots = []
    for place, pattern in enumerate(lead.value.active or lead.value.slots):
        own = [_piece(call, part, pattern, place, lead, axis) for part in parts]
        gave_way = [part for part, piece in zip(parts, own, strict=True) if piece is pattern]
        pieces = own if _single_places(parts, axis) else _of_one_place(own, call, axis)
        labels = compact(
            torch.cat([piece.expanded(p.shape) for piece, p in zip(pieces, parts, strict=True)], axis)
        )
        strength = max(piece.strength for piece in pieces)
        if not any(piece.varies(axis) for piece in pieces) and _all_alike(pieces):
            call.ledger.note_heads(pieces)
        slot = Slot(labels, strength, reads_of(pieces))
        slots.append(_having_taken_in(call, gave_way, pattern, slot, axis))
    value = call.carry(*operands, slots=slots)
    given = [part.value.active for part in parts]
    along = any(slot.varies(axis) for own in (*given, slots) for slot in own)
    coarser = None if along else coarser_among(given, slots)
    single = (*value.gave_way.single, *single_among(given, slots, features=axis))
    return value.having(single=single, coarser=coarser)


def _lead(parts: Sequence[Operand], axis: int) -> Operand | None:
    """The part that says along which axes tokens lie: the first labelled one.

    Of features side by side it is the finest: a query that is repeated beside each key gives way to the keys.
    """
    labelled = [part for part in parts if part.value.labelled]
    slots = [slot for part in labelled for slot in part.value.active]
    if labelled and not any(slot.varies(axis) for slot in slots) and all(p.shape[axis] > 1 for p in parts):
        return max(labelled, key=lambda part: max(len(slot.token_axes) for slot in part.value.active))
    return next(iter(labelled), None) or next((part for part in parts if part.value.slots), None)


def _all_alike(slots: Sequence[Slot]) -> bool:
    """Whether all are of the same tokens, place by place."""
    first = slots[0].labels
    return len(slots) > 1 and all(torch.equal(slot.labels, first) for slot in slots[1:])


def _pairs(parts: Sequence[Operand], axis: int) -> bool:
    """Whether features of tokens on other axes lie side by side: every query's beside every key's."""
    slots = [slot for part in parts for slot in part.value.active]
    if len(parts) < 2 or any(slot.varies(axis) for slot in slots):
        return False
    one = parts[0].value.active
    return len(one) == 1 and any(
        not (one[0].token_axes <= slot.token_axes or slot.token_axes <= one[0].token_axes) for slot in slots
    )


def _single_places(parts: Sequence[Operand], axis: int) -> bool:
    """Whether parts of one place each lie one after the other along no axis of features: two chunks of
    tokens."""
    return len(parts) > 1 and axis != parts[0].ndim - 1 and all(part.shape[axis] == 1 for part in parts)


def _of_one_place(pieces: list[Slot], call: Call, axis: int) -> list[Slot]:
    """Features side by side that come from several elements of one input, place by place.

    The coordinates of a box, or hashes of an id, make one token: the first one's. Parts with tokens in common
    (neighbours) stay.
    """
    if any(p.strength == DORMANT or p.varies(axis) for p in pieces):
        return pieces
    # side by side at one place: a part that has met no sample yet is of the others'
    pieces = [replace(p, labels=fill_samples(p.labels, [o.labels for o in pieces])) for p in pieces]
    if any(p.reads for p in pieces):
        return pieces
    tokens = [codes[codes >= 0] for codes in (torch.unique(codes_of(piece.labels)) for piece in pieces)]
    alike = all(len(own) == len(tokens[0]) > 1 for own in tokens)
    if not alike or len(torch.unique(torch.cat(tokens))) < sum(len(own) for own in tokens):
        return pieces
    sources = {call.ledger.tokens.source_of(int(own[0])) for own in tokens}
    return [pieces[0]] * len(pieces) if len(sources) == 1 else pieces


def unsqueezed(operand: Operand, axis: int) -> Operand:
    slots = [replace(slot, labels=slot.labels.unsqueeze(axis)) for slot in operand.value.slots]
    return replace(operand.with_slots(slots), tensor=operand.tensor.unsqueeze(axis))


def _piece(call: Call, part: Operand, pattern: Slot, place: int, lead: Operand, axis: int) -> Slot:
    """The slot that one part contributes where the leading part has ``pattern``."""
    same = [s for s in part.value.slots if (s.strength > DORMANT) == (pattern.strength > DORMANT)]
    along_tokens = _along_tokens(pattern, lead, axis)
    if same:
        slot = same[min(place, len(same) - 1)]
        if len(lead.value.active) > 1 and not pattern.varies(axis):
            # scores of queries and keys beside those of queries and places: rows go with rows
            alike = [s for s in (slot, *same) if s.token_axes == pattern.token_axes]
            slot = alike[0] if alike else slot if along_tokens else pattern
        gives_way = not along_tokens and (
            slot.strength < pattern.strength or slot.token_axes < pattern.token_axes
        )
        return pattern if gives_way else slot
    if not along_tokens:
        other = taken_place(call, part, axis) if lead.value.labelled and not pattern.token_axes else None
        return other or replace(pattern, labels=_first(pattern.labels, axis))
    dormant = part.value.dormant
    if dormant is None or pattern.strength == DORMANT or len(lead.value.active) != 1:
        return Slot(torch.zeros((1,) * part.ndim, dtype=torch.int64), DORMANT)
    return _awake(call, dormant, pattern, axis)


def _having_taken_in(call: Call, parts: Sequence[Operand], pattern: Slot, slot: Slot, axis: int) -> Slot:
    """The slot of features side by side, after it has taken in the tokens of ``parts`` that gave way to
    ``pattern``: a learned token that has read, beside each of the tokens that are classified."""
    if slot.varies(axis) or slot.strength == DORMANT:
        return slot
    reads = slot.reads
    for part in parts:
        kept, own, shape = pattern, list(part.value.active), list(part.shape)
        if call.op == "aten::stack":
            kept, *own = (replace(each, labels=each.labels.squeeze(axis)) for each in (pattern, *own))
            del shape[axis]
        reads |= taken_in(call, part, own, kept, tuple(shape))
    return replace(slot, reads=reads)


def _along_tokens(pattern: Slot, lead: Operand, axis: int) -> bool:
    return pattern.varies(axis) or (lead.shape[axis] == 1 and axis != lead.ndim - 1)


def _of_features(lead: Operand, axis: int) -> bool:
    """Whether features of tokens are laid side by side, not tokens."""
    active = lead.value.active
    return len(active) == 1 and not _along_tokens(active[0], lead, axis)


def _awake(call: Call, dormant: Slot, pattern: Slot, axis: int) -> Slot:
    """Tokens of a part that joins labelled ones along their axis (a class token, learned keys)."""
    labels = dormant.labels
    for other in range(labels.ndim):
        if other != axis and not pattern.varies(other):
            labels = _first(labels, other)
    return call.ledger.tokens.of_elements(replace(dormant, labels=labels), call.node)


def _first(labels: Tensor, axis: int) -> Tensor:
    return labels.narrow(axis, 0, min(1, labels.shape[axis]))
