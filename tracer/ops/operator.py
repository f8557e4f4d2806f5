"""Linear operators over tokens that have no matrix in the graph: transforms, running sums, solved systems.

Each place of the result stands for the token that lay there, and takes in others. How much is had from the
operator itself, by its gradient from one place at a time: ⟨∂y/∂oᵢ, contribution of token j to oᵢ⟩, which is
what ∇A ⊙ A is for an attention. Of what is not linear that is the first order.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

from fxplain.labels import STRONG, Slot, codes_of
from fxplain.ops.sampling import between
from fxplain.ops.table import Call

MOST_TOKENS = 512
"""A backward pass for each token is more than one would wait for beyond this."""


def follow_operator(call: Call, source: fx.Node, given: Slot, made: Slot, alone: bool = True) -> Slot | None:
    """Write down that the tokens of ``made``, on the result, take in those of ``given``, on the source.

    Returns ``made`` with the step behind it. None where it is not followed: too many tokens, tokens of
    parameters, or another step on the way that would be counted twice. It is this operation ``alone``, or
    all that lies between the source and its result.
    """
    ledger, shape = call.ledger, call.ledger.shapes.get(source.name)
    codes = torch.unique(codes_of(made.labels))
    path = (call.node,) if alone else between(call.node, {source})
    sites = {site.node for site in ledger.sites}
    if shape is None or given.strength < STRONG or len(codes) > MOST_TOKENS or sites & set(path):
        return None
    rows = made.labels.reshape(*made.labels.shape, *[1] * given.labels.ndim)
    cols = given.labels.reshape(*[1] * made.labels.ndim, *given.labels.shape)
    on_map = Slot(rows, made.strength, made.reads), Slot(cols, given.strength, given.reads)
    if given.labels.ndim != len(shape):
        return None
    site = ledger.add_site(
        node=call.node,
        role="mixing",
        form="operator",
        operands=(source,),
        shape=(*made.labels.shape, *given.labels.shape),
        rows=on_map[0],
        cols=on_map[1],
        adds=True,
        path=path,
    )
    return replace(made, reads=made.reads | given.reads | {site.index})
