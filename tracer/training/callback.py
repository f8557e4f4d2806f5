"""A callback of transformers' Trainer that explains a few inputs again and again while the model learns."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from fxplain.display import Look, Picture
from fxplain.errors import FxplainError, InputError
from fxplain.explainer.explainer import Explainer
from fxplain.explainer.explanation import Explanation
from fxplain.render.picture import to_png
from fxplain.training.loggers import Logger


class ExplainCallback(TrainerCallback):
    """Explains some inputs every so many steps, and hands the pictures to loggers.

    The model is captured anew each time, as its weights have changed; that takes some times as long as a
    step. It is left as it was: mode, gradients and random numbers. An input that cannot be explained is told
    once, and the training goes on.

    Args:
        processor: as for :class:`fxplain.Explainer`; None: inputs are tensors.
        inputs: name -> what is explained, as a call of the explainer takes it.
        loggers: where pictures go.
        every: steps from one explanation to the next; the first and the last step are explained as well.
        targets: name -> target; what is left out is the usual one of the task.
        look: how relevance is laid over pictures.
        asking: ``method=``, ``images=``, ... as for a call of the explainer, for all inputs.

    Raises:
        InputError: there is nothing to explain, or ``every`` is not positive.

    Example:
        >>> from fxplain.training import ExplainCallback, Folder
        >>> callback = ExplainCallback(None, {"a": torch.ones(1, 4, 8)}, [Folder("seen")], every=100)
    """

    def __init__(
        self,
        processor: Any,
        inputs: Mapping[str, Any],
        loggers: Sequence[Logger],
        *,
        every: int = 500,
        targets: Mapping[str, Any] | None = None,
        look: Look | None = None,
        **asking: Any,
    ) -> None:
        if not inputs or every < 1:
            raise InputError(
                "there is nothing to explain while training",
                expected="at least one input, and every= of 1 or more",
                found=f"{len(inputs)} inputs, every={every}",
            )
        self.processor, self.inputs, self.loggers, self.every = processor, dict(inputs), list(loggers), every
        self.targets, self.look, self.asking = dict(targets or {}), look, asking
        self.told: set[str] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Explain before the first step."""
        self.explain(given["model"], state)

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Explain where it is time."""
        if state.global_step % self.every == 0:
            self.explain(given["model"], state)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Explain after the last step."""
        if state.global_step % self.every:
            self.explain(given["model"], state)

    def explain(self, model: Any, state: Any) -> None:
        """Explain all inputs with the weights of now; in one process alone, where there are several."""
        if not getattr(state, "is_world_process_zero", True):
            return
        own = getattr(model, "module", model)  # inside of what spreads it over devices
        training = own.training
        own.eval()
        try:
            for name, given in self.inputs.items():
                self._one(own, name, given, int(state.global_step))
        finally:
            own.train(training)

    def _one(self, model: Any, name: str, given: Any, step: int) -> None:
        try:
            with torch.random.fork_rng():
                explainer = Explainer(model, self.processor)
                found = explainer(given, target=self.targets.get(name), **self.asking)
        except FxplainError as error:
            if name not in self.told:
                logging.getLogger("fxplain").warning("%s is not explained: %s", name, error)
            self.told.add(name)
            return
        for logger in self.loggers:
            logger.log(name, drawn(found, self.look), found.question, step)


def drawn(explanation: Explanation, look: Look | None = None) -> Picture:
    """The figure of an explanation as pixels, uint8 [H, W, 3]."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(to_png(explanation.plot(look)))).convert("RGB"))
