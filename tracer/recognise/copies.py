"""Copies of one token that stand at several places of one sequence, and attend as several.

A learned token may be put in at many places (mask tokens, one at the end of each line of a picture), and a
token of an input be repeated (once for each frame of what is spoken). Its label is the same at all of them,
which is right where the copies stand in windows of their own (a class token in every frame). Where they stand
side by side among the keys of one query, they are several tokens: the model has a row and a column for each.
That is seen only at the attention, so the graph is labelled once more then, with new tokens where the copies
were made.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from fxplain.labels.call import aten, op_name
from fxplain.labels.flows import Copied, Site
from fxplain.labels.labels import DORMANT, Slot, codes_of, compact, completed, encode, samples_of
from fxplain.labels.notebook import Ledger
from fxplain.labels.value import Value

if TYPE_CHECKING:
    from fxplain.labels.findings import Findings

COPYING = frozenset(
    aten(
        "cat stack hstack vstack index _unsafe_index index_select gather take_along_dim repeat"
        " repeat_interleave tile index_put masked_scatter scatter index_copy slice_scatter select_scatter"
        " copy copy_ where grid_sampler grid_sampler_2d grid_sampler_3d"
    )
)
"""Operations that put copies of a token at several places of a sequence."""


def where_copied(findings: Findings) -> frozenset[str]:
    """The nodes at which tokens were copied that stand side by side in an attention later on."""
    tokens = {
        code for site in findings.ledger.sites if site.role == "attention" for code in _side_by_side(site)
    }
    if not tokens:
        return frozenset()
    wanted = torch.tensor(sorted(tokens))
    found = set()
    for node, value in findings.values.items():
        if op_name(node).removesuffix("_") not in COPYING or not isinstance(value, Value):
            continue
        known = torch.cat([torch.empty(0, dtype=torch.int64), *_copied(node.all_input_nodes, findings)])
        own = torch.cat([torch.empty(0, dtype=torch.int64), *_copied([node], findings)])
        if bool((torch.isin(own, wanted) & ~torch.isin(own, known)).any()):
            found.add(node.name)
    return frozenset(found)


def _copied(nodes: Iterable[fx.Node], findings: Findings) -> Iterable[Tensor]:
    """The tokens that stand at several places of a sample in each of these nodes."""
    for node in nodes:
        value = findings.values.get(node)
        for slot in value.active if isinstance(value, Value) else ():
            whole = completed(samples_of(slot.labels)) >= 0
            counts = _ranks(slot)[1]
            # a token of no sample stands once for each
            yield codes_of(slot.labels[counts > torch.where(whole, 1, findings.batch)])


def _ranks(slot: Slot) -> tuple[Tensor, Tensor]:
    """For each element, how many equal labels come before it, and how many there are; 0 where none is."""
    # a learned token has no sample, but its copies stand beside tokens that have
    labels = encode(completed(samples_of(slot.labels)), codes_of(slot.labels))
    flat = labels.reshape(-1)
    order = torch.argsort(flat, stable=True)
    ordered = flat[order].contiguous()
    first, stop = (torch.searchsorted(ordered, ordered, right=right) for right in (False, True))
    ranks, counts = torch.empty_like(flat), torch.empty_like(flat)
    ranks[order], counts[order] = torch.arange(len(flat)) - first, stop - first
    return ranks.view(labels.shape), torch.where(codes_of(flat) >= 0, counts, 0).view(labels.shape)


def _side_by_side(site: Site) -> set[int]:
    """Tokens that stand several times among the keys of one query, and several times among queries."""
    columns = [axis for axis in site.axes.columns if axis < site.cols.labels.ndim]
    rows = [axis for axis in sorted(site.rows.token_axes) if axis not in columns]
    if not rows or not site.cols.token_axes & set(columns):
        return set()
    twice = [_twice(site.cols.labels, columns), *(_twice(site.rows.labels, [axis]) for axis in rows)]
    return twice[0] & set().union(*twice[1:])


def _twice(labels: Tensor, axes: list[int]) -> set[int]:
    """Tokens that stand at several places along some axes, at one place of all others."""
    others = [axis for axis in range(labels.ndim) if axis not in axes]
    lines = labels.permute(*others, *axes).reshape(
        -1, max(torch.Size(labels.shape[a] for a in axes).numel(), 1)
    )
    lines = lines.sort(-1).values
    again = lines[:, 1:][(lines[:, 1:] == lines[:, :-1]) & (lines[:, 1:] > 0)]
    return set(codes_of(torch.unique(again)).tolist())


def apart(node: fx.Node, value: Value, shape: tuple[int, ...], ledger: Ledger) -> Value:
    """The value with a token for each copy: of a learned one another learned one, else one made from it."""
    return replace(value, slots=tuple(_apart(node, slot, shape, ledger) for slot in value.slots))


def _apart(node: fx.Node, slot: Slot, shape: tuple[int, ...], ledger: Ledger) -> Slot:
    ranks, counts = _ranks(slot)
    if slot.strength == DORMANT or not bool((counts > 1).any()):
        return slot
    return renamed(node, slot, ranks, counts > 1, shape, ledger)


def renamed(
    node: fx.Node, slot: Slot, ranks: Tensor, copies: Tensor, shape: tuple[int, ...], ledger: Ledger
) -> Slot:
    """The slot with a token for each copy, by its rank; a node that has a past is where they are made."""
    new = torch.where(copies, _numbered(node, codes_of(slot.labels), ranks, copies, ledger), -1)
    renewed = encode(samples_of(slot.labels), new)
    whole = replace(slot, labels=compact(torch.where(copies, renewed, slot.labels)))
    has_past = copies & torch.isin(codes_of(slot.labels), _with_a_past(slot, ledger))
    if not bool(has_past.any()):
        return whole
    site = ledger.add_site(
        node=node,
        map=Copied(),
        shape=shape,
        rows=replace(slot, labels=torch.where(has_past, renewed, 0)),
        cols=replace(slot, labels=torch.where(has_past, slot.labels, 0)),
        new_rows=True,
    )
    return replace(whole, reads=whole.reads | {site.index})


def _with_a_past(slot: Slot, ledger: Ledger) -> Tensor:
    """Tokens of the slot that are an input's, or that took in others."""
    codes = torch.unique(codes_of(slot.labels))
    past = torch.zeros(len(codes), dtype=torch.bool)
    for space in ledger.tokens.spaces:
        if space.origin != "parameter":
            past |= (codes >= space.start) & (codes < space.start + space.size)
    for read in slot.reads:
        past |= torch.isin(codes, codes_of(ledger.sites[read].rows.labels))
    tokens: Tensor = codes[past & (codes >= 0)]
    return tokens


def _numbered(node: fx.Node, codes: Tensor, ranks: Tensor, copies: Tensor, ledger: Ledger) -> Tensor:
    """A token for each copy: the same for the same copy of a token, wherever it is put in."""
    pairs = torch.stack([codes[copies], ranks[copies]], -1)
    distinct, place = torch.unique(pairs, dim=0, return_inverse=True)
    keys = [(int(code), int(rank)) for code, rank in distinct]
    for source in dict.fromkeys(ledger.tokens.space_of(code) for code, _ in keys):
        fresh = [k for k in keys if k not in ledger.tokens.copies and ledger.tokens.space_of(k[0]) is source]
        if fresh:
            origin = "parameter" if source.origin == "parameter" else "mixing"
            start = ledger.tokens.new_tokens(
                len(fresh), grid=(len(fresh),), origin=origin, source=source.source, node=node
            )
            ledger.tokens.copies.update({key: start + number for number, key in enumerate(fresh)})
    result = codes.clone()
    result[copies] = torch.tensor([ledger.tokens.copies[key] for key in keys])[place]
    return result
