"""flex attention: a fused attention whose scores the user's own function changes."""

from __future__ import annotations

import pytest
import torch
from spellings.base import HEAD, TOKENS, case, merge
from spellings.scores import Plain
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from zoo.compare import aligned, assert_same, check_maps

import fxplain

# torch advises to compile flex attention; its block masks and its export have deprecations of their own
pytestmark = pytest.mark.filterwarnings("ignore")


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


def test_flex_attention_is_found_and_explained() -> None:
    """On CPU torch has no backward for it, so the weights are frozen, and there is one layer."""
    build = case(Flex, target=1)
    model, inputs, expected = build()
    model.requires_grad_(False)
    traced = fxplain.trace(model, inputs)
    aligned(traced, expected)
    assert traced.attentions[0].fused
    check_maps(traced, inputs, (model, inputs, expected), 1e-5)
    written = Written().eval()
    written.load_state_dict(model.state_dict())
    plain = fxplain.explain(written, inputs, target=1)
    assert_same(traced.explain(inputs, target=1), plain, 1e-5, "flex")
