"""Where the batch lies is not read off an axis that only happens to have the batch's size."""

from __future__ import annotations

import pytest
import torch
from one_head import Attend
from torch import Tensor, nn

import fxplain


class TokensFirst(nn.Module):
    """Ids [tokens, batch] and a mask [batch, tokens], as ``nn.Transformer`` takes them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.layer, self.head = nn.Embedding(20, 8), Attend(), nn.Linear(8, 3)

    def forward(self, unused: Tensor, src: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(src).transpose(0, 1)
        z = self.layer.q(x) @ self.layer.k(x).mT
        z = z.masked_fill(~mask.bool()[:, None], float("-inf"))
        return self.head((x + z.softmax(-1) @ self.layer.v(x))[:, 0])


UNUSED = {
    "ids": torch.zeros(3, 3, dtype=torch.int64),
    "a mask": torch.ones(3, 6, dtype=torch.bool),
    "features": torch.randn(3, 3),
    "a batch of more": torch.randn(6, 3, 3),
    "tokens first, too": torch.zeros(6, 3, dtype=torch.int64),
}


@pytest.mark.parametrize("name", UNUSED)
@pytest.mark.parametrize("kind", [torch.bool, torch.int64])
@pytest.mark.parametrize("tokens", [6, 3])
def test_tokens_first(name: str, kind: torch.dtype, tokens: int) -> None:
    mask = torch.ones(3, tokens, dtype=torch.bool)
    mask[0, -2:] = False
    src = torch.randint(0, 20, (tokens, 3))
    traced = fxplain.trace(TokensFirst().eval(), {"unused": UNUSED[name], "src": src, "mask": mask.to(kind)})
    assert [(s.name, s.size) for s in traced.spaces] == [("src", tokens)]
    result = traced.explain({"unused": UNUSED[name], "src": src, "mask": mask.to(kind)}, target=1)
    for sample in range(3):
        only = {"unused": UNUSED[name][:1], "src": src[:, [sample]], "mask": mask[[sample]].to(kind)}
        alone = fxplain.explain(TokensFirst().eval(), only, target=1)
        torch.testing.assert_close(result.relevance["src"][sample], alone.relevance["src"][0])
