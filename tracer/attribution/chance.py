"""The floor for every comparison: relevance drawn at random."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from fxplain.attribution.prediction import Prediction
from fxplain.attribution.scheduled import Explained


def at_random(prediction: Prediction) -> Explained:
    """A number in [0, 1) for every token, the same each time for the same sample, alone or in a batch."""
    labelled = prediction.labelled
    guess = labelled.findings.guess
    inputs = {p.path: prediction.bound[p.node] for p in labelled.captured.placeholders if p.kind == "input"}
    like = prediction.resolved.scores
    rows = []
    for sample in range(prediction.batch):
        seed = 0
        for path, tensor in inputs.items():
            axis = guess.axis_of(path, tensor)
            own = tensor if axis is None else tensor.select(axis, sample)
            seed = zlib.crc32(_bytes(own), seed)
        generator = torch.Generator().manual_seed(seed)
        rows.append(torch.rand(labelled.classified.tokens, generator=generator))
    return Explained(torch.stack(rows).to(like.device))


def _bytes(tensor: Tensor) -> bytes:
    wide = tensor.detach().cpu()
    wide = wide.double() if wide.is_floating_point() else wide.long()
    return wide.contiguous().numpy().tobytes()
