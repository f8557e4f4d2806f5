"""Pictures of all samples come as one row of flat patches: which axis is the batch's shows in the rest."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxplain


class Reader(nn.Module):
    """Flat patches through a convolution, as tokens between the words of each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4)
        self.words = nn.Embedding(20, 8)
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 5)

    def forward(self, ids: Tensor, flat: Tensor) -> Tensor:
        pictures = self.patches(flat.view(-1, 3, 4, 4)).view(len(ids), -1, 8)
        x = torch.cat([self.words(ids), pictures], 1)
        x = x + (self.query(x) @ self.key(x).mT).softmax(-1) @ self.value(x)
        return self.head(x[:, 0])


def test_features_are_not_taken_for_samples() -> None:
    torch.manual_seed(0)
    model = Reader().eval()
    ids, flat = torch.randint(0, 20, (2, 5)), torch.randn(6, 48)
    traced = fxplain.trace(model, {"ids": ids, "flat": flat})
    (attention,) = traced.attentions
    (map,) = traced.maps({"ids": ids, "flat": flat})
    assert map.shape[0] == 2
    assert set(attention.keys.spaces) == {"ids", "flat"}
    result = traced.explain({"ids": ids, "flat": flat}, target=1)
    assert result.batch == 2
