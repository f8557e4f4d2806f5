"""Models that ask for overrides of functions do what they do without the tracer."""

from __future__ import annotations

import torch
from one_head import Attend
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

import fxplain


def attend(q: Tensor, k: Tensor, v: Tensor, width: int | None = None) -> Tensor:
    """As the first code of Conditional DETR: what is called anew lacks an argument, which nobody noticed."""
    if has_torch_function((q, k, v)):
        out: Tensor = handle_torch_function(attend, (q, k, v), q, k, v)
        return out
    if width is None:
        raise AssertionError("the width is missing")
    return (q @ k.mT / width**0.5).softmax(-1) @ v


class Overridable(nn.Module):
    def __init__(self, own: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.layer, self.head, self.own = nn.Linear(5, 8), Attend(), nn.Linear(8, 3), own

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        out = attend(self.layer.q(x), self.layer.k(x), self.layer.v(x), 8) if self.own else self.layer(x, x)
        return self.head((x + out)[:, 0])


def test_called_anew_under_a_mode() -> None:
    x = torch.randn(2, 4, 5)
    want = fxplain.explain(Overridable(False).eval(), x, target=1)
    traced = fxplain.trace(Overridable(True).eval(), x)
    assert [a.module for a in traced.attentions] == [""]
    torch.testing.assert_close(traced.explain(x, target=1).relevance["x"], want.relevance["x"])
    assert not has_torch_function((x,))
