"""Spellings of attention that cannot be had as one: each is refused or noted, and the reason is right."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from spellings.base import HEADS
from torch import Tensor, nn
from torch.nn import functional
from variants.base import Variant, tokens

import fxplain
from fxplain.errors import NoAttentionError, UnknownOpError


class Drawn(Variant):
    """Dropout that is on in evaluation: another map at every run."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return functional.dropout(self.scores(q, k).softmax(-1), 0.3, training=True) @ v


class Kernel(Variant):
    """Linear attention: keys meet values before any query does."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = functional.elu(q) + 1, functional.elu(k) + 1
        return (q @ (k.mT @ v)) / (q @ k.sum(2).unsqueeze(-1))


def explained(model: nn.Module) -> Any:
    return fxplain.explain(model, tokens(), target=1)


@pytest.mark.parametrize(
    ("kind", "error", "reason"),
    [
        (Kernel, NoAttentionError, "linear attention"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_it_is_refused(kind: type[Variant], error: type[Exception], reason: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(error, match=reason):
        explained(kind().eval())


def test_a_map_that_is_drawn_is_noted() -> None:
    torch.manual_seed(0)
    assert any("random numbers" in note for note in explained(Drawn().eval()).notes)


def test_quantised_layers_have_maps_and_no_gradients() -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and used
        model = torch.ao.quantization.quantize_dynamic(Variant().eval(), {nn.Linear}, dtype=torch.qint8)
        traced: Any = fxplain.trace(model, tokens())
    assert [(a.kind, a.queries.size, a.heads) for a in traced.attentions] == [("self", 6, HEADS)]
    with torch.no_grad():
        torch.testing.assert_close(traced.maps(tokens())[0], model.dense(tokens())[1])
    assert float(traced.explain(tokens(), target=1, method="raw_attention").relevance["x"].sum()) > 0
    with pytest.raises(UnknownOpError, match="no gradient passes"):
        traced.explain(tokens(), target=1)
