"""A bridge to Quantus: its metrics ask any method of any model through one function.

Hedström et al., *Quantus: An Explainable AI Toolkit for Responsible Evaluation of Neural Network
Explanations*, JMLR 2023. Its metrics take an ``explain_func(model, inputs, targets, **kwargs)``; nothing of
the package is needed here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fxplain.attention.records import TokenSpace
from fxplain.errors import InputError
from fxplain.evaluate.localise import to_pixels
from fxplain.result import Result
from fxplain.traced import Traced, trace

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(eq=False)
class ExplainFunc:
    """What a metric of Quantus takes as its ``explain_func``.

    A model is traced when it is first seen, and again for a copy of it; shuffled weights are seen without.

    Args:
        method: one of :func:`fxplain.methods`; ``explain_func_kwargs={"method": ...}`` goes before it.
        space: the token space; None: that of the model's input.
        output: name of the output that is explained; see :meth:`Traced.explain`.

    Example:
        >>> import numpy
        >>> model = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> texts = numpy.random.default_rng(0).normal(size=(3, 5, 8)).astype("float32")
        >>> targets = [(0, 1), (0, 2), (4, 1)]
        >>> ExplainFunc("rollout")(model, texts, targets).shape
        (3, 5, 1)
    """

    method: str = "relevancy"
    space: str | None = None
    output: str | None = None
    _traced: Traced | None = field(default=None, init=False, repr=False)

    def __call__(
        self, model: nn.Module, inputs: Any, targets: Any, method: str | None = None, **unused: Any
    ) -> NDArray[Any]:
        """Relevance, one number per pixel of a picture, else per token.

        Args:
            model: as Quantus hands it over, called with the inputs alone.
            inputs: [batch, channels, height, width], or tokens: [batch, tokens] or [batch, tokens, features].
            targets: [batch]: what is explained of each sample, as for :meth:`Traced.explain`; None: the arg
                max.
            method: instead of this object's own.
            unused: Quantus hands ``device`` and others of its own over.

        Returns:
            Float32, of as many axes as the inputs: [batch, 1, height, width], [batch, tokens] or
            [batch, tokens, 1].

        Raises:
            InputError: the tokens are not those of an input of these shapes.
            FxplainError: as :meth:`Traced.explain`.
        """
        given = torch.as_tensor(inputs)
        device = next((p.device for p in model.parameters()), given.device)
        given = given.to(device)
        if self._traced is None or self._traced.model is not model:
            self._traced = trace(model, given)
        wanted = targets if targets is None or isinstance(targets, Tensor) else [_plain(t) for t in targets]
        result = self._traced.explain(given, wanted, method or self.method, self.output)
        found = self._like(result, given).detach().float().cpu()
        values: NDArray[Any] = found.numpy()
        return values

    def _like(self, result: Result, inputs: Tensor) -> Tensor:
        space = self._space(result)
        relevance = result.relevance[space.name]
        if inputs.ndim == 4 and len(space.grid) == 2:
            height, width = inputs.shape[-2:]
            return to_pixels(result.grid(space.name), (height, width))[:, None]
        if inputs.ndim in (2, 3) and inputs.shape[1] == space.size:
            return relevance.reshape(*relevance.shape, *[1] * (inputs.ndim - 2))
        raise InputError(
            "relevance of these tokens is no map of the inputs",
            expected=f"a picture, or {space.size} tokens on the second axis",
            found=f"inputs of shape {list(inputs.shape)}, tokens {space.name!r} of shape {list(space.grid)}",
            hint="name another token space: ExplainFunc(space=...)",
        )

    def _space(self, result: Result) -> TokenSpace:
        if self.space is not None:
            result.relevance[self.space]  # a name that is unknown is told here, with those that are
            return next(one for one in result.spaces if one.name == self.space)
        of_inputs = [one for one in result.spaces if one.origin == "input"]
        return max(of_inputs or result.spaces, key=lambda one: one.size)


def _plain(target: Any) -> Any:
    """A number of numpy's as Python's own."""
    return target.item() if hasattr(target, "item") else target
