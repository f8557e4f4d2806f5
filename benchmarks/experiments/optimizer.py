"""What all trainings share: Muon for the matrices, which needs half the steps, AdamW for the rest."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Optimizer:
    """One step at a time: gradients, clipped; a short rise of the rate, level, then down.

    ``muon=0`` leaves the matrices to AdamW as well.
    """

    def __init__(
        self, model: nn.Module, steps: int, *, muon: float = 0.02, adam: float = 1.5e-3, clip: float = 1.0
    ) -> None:
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        own = [p for p in model.parameters() if p.requires_grad]
        matrices = [p for p in own if muon and p.ndim == 2 and min(p.shape) >= 16 and id(p) not in tables]
        chosen = {id(p) for p in matrices}
        rest = [p for p in own if id(p) not in chosen]
        self._model, self._clip = model, clip
        self._both: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=adam, betas=(0.9, 0.98), weight_decay=0.01)
        ]
        if matrices:
            self._both.append(torch.optim.Muon(matrices, lr=muon, weight_decay=0.005, momentum=0.95))

        def rate(step: int) -> float:
            return min(1.0, (step + 1) / 100, max(0.01, (steps - step) / (0.7 * steps)))

        self._rates = [torch.optim.lr_scheduler.LambdaLR(one, rate) for one in self._both]

    def step(self, loss: Tensor) -> None:
        """One step down this loss."""
        for optimizer in self._both:
            optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._clip)
        for optimizer, schedule in zip(self._both, self._rates, strict=True):
            optimizer.step()
            schedule.step()
