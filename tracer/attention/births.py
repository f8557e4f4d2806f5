"""Where tokens are born: the tensors that a model makes of its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from fxplain.attention.labelled import Labelled
from fxplain.labels.labels import codes_of, samples_of


@dataclass(frozen=True, eq=False)
class Birth:
    """A tensor that holds tokens which nothing before it in the graph holds."""

    node: fx.Node
    tokens: Tensor
    """Token of each element, -1 where the token is an older one; broadcasts to the tensor."""
    samples: Tensor
    """Sample of each element, -1 where it is not known; broadcasts to the tensor."""


def births(labelled: Labelled, bound: Mapping[str, Tensor]) -> tuple[Birth, ...]:
    """All births of living tokens of inputs and parameters, in order of execution, as users number tokens.

    An embedding of ids, a patch embedding, a class token where it is put beside the patches. Where rows of a
    floating input are projected as they are, the input itself is taken: it may go on beside its projections.
    """
    classified = labelled.classified
    own = torch.zeros(classified.tokens + 1, dtype=torch.bool)
    for space in classified.spaces:
        own[space.start : space.start + space.size] = space.origin != "mixing"
    found = born(labelled, bound, own[classified.renumber])
    return tuple(replace(birth, tokens=_renumbered(birth.tokens, classified.renumber)) for birth in found)


def living(labelled: Labelled) -> Tensor:
    """[token]: those of inputs that users see, as the labelling run numbers them."""
    new = labelled.classified.renumber
    found = torch.zeros(len(new), dtype=torch.bool)
    for space in labelled.classified.spaces:
        if space.origin == "input":
            found |= (new >= space.start) & (new < space.start + space.size)
    return found


def _renumbered(codes: Tensor, renumber: Tensor) -> Tensor:
    return torch.where(codes >= 0, renumber[codes.clamp_min(0)], -1)


def born(labelled: Labelled, bound: Mapping[str, Tensor], wanted: Tensor) -> tuple[Birth, ...]:
    """The births of some tokens, as the labelling run numbers them.

    Args:
        labelled, bound: the graph with its labels, and a tensor for each placeholder.
        wanted: [token] whether it is one of them.
    """
    findings = labelled.findings
    own = torch.cat([wanted, wanted.new_zeros(1)])  # the entry after the last, which -1 takes
    found = []
    rows = _Rows(labelled, {name for name, tensor in bound.items() if tensor.is_floating_point()})
    for node in labelled.captured.graph.graph.nodes:
        slots = findings.value(node).active
        if not slots or node.name not in findings.ledger.shapes:
            continue
        before = [s for used in node.all_input_nodes for part in findings.parts(used) for s in part.active]
        if any(torch.equal(slot.labels, slots[0].labels) for slot in before):
            continue
        older = [codes_of(slot.labels).reshape(-1) for slot in before]
        tokens = codes_of(slots[0].labels)
        fresh = own[tokens]
        if older:
            fresh &= ~torch.isin(tokens, torch.cat(older))
        tokens = torch.where(fresh, tokens, -1)
        if bool(fresh.any()) and not (not older and rows.take(node, tokens)):
            found.append(Birth(node, tokens, samples_of(slots[0].labels)))
    return (*rows.births(), *found)


class _Rows:
    """Inputs whose rows are tokens: found from the projections at which they are born."""

    def __init__(self, labelled: Labelled, floating: Set[str]) -> None:
        captured, findings = labelled.captured, labelled.findings
        self.findings = findings
        inputs = {p.node for p in captured.placeholders if p.kind == "input"}
        nodes = [node for node in captured.graph.graph.nodes if node.name in inputs]
        self.codes = {
            node: codes_of(dormant.labels)
            for node in nodes
            if (dormant := findings.value(node).dormant) is not None
        }
        last = max((int(codes.max()) for codes in self.codes.values() if codes.numel()), default=-1)
        self.token_of = torch.full((last + 2,), -1)
        self.floating = torch.zeros(last + 2, dtype=torch.bool)
        for node, codes in self.codes.items():
            self.floating[codes] = node.name in floating

    def take(self, node: fx.Node, tokens: Tensor) -> bool:
        """Whether a projection's tokens are rows of an input, element by element; if so, noted."""
        for used in node.all_input_nodes:
            dormant = self.findings.value(used).dormant
            if dormant is None or not self.findings.value(used).from_input:
                continue
            codes = codes_of(dormant.labels)
            known = (codes >= 0) & (codes < len(self.token_of) - 1)
            alike = codes.ndim == tokens.ndim and tokens.shape[-1] == 1 and bool(known.all())
            if alike and codes.shape[:-1] == tokens.shape[:-1] and bool(self.floating[codes].any()):
                self.token_of[codes] = tokens.expand(codes.shape)
                return True
        return False

    def births(self) -> list[Birth]:
        """One for each input that has such rows."""
        found = []
        for node, codes in self.codes.items():
            tokens = self.token_of[codes]
            dormant = self.findings.value(node).dormant
            if dormant is not None and bool(((tokens >= 0) & self.floating[codes]).any()):
                found.append(Birth(node, tokens, samples_of(dormant.labels)))
        return found
