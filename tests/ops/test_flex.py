"""Flex attention: a fused attention whose scores the user's own functions change and mask."""

from __future__ import annotations

from typing import Any

import torch
from spellings.base import HEAD, TOKENS, case, merge
from spellings.scores import Plain
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from versions import higher_order
from zoo.compare import aligned, assert_same, check_maps

import fxplain
from fxplain.ops.kernels import flex_attention as written_out


class Flex(Plain):
    """A score function that lowers far keys, and a block mask that hides earlier ones."""

    fused = True

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(x)
        place = torch.arange(TOKENS)
        distance = (place[:, None] - place[None]).abs()
        scores = q @ k.transpose(-1, -2) * HEAD**-0.5 - 0.3 * distance
        weights = scores.masked_fill(place[:, None] > place[None], float("-inf")).softmax(-1)
        if not self.fused:
            return merge(weights @ v), weights
        block = create_block_mask(lambda b, h, i, j: i <= j, None, None, TOKENS, TOKENS, device="cpu")
        update = flex_attention(q, k, v, lambda s, b, h, i, j: s - 0.3 * (i - j).abs(), block_mask=block)
        assert isinstance(update, Tensor)
        return merge(update), weights


class Written(Flex):
    fused = False


@higher_order
def test_flex_attention_is_found_and_explained() -> None:
    model, inputs, expected = case(Flex, target=1)()
    traced = fxplain.trace(model, inputs)
    aligned(traced, expected)
    assert traced.attentions[0].fused
    check_maps(traced, inputs, (model, inputs, expected), 1e-5)
    written = Written().eval()
    written.load_state_dict(model.state_dict())
    plain = fxplain.explain(written, inputs, target=1)
    assert_same(traced.explain(inputs, target=1), plain, 1e-5, "flex")


class Layer(nn.Module):
    """Grouped heads, learned slopes, packed documents, and a sink put in by the sums of the rows."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.qkv = nn.Linear(8, 16)
        self.out = nn.Linear(8, 8)
        self.slope = nn.Parameter(torch.tensor([0.4, -0.2]))
        self.document = nn.Buffer(torch.tensor([0, 0, 1, 1, 1, 1]))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(len(x), TOKENS, 4, 4).transpose(1, 2).split([2, 1, 1], 1)
        output, sums = self.by_flex(q, k, v) if self.how == "flex" else self.by_scores(q, k, v)
        output = output * torch.sigmoid(sums)[..., None]
        return x + self.out(output.transpose(1, 2).reshape(x.shape))

    def by_flex(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        document, slope = self.document, self.slope

        def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return (i >= j) & (document[i] == document[j])

        block = create_block_mask(visible, None, None, TOKENS, TOKENS, device="cpu")
        both: Any = flex_attention(
            q, k, v, lambda s, b, h, i, j: s + slope[h] * (i - j),
            block_mask=block, scale=0.7, enable_gqa=True, return_lse=True,
        )  # fmt: skip
        return both[0], both[1]

    def by_scores(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        place = torch.arange(TOKENS)
        distance = place[:, None] - place
        hidden = (distance < 0) | (self.document[:, None] != self.document)
        mask = (self.slope[:, None, None] * distance).masked_fill(hidden, float("-inf"))
        scores = q @ k.transpose(-1, -2) * 0.7 + mask
        if self.how == "sdpa":
            output = scaled_dot_product_attention(q, k, v, mask, scale=0.7, enable_gqa=True)
        else:
            output = scores.softmax(-1) @ v
        return output, scores.logsumexp(-1)


@higher_order
def test_eager_is_sdpa_is_flex() -> None:
    """Two layers, so that the first one's gradient passes through the second's scores."""
    x = torch.randn(2, TOKENS, 8, generator=torch.Generator().manual_seed(1))
    results = []
    for how in ("eager", "sdpa", "flex"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), Layer(how), Layer(how), nn.Linear(8, 3)).eval()
        traced = fxplain.trace(model, x)
        assert [(a.heads, a.fused) for a in traced.attentions] == [(2, how != "eager")] * 2
        results.append([traced.explain(x, target=(4, 1), method=m) for m in ("relevancy", "rollout")])
    eager, sdpa, flex = results
    assert eager[0].relevance["input"][:, 2:4].min() > 0, "the explained token sees its document"
    assert eager[0].relevance["input"][:, :2].max() == 0, "and no other"
    for place in (0, 1):
        assert_same(sdpa[place], eager[place], 1e-5, "sdpa")
        assert_same(flex[place], eager[place], 1e-5, "flex")


def test_written_out_is_the_kernel() -> None:
    """Outputs and sums of rows are torch's; a row that sees nothing is 0, and its gradient no NaN."""
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 3, 5), torch.randn(1, 2, 6, 5), torch.randn(1, 2, 6, 7)
    table = torch.randn(4)
    arguments = (  # type: ignore[var-annotated]
        lambda score, b, h, i, j, table: score * (1 + b) + table[h] * j,
        (3, 6, lambda b, h, i, j: (i != 1) & (j > h)),
        0.3,
        {},
        (table,),
        (),
    )
    kernel = torch.ops.higher_order.flex_attention(q, k, v, *arguments)
    with torch.enable_grad():
        leaves = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
        found = written_out(*leaves, *arguments)
    for ours, theirs in zip(found, kernel, strict=True):
        torch.testing.assert_close(ours.detach(), theirs)
    assert found[0][:, :, 1].abs().max() == 0
    gradients = torch.autograd.grad(found[0].square().sum(), leaves)
    assert all(bool(gradient.isfinite().all()) and bool(gradient.any()) for gradient in gradients)
