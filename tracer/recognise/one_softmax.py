"""One map that weighs several values: as a whole, or a part of its columns each.

A map may weigh the values of keys and those of relative places. Or scores of several sets of keys lie side by
side under one softmax (the row and the column of a place in a picture; keys nearby and global ones), and each
part of the columns weighs values of its own, in a product of its own. Either is one attention, whose gradient
is had where the map comes from for all of them.
"""

from __future__ import annotations

from dataclasses import replace
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx

from fxplain.labels.axes import Axes
from fxplain.labels.call import Call, aten, op_name
from fxplain.labels.flows import Site, WrittenOut
from fxplain.labels.labels import Slot, reads_of, same_tokens
from fxplain.labels.value import Value
from fxplain.ops.reading import letters_for
from fxplain.recognise.around import LAYING, before, run_on

CUTTING = (*LAYING, *aten("slice narrow split split_with_sizes chunk"), str(getitem))
AGAIN, WHOLE = "one map for several values", "one softmax over several sets of keys"
KEEPING = aten("clone contiguous detach dropout alias to _to_copy")


def weighing_once(call: Call, site: Site) -> tuple[Site, bool]:
    """The attention that a site is, and whether it is one by itself."""
    for other in reversed(call.ledger.sites[: site.index]):
        if not (isinstance(other.map, WrittenOut) and other.map.tapped and site.map.tapped):
            continue
        again = _weighed_again(call, site, other)
        one = again or _of_one_softmax(call, site, other)
        if one is not None:
            call.matched(WHOLE if again is None else AGAIN)
            call.ledger.sites.pop()
            call.ledger.sites[other.index] = one
            return one, False
    return site, True


def _weighed_again(call: Call, site: Site, other: Site) -> Site | None:
    """The one of two attentions whose map the other's is too, laid out otherwise."""
    if not _weigh_alike(call, site, other):
        return None
    nodes = site.map.operands[0], other.map.operands[0]
    if nodes[1] in before(nodes[0], LAYING):
        return other
    return replace(site, index=other.index) if nodes[0] in before(nodes[1], LAYING) else None


def _weigh_alike(call: Call, one: Site, other: Site) -> bool:
    """Whether two softmaxed maps are of the same tokens, as they were at the same time."""
    pairs = (one.rows, other.rows), (one.cols, other.cols)
    if not all(same_tokens(*pair) for pair in pairs):
        return False
    learned = not all(call.values[site.map.operands[1]].from_input for site in (one, other))
    return learned or all(a.reads == b.reads for a, b in pairs)


def _of_one_softmax(call: Call, site: Site, other: Site) -> Site | None:
    """The attention by a whole map, of which two sites have columns of their own."""
    if not site.softmaxes or site.softmaxes != other.softmaxes:
        return None
    if not same_tokens(site.rows, other.rows):
        call.unmatched(WHOLE, f"its queries are not those of {other.node.name}")
        return None
    if site.rows.reads != other.rows.reads or other.index in site.cols.reads:
        call.unmatched(WHOLE, f"its queries or keys have read what {other.node.name} gave")
        return None
    ours, theirs = (before(each.map.operands[0], CUTTING) for each in (site, other))
    whole = next((node for node in ours if node in theirs), None)
    value = call.values.get(whole) if whole is not None else None
    if whole is None or not isinstance(value, Value) or len(value.active) != 2:
        call.unmatched(WHOLE, f"it has no map of queries by keys in common with {other.node.name}")
        return None
    shape = call.ledger.shapes[whole.name]
    held = [_held(chain[: chain.index(whole)], shape) for chain in (ours, theirs)]
    axis = _apart(held[0], held[1], shape)
    cols = [slot for slot in value.active if axis is not None and slot.varies(axis)]
    rows = [slot for slot in value.active if axis is not None and not slot.varies(axis)]
    if axis is None or len(cols) != 1:
        call.unmatched(WHOLE, f"it shares columns with {other.node.name}, or has a single one")
        return None
    return replace(
        other,
        map=WrittenOut(whole, other.map.operands[1], _axes(rows[0], shape, axis)),
        shape=shape,
        rows=replace(rows[0], reads=other.rows.reads),
        cols=replace(cols[0], reads=reads_of([site.cols, other.cols])),
    )


def _held(chain: list[fx.Node], shape: tuple[int, ...]) -> Tensor:
    """The numbers of a map's elements that are left after it was laid out, and cut: ``chain``, last first."""
    elements: Any = torch.arange(torch.Size(shape).numel()).view(shape)
    for node in reversed(chain):
        if op_name(node) not in KEEPING:
            elements = run_on(node, elements)
    found: Tensor = torch.unique(elements)
    return found


def _apart(one: Tensor, other: Tensor, shape: tuple[int, ...]) -> int | None:
    """The one axis along which two sets of a map's elements lie at places that have none in common.

    None where a set has a single place: keys that are taken one by one are added up with their rows.
    """
    pairs = list(zip(torch.unravel_index(one, shape), torch.unravel_index(other, shape), strict=True))
    sets = [(torch.unique(a), torch.unique(b)) for a, b in pairs]
    differ = [axis for axis, (a, b) in enumerate(sets) if not torch.equal(a, b)]
    if len(differ) != 1 or bool(torch.isin(*sets[differ[0]]).any()):
        return None
    return differ[0] if min(map(len, sets[differ[0]])) > 1 else None


def _axes(rows: Slot, shape: tuple[int, ...], column: int) -> Axes:
    """Those of the product of a whole map and values, as if all values had lain side by side."""
    letters = letters_for(len(shape) + 1)
    feature, letters = letters[-1], letters[:-1]
    values = "".join(c for axis, c in enumerate(letters) if axis not in rows.token_axes)
    output = "".join(c for axis, c in enumerate(letters) if axis != column)
    return Axes(letters, values + feature, output + feature, letters)
