"""Masks that are causal, or hide nothing, become flags of the kernel; all others stay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxplain
from fxplain.capture.passes.causal_masks import is_causal

WHOLE = torch.ones(4, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        (WHOLE, False),
        (WHOLE.tril(), True),
        (WHOLE.tril().expand(2, 1, 4, 4), True),
        (WHOLE.tril(-1), None),
        (WHOLE.triu(), None),
        (torch.stack([WHOLE.tril(), WHOLE])[:, None], None),
        (torch.zeros(4, 4), None),
    ],
)
def test_which_masks_are_plain(mask: Tensor, found: bool | None) -> None:
    assert is_causal(mask, torch.Size([4, 2]), torch.Size([4, 2])) is found


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin, self.head = nn.Linear(6, 18), nn.Linear(6, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, 3)).transpose(1, 2) for t in self.lin(x).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.head(y.transpose(1, 2).flatten(2))
        return out


def test_one_trace_holds_for_plain_and_other_masks() -> None:
    torch.manual_seed(0)
    model, x = Masked().eval(), torch.randn(1, 4, 6)
    traced = fxplain.trace(model, (x, WHOLE.tril()))
    hidden = WHOLE.clone()
    hidden[:, 1] = False
    for mask in (WHOLE.tril(), WHOLE, hidden, WHOLE.tril()):
        rows, matrix = (
            traced.explain((x, mask), (2, 1), mode=mode, verify=True) for mode in ("rows", "matrix")
        )
        torch.testing.assert_close(rows.relevance["x"], matrix.relevance["x"], rtol=1e-5, atol=1e-8)
        assert (rows.relevance["x"][0, ~mask[2]] == 0).all()


class Written(nn.Module):
    """Writes its causal mask out, of nothing but places."""

    def __init__(self, own: bool = False) -> None:
        super().__init__()
        self.lin, self.head, self.own = nn.Linear(6, 18), nn.Linear(6, 3), own
        self.window = nn.Buffer(torch.ones(4, 4).tril().bool())

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device)
        mask = self.window if self.own else (places[:, None] >= places)[None, None]
        q, k, v = (t.unflatten(-1, (2, 3)).transpose(1, 2) for t in self.lin(x).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.head(y.transpose(1, 2).flatten(2))
        return out


def compared(traced: fxplain.Traced) -> list[str]:
    return [node.name for node in traced.captured.graph.graph.nodes if "ge" in node.name.split("_")]


def test_a_mask_of_places_alone_is_gone_from_the_graph() -> None:
    model, x = Written().eval(), torch.randn(1, 4, 6)
    traced = fxplain.trace(model, x)
    (kernel,) = (n for n in traced.captured.graph.graph.nodes if "attention" in n.name)
    assert kernel.kwargs["attn_mask"] is None
    assert kernel.kwargs["is_causal"] is True
    assert not compared(traced)
    rows, matrix = (traced.explain(x, (2, 1), mode=mode) for mode in ("rows", "matrix"))
    torch.testing.assert_close(rows.relevance["x"], matrix.relevance["x"], rtol=1e-5, atol=1e-8)
    assert not rows.relevance["x"][0, 3].any()


def test_a_mask_that_the_model_holds_may_change() -> None:
    model, x = Written(own=True).eval(), torch.randn(1, 4, 6)
    traced = fxplain.trace(model, x)
    model.window.fill_(True)
    assert traced.explain(x, (2, 1), verify=True).relevance["x"][0, 3].any()
