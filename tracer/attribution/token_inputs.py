"""Where tokens are born: the tensors that a model makes of its inputs, and the score as their function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxplain.attention.labelled import Labelled
from fxplain.attribution.prediction import Prediction
from fxplain.errors import MethodError
from fxplain.labels.labels import codes_of, samples_of
from fxplain.run.replay import execute
from fxplain.run.target import rescored


@dataclass(frozen=True, eq=False)
class Birth:
    """A tensor that holds tokens which nothing before it in the graph holds."""

    node: fx.Node
    tokens: Tensor
    """Token of each element, -1 where the token is an older one; broadcasts to the tensor."""
    samples: Tensor
    """Sample of each element, -1 where it is not known; broadcasts to the tensor."""


def births(labelled: Labelled, bound: Mapping[str, Tensor]) -> tuple[Birth, ...]:
    """All births of tokens of inputs and parameters, in order of execution.

    An embedding of ids, a patch embedding, a class token where it is put beside the patches. Where rows of a
    floating input are projected as they are, the input itself is taken: it may go on beside its projections.
    """
    classified, findings = labelled.classified, labelled.findings
    own = torch.zeros(classified.tokens + 1, dtype=torch.bool)
    for space in classified.spaces:
        own[space.start : space.start + space.size] = space.origin != "mixing"
    found = []
    rows = _Rows(labelled, {name for name, tensor in bound.items() if tensor.is_floating_point()})
    for node in labelled.captured.graph.graph.nodes:
        slots = findings.value(node).active
        if not slots or node.name not in findings.ledger.shapes:
            continue
        older = [
            classified.token_ids(slot.labels).reshape(-1)
            for used in node.all_input_nodes
            for part in findings.parts(used)
            for slot in part.active
        ]
        tokens = classified.token_ids(slots[0].labels)
        fresh = own[tokens]  # the entry after the last, which -1 takes, is False
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


@dataclass(frozen=True, eq=False)
class TokenInputs:
    """The score as a function of the tensors at which tokens are born. Made by :func:`token_inputs`."""

    prediction: Prediction
    births: tuple[Birth, ...]
    values: tuple[Tensor, ...]
    """What the model makes of its inputs, one tensor for each of ``births``."""
    upstream: dict[fx.Node, Any]
    """Values that no token has reached."""
    together: bool
    """Whether it is known which sample every element belongs to, and no score reads another's."""

    def scores(self, *given: Tensor) -> Tensor:
        """[batch]: the scores with these tensors in the place of :attr:`values`."""
        prediction = self.prediction
        at = {birth.node: (birth, tensor) for birth, tensor in zip(self.births, given, strict=True)}

        def change(node: fx.Node, value: Any) -> Any:
            if node not in at:
                return value
            birth, tensor = at[node]
            return torch.where((birth.tokens >= 0).to(value.device), tensor, value)

        outputs = execute(
            prediction.labelled.captured, prediction.bound, change, prediction.surrogates, self.upstream
        )
        scores = rescored(
            prediction.resolved, outputs, prediction.labelled.findings, prediction.labelled.captured
        )
        # a birth that this score does not depend on has the gradient zero, not none
        nothing = torch.stack([(tensor * 0).sum().to(scores.dtype) for tensor in given]).sum()
        return scores + nothing

    def each(self, attribute: Callable[[Callable[..., Tensor]], Sequence[Tensor]]) -> Tensor:
        """[batch, token]: attributions of each sample's score, added up over the elements of every token.

        ``attribute`` gets the score as a function of tensors like :attr:`values` (one score, or one for every
        sample) and answers with one attribution for each of them.
        """
        if self.together:
            return self._by_token(attribute(self.scores), apart=True)
        found = []
        for sample in range(self.prediction.batch):

            def score(*given: Tensor, sample: int = sample) -> Tensor:
                return self.scores(*given)[sample : sample + 1]

            found.append(self._by_token(attribute(score), apart=False))
        return torch.cat(found)

    def _by_token(self, attributions: Sequence[Tensor], apart: bool) -> Tensor:
        """Elements summed by their tokens, and by their samples if these are to be kept ``apart``."""
        count = self.prediction.labelled.classified.tokens
        batch = self.prediction.batch if apart else 1
        dtype = torch.promote_types(attributions[0].dtype, torch.float32)
        total = torch.zeros(batch * count + 1, dtype=dtype, device=attributions[0].device)
        for birth, attribution in zip(self.births, attributions, strict=True):
            samples = birth.samples.clamp_min(0) if apart else torch.zeros_like(birth.samples)
            place = torch.where(birth.tokens >= 0, samples * count + birth.tokens, batch * count)
            place = place.to(total.device).expand(attribution.shape).reshape(-1)
            total.index_add_(0, place, attribution.detach().to(dtype).reshape(-1))
        return total[:-1].view(batch, count)


def token_inputs(prediction: Prediction) -> TokenInputs:
    """The tensors at which tokens are born, on the inputs of a prediction.

    Raises:
        MethodError: no token of an input has such a tensor.
    """
    labelled = prediction.labelled
    born = births(labelled, prediction.bound)
    if not born:
        raise MethodError(
            "no tensor is known at which the tokens are born",
            expected="an embedding, convolution or linear map of an input",
            found=", ".join(space.name for space in labelled.classified.spaces),
        )
    downstream: set[fx.Node] = set()
    for node in labelled.captured.graph.graph.nodes:
        if any(birth.node is node for birth in born) or not downstream.isdisjoint(node.all_input_nodes):
            downstream.add(node)
    wanted = {used for node in downstream for used in node.all_input_nodes} - downstream
    at = {birth.node for birth in born}
    upstream: dict[fx.Node, Any] = {}
    values: dict[fx.Node, Tensor] = {}

    def change(node: fx.Node, value: Any) -> Any:
        if node in wanted:
            upstream[node] = value
        if node in at:
            values[node] = value
        return value

    with torch.no_grad():
        execute(labelled.captured, prediction.bound, change)
    known = all(bool((birth.samples.expand_as(birth.tokens) >= 0)[birth.tokens >= 0].all()) for birth in born)
    together = len(prediction.passes) < prediction.batch and known
    return TokenInputs(prediction, born, tuple(values[birth.node] for birth in born), upstream, together)
