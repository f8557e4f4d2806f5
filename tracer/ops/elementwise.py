"""Pointwise operations: labels merge. Where tokens of two kinds meet place by place, those that stay take in
the others: a residual branch whose tokens were pooled, convolved or mixed comes back to the old ones so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from fxplain.labels.call import Call, aten
from fxplain.labels.labels import DORMANT, STRONG, Slot, align, broadcast, codes_of, compact, samples_of
from fxplain.labels.merge import merge
from fxplain.labels.value import Coarser, Operand, Single, Value
from fxplain.ops.meeting.features import pair_among
from fxplain.ops.meeting.mixing import join
from fxplain.ops.names import ADDING, completing, placed, under_condition, with_rows, without_tables
from fxplain.ops.sequences import taken_for_data
from fxplain.recognise.around import first_in_its_module, is_score
from fxplain.recognise.misplaced import misplaced_on

QUERYING = frozenset(aten("add sub mul"))
JOINING = frozenset(aten("add sub mul"))
"""What of two single tokens has them side by side: a sum of pooled tokens, or their product."""
SUMS = frozenset(aten("add sub rsub lerp addcmul"))
MOST_IN_A_STATE = 16
"""Of all tokens that a state holds these, the newest, are told apart."""
STATE = "recurrence", "adds a token to a state that holds several before it: there is no token-to-token map"


def pointwise(call: Call, operands: Sequence[Operand] | None = None) -> Value:
    """Merge the labels of all operands, broadcast against each other."""
    operands = with_rows(call, completing(call, call.operands() if operands is None else operands))
    ndim = call.result.ndim if isinstance(call.result, Tensor) else max(o.ndim for o in operands)
    raw = under_condition(call, operands)
    if raw is not None:
        return raw.value.having(
            slots=tuple(align(s, ndim) for s in raw.value.slots), origin=None, product=None
        )
    aligned = [[align(slot, ndim) for slot in operand.value.slots] for operand in operands]
    call.ledger.crossing |= _samples_meet(aligned)
    if not any(operand.value.labelled for operand in operands):
        aligned = without_tables(call, aligned)
    elif len(operands) == 2:
        aligned = placed(call, operands, aligned)
    slots = _merged(call, operands, aligned)
    value = call.carry(*operands, slots=slots, origin=_origin_of_ids(call, operands))
    if call.op == "aten::abs":
        value = taken_for_data(call, value)
    if call.op.removesuffix("_") in JOINING and not any(slot.token_axes for slot in slots):
        value = _of_single_tokens(call, operands, value)
    value = value.having(coarser=_coarser(call, operands, slots))
    if call.op.removesuffix("_") not in QUERYING:
        return value
    products = 2 if "mul" in call.op else 0  # a product with keys only has its features to be summed up
    return value.having(single=(*value.gave_way.single, *single_among(aligned, slots, products)))


def _merged(call: Call, operands: Sequence[Operand], aligned: Sequence[Sequence[Slot]]) -> tuple[Slot, ...]:
    """The slots of the result, after those that stay have taken in the others."""
    additive = call.op.removesuffix("_") in JOINING
    misplaced = misplaced_on(call, operands, aligned) if additive else None
    if misplaced is not None:
        return (misplaced,)
    pairs = _pair_tokens(call, operands, aligned)
    ordered = _newest_first(call, operands, aligned) if additive else _older_first(call, aligned)
    slots = merge([pairs] if pairs else ordered, additive=additive and not _one_place(call, aligned))
    floating = isinstance(call.result, Tensor) and call.result.is_floating_point()
    return (_joined(call, operands, aligned, slots[0]),) if floating and len(slots) == 1 else slots


def _of_single_tokens(call: Call, operands: Sequence[Operand], value: Value) -> Value:
    """What is known of a sum, or a product, of single tokens: a state holds the newest of them."""
    if len(value.slots) > max(len(operand.value.active) for operand in operands):
        value = value.having(several_single=True)
    if len(value.slots) > 2:
        _note_state(call)
    return replace(value, slots=value.slots[:MOST_IN_A_STATE])


def _pair_tokens(
    call: Call, operands: Sequence[Operand], slots: Sequence[Sequence[Slot]]
) -> Sequence[Slot] | None:
    """The labels of the one operand whose tokens are pairs, where the other has features of two tokens at
    each place (an outer product, a sum of rows and columns): pairs stay pairs. Scores are no features."""
    if len(operands) != 2:
        return None
    for place, other in enumerate(reversed(operands)):
        own, theirs = slots[place], slots[1 - place]
        firm = len(own) == 1 and own[0].strength == STRONG and len(theirs) == 2
        crossed = firm and all(slot.token_axes for slot in theirs) and own[0].token_axes == _axes_of(theirs)
        wide = bool(other.ndim) and other.shape[-1] > 1 and other.ndim - 1 not in _axes_of(other.value.active)
        if crossed and wide and not is_score(call, other):
            return own
    return None


def _axes_of(slots: Sequence[Slot]) -> frozenset[int]:
    return frozenset().union(*(slot.token_axes for slot in slots))


def _one_place(call: Call, operands: Sequence[Sequence[Slot]]) -> bool:
    """Whether all tokens come of windows alone, or of windows over the same: branches that end in one place.

    They are the same place then, as they are on larger grids, and no tokens whose sum is both of them. Places
    of one grid are different tokens all the same: a state that goes along them.
    """
    slots = [slot for own in operands for slot in own if slot.strength > DORMANT]
    grids = [call.ledger.tokens.mixed_at(slot) for slot in slots]
    if len(set(grids)) < len(grids):
        return False
    if all(slot.reads and not call.ledger.beyond_stem(slot.reads) for slot in slots):
        return True
    if any(slot.token_axes for slot in slots):
        return False
    read = {call.ledger.window_over(slot) for slot in slots}
    return len(read) == 1 and None not in read


def _samples_meet(operands: Sequence[Sequence[Slot]]) -> bool:
    """Whether tokens of different samples meet place by place along one axis: it is no batch axis then.

    Pictures compared with texts meet too, but along axes of their own.
    """
    firm = [[compact(samples_of(s.labels)) for s in own if s.strength == STRONG] for own in operands]
    for place, own in enumerate(firm):
        for one, other in product(own, (samples for rest in firm[place + 1 :] for samples in rest)):
            alone = one.numel() == other.numel() == 1  # things in a list, which were taken for samples
            if alone or any(a > 1 and b > 1 for a, b in zip(one.shape, other.shape, strict=True)):
                one, other = broadcast(one, other)
                if bool(((one != other) & (one >= 0) & (other >= 0)).any()):
                    return True
    return False


def _note_state(call: Call) -> None:
    """Note the recurrence, once in a module."""
    known = [node for node, remark in call.ledger.remarks.unfollowed.items() if remark == STATE]
    if first_in_its_module(call.node, known):
        call.ledger.remarks.unfollowed[call.node] = STATE


def single_among(
    given: Sequence[Sequence[Slot]], kept: Sequence[Slot], products: int = 0, features: int | None = None
) -> list[Single]:
    """Single tokens of a sample that gave way to the tokens of an axis: a query that was added to keys."""
    if not any(slot.token_axes - {features} for slot in kept):
        return []
    firm = [slot for slots in given for slot in slots if slot.strength > DORMANT and slot.labels.numel()]
    single = [slot for slot in firm if not slot.token_axes and not any(slot is k for k in kept)]
    return [Single(int(codes_of(slot.labels).amax()), slot.strength, slot.reads, products) for slot in single]


def _coarser(call: Call, operands: Sequence[Operand], slots: Sequence[Slot]) -> Coarser | None:
    """Tokens that gave way to finer ones in the operands, or do so here."""
    ndim = call.result.ndim if isinstance(call.result, Tensor) else 0
    gave_way = (operand.value.gave_way.coarser for operand in operands)
    known = [coarser for coarser in gave_way if coarser is not None]
    if known:
        return known[0].moved(lambda slot: align(slot, ndim)) if ndim else None
    pairs = pair_among([operand.value.active for operand in operands], ndim)
    if pairs is not None:
        return pairs
    several = [o.value.active for o in operands if len(o.value.active) == 2]
    crossed = [[align(s, ndim) for s in own] for own in several if all(s.token_axes for s in own)]
    if len(crossed) == len(slots) == 1 and slots[0].token_axes == _axes_of(crossed[0]):
        return Coarser(crossed[0][1], main=crossed[0][0])
    if call.op.removesuffix("_") not in ADDING:
        return None
    return coarser_among([[align(s, ndim) for s in o.value.active] for o in operands], slots)


def coarser_among(given: Sequence[Sequence[Slot]], kept: Sequence[Slot]) -> Coarser | None:
    """Tokens of an input that lie along some axes of the one slot that is kept, and not along all."""
    if len(kept) != 1:
        return None
    axes = kept[0].token_axes
    coarser = [
        slot
        for slots in given
        for slot in slots
        if slot.strength == STRONG and slot.token_axes and slot.token_axes < axes
    ]
    return Coarser(coarser[0]) if coarser else None


def _newest_first(
    call: Call, operands: Sequence[Operand], slots: Sequence[Sequence[Slot]]
) -> list[Sequence[Slot]]:
    """As :func:`_older_first`; but of single tokens that are added up, the one that came in last leads.

    The state of a recurrence holds all tokens so far. What joins it was mixed later, or has gone through
    fewer sums of products, or its tokens come later.
    """
    if len(slots) != 2 or any(slot.token_axes for own in slots for slot in own):
        return _older_first(call, slots)
    one, other = (
        (
            max((call.ledger.tokens.mixed_at(slot) for slot in own), default=0),
            -operand.value.depth,
            max((int(codes_of(slot.labels).amax()) for slot in own if slot.labels.numel()), default=-1),
        )
        for own, operand in zip(slots, operands, strict=True)
    )
    return list(slots)[::-1] if one < other else list(slots)


def _older_first(call: Call, operands: Sequence[Sequence[Slot]]) -> list[Sequence[Slot]]:
    """Operands whose tokens were mixed from another's go last: old tokens outlive those made of them."""
    firm = [[slot for slot in slots if slot.strength == STRONG and slot.token_axes] for slots in operands]

    def made_of_another(place: int) -> bool:
        others = [slot for other, slots in enumerate(firm) if other != place for slot in slots]
        return any(call.ledger.mixed_from(slot, others) for slot in firm[place])

    return [operands[place] for place in sorted(range(len(operands)), key=made_of_another)]


