"""A decoder's input moved by one place, with a frame of zeros before it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxplain


class Shifted(nn.Module):
    """Self-attention over frames; with ``shift`` the first is of zeros, and the last is left out."""

    def __init__(self, spelled: str, shift: bool = True) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
        self.attend = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.spelled, self.shift = spelled, shift

    def forward(self, frames: Tensor) -> Tensor:
        if self.shift:
            frames = torch.cat([frames.new_zeros(len(frames), 1, 3), frames[:, :-1]], 1)
        if self.spelled == "whole":
            return self.head(self.attend(self.embed(frames)))
        steps = [self.embed(frames[:, step]) for step in range(frames.shape[1])]
        return self.head(self.attend(torch.stack(steps, 1)))


@pytest.mark.parametrize("spelled", ["whole", "steps"])
def test_a_frame_of_zeros_is_no_place_of_the_input(spelled: str) -> None:
    torch.manual_seed(1)
    model, frames = Shifted(spelled).eval(), torch.randn(2, 4, 3)
    result = fxplain.explain(model, frames, target=(3, 1))
    moved = torch.cat([torch.zeros(2, 1, 3), frames[:, :-1]], 1)
    plain = Shifted(spelled, shift=False).eval()
    plain.load_state_dict(model.state_dict())
    expected = fxplain.explain(plain, moved, target=(3, 1)).relevance["frames"]
    assert bool((expected > 0).any())
    torch.testing.assert_close(result.relevance["frames"][:, :3], expected[:, 1:])
    (filled,) = set(result.relevance) - {"frames"}
    torch.testing.assert_close(result.relevance[filled], expected[:, :1])
