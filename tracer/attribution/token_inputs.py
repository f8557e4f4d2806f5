"""The score as a function of the tensors at which tokens are born."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxplain.attention.births import Birth, births
from fxplain.attribution.prediction import Prediction
from fxplain.errors import MethodError
from fxplain.run.replay import execute
from fxplain.run.target import rescored


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