def _joined(call: Call, operands: Sequence[Operand], slots: Sequence[Sequence[Slot]], kept: Slot) -> Slot:
    """The slot that stays, after it has taken in those of other tokens.

    What lies behind the others only came to the tokens that stay through them, so it is not read there twice.
    """
    own: set[int] = set()
    sites: set[int] = set()
    shape = tuple(call.result.shape)
    for operand, theirs in zip(operands, slots, strict=True):
        others = _others(call, theirs, kept) if operand.node not in (None, call.node) else []
        for slot in theirs:
            if not any(slot is other for other in others) or _meets(slot, kept):
                own |= slot.reads
        sites |= taken_in(call, operand, theirs, kept, shape)
    return replace(kept, reads=frozenset(own | sites)) if sites else kept


def taken_in(
    call: Call, operand: Operand, slots: Sequence[Slot], kept: Slot, shape: tuple[int, ...]
) -> frozenset[int]:
    """The steps by which tokens that stay take in those of other tokens that one operand has, which all are
    laid out as ``shape``."""
    met = replace(kept, reads=frozenset())
    others = _others(call, slots, kept) if operand.node not in (None, call.node) else []
    return frozenset(join(call, operand, met, other, _differ(other, met), shape) for other in others)


def _meets(one: Slot, other: Slot) -> bool:
    """Whether some element is of the same token in both."""
    labels = broadcast(codes_of(one.labels), codes_of(other.labels))
    return bool(((labels[0] == labels[1]) & (labels[0] >= 0)).any())


