"""Which part of the score's gradient times input is at places of inputs that no relevance tells of."""

from __future__ import annotations

import torch
from torch import Tensor

from fxplain.attribution.prediction import Prediction
from fxplain.laws.reach import reached
from fxplain.run.entries import Entry
from fxplain.run.replay import entry_name


def unexplained(prediction: Prediction) -> dict[str, float]:
    """Input -> which part of the sum of ``|x ds/dx|`` over all inputs is at places of it that have no token,
    or one that steps do not lead to.

    Empty where gradients were not taken from the inputs on, as they are only where an input has no tokens of
    its own, or something is not followed.
    """
    entries = prediction.run.entries
    if not entries or "gradients" not in vars(prediction):
        return {}
    within = reached(prediction.labelled, prediction.resolved)
    total, missed = 0.0, dict[str, float]()
    for place, entry in enumerate(entries):
        weight = _weight(prediction, place, entry)
        total += float(weight.sum())
        for source, part in _missed(prediction, entry, weight, within):
            missed[source] = missed.get(source, 0.0) + part
    return {source: part / total for source, part in missed.items()} if total else {}


def _weight(prediction: Prediction, place: int, entry: Entry) -> Tensor:
    """[*shape]: gradient times value at an entry, of all passes."""
    found = [of_pass.get(entry_name(place)) for of_pass in prediction.gradients]
    value = entry.tensor.detach()
    parts = [
        (gradient * value).abs().double().nan_to_num(0, 0, 0) for gradient in found if gradient is not None
    ]
    total = sum(parts[1:], parts[0]) if parts else torch.zeros_like(value, dtype=torch.float64)
    return entry.of_own(total)


def _missed(prediction: Prediction, entry: Entry, weight: Tensor, within: Tensor) -> list[tuple[str, float]]:
    """What of an entry's weight no relevance tells, by input."""
    if entry.birth is None:
        return [(source, float(weight.sum())) for source in sorted(entry.sources)]
    tokens, samples = (t.expand(weight.shape) for t in (entry.birth.tokens, entry.birth.samples))
    samples = torch.where(samples >= 0, samples, len(within) - 1)
    out = (tokens >= 0) & ~within[samples, tokens.clamp_min(0)]
    ledger = prediction.labelled.findings.ledger
    by_token = torch.zeros(within.shape[1], dtype=torch.float64)
    by_token.index_add_(0, tokens[out], weight.cpu()[out])
    parts = [(s.source, float(by_token[s.start : s.start + s.size].sum())) for s in ledger.tokens.spaces]
    return [(source, part) for source, part in parts if part]