def _others(call: Call, slots: Sequence[Slot], kept: Slot) -> list[Slot]:
    """Slots of other tokens that come to those that stay: place by place, after a first attention or mixing
    beyond a stem's; or one token for many, if it has attended (a condition, a gate for all) or there are
    several of its kind."""
    found = []
    for slot in slots:
        # a learned query that meets all tokens counts too, once it has read some
        asks = DORMANT < slot.strength < kept.strength == STRONG and not slot.token_axes
        if not kept.token_axes or kept.strength == DORMANT or not (slot.strength == STRONG or asks):
            continue
        if kept.strength < STRONG:
            comes = not slot.token_axes  # learned tokens, and one of an input that is added to all of them
        elif slot.token_axes and slot.token_axes < kept.token_axes:
            comes = True  # a token for many, one of several: a node beside each of its edges
        elif slot.token_axes == kept.token_axes and _neighbours(call, slot, kept):
            comes = True  # what was picked at several places of an input, and is added up
        elif not slot.reads:
            continue
        elif slot.token_axes == kept.token_axes:
            comes = call.ledger.beyond_stem(slot.reads | kept.reads)
        else:
            comes = slot.token_axes < kept.token_axes and call.ledger.attended(slot.reads)
        if comes and bool(_differ(slot, kept).any()):
            found.append(slot)
    return found


def _neighbours(call: Call, one: Slot, other: Slot) -> bool:
    """Whether both are of tokens that were born together, and are added up: a product may be a score."""
    if call.op.removesuffix("_") not in SUMS:
        return False
    codes = [codes_of(slot.labels) for slot in (one, other)]
    spaces = [
        {call.ledger.tokens.space_of(int(end)) for end in known[known >= 0].aminmax()} for known in codes
    ]
    return len(spaces[0] | spaces[1]) == 1 and next(iter(spaces[0])).origin == "input"


def _differ(one: Slot, other: Slot) -> Tensor:
    """Where both name tokens of one sample, and not the same."""
    labels = broadcast(one.labels, other.labels)
    codes = [codes_of(each) for each in labels]
    samples = [samples_of(each) for each in labels]
    known = (codes[0] >= 0) & (codes[1] >= 0)
    same_sample = (samples[0] == samples[1]) | (samples[0] < 0) | (samples[1] < 0)
    return known & same_sample & (codes[0] != codes[1])


def _origin_of_ids(call: Call, operands: Sequence[Operand]) -> str | None:
    """Arithmetic on ids (hashes, offsets) gives other ids of the same tokens; comparisons give masks."""
    if (
        not isinstance(call.result, Tensor)
        or call.result.is_floating_point()
        or call.result.dtype == torch.bool
    ):
        return None
    ids = [o for o in operands if o.value.from_input and o.value.dormant is not None]
    same = len(ids) == 1 and ids[0].shape == call.result.shape
    return ids[0].value.origin if same and ids[0].tensor.dtype != torch.bool else None
