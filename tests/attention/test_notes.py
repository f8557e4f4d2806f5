"""What a result says of steps whose relevancy is not followed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxplain
from fxplain.errors import NonFiniteError


class Convolved(nn.Module):
    """Attention, then a convolution over the tokens that is added back."""

    def __init__(self, add_back: bool) -> None:
        super().__init__()
        self.attend = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.conv = nn.Conv1d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8, 3)
        self.add_back = add_back

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.attend(x)
        mixed = self.conv(hidden.transpose(1, 2)).transpose(1, 2)
        logits: Tensor = self.head((hidden + mixed if self.add_back else mixed)[:, 0])
        return logits


@pytest.mark.parametrize("add_back", [True, False])
def test_mixing_steps_are_told(add_back: bool) -> None:
    torch.manual_seed(0)
    result = fxplain.explain(Convolved(add_back).eval(), torch.randn(1, 6, 8), target=1)
    assert any("conv1d in conv mixes tokens" in note for note in result.notes)
    assert any("add in the model mixes tokens" in note for note in result.notes) == add_back


def test_relevance_that_is_not_finite_is_refused() -> None:
    torch.manual_seed(0)
    model = Convolved(False).eval()
    with torch.no_grad():
        model.head.weight *= 1e38
    with pytest.raises(NonFiniteError):
        fxplain.explain(model, 1e3 * torch.randn(1, 6, 8), target=1)


class Forgetting(nn.Module):
    """Running sums of gates bias the scores; or else scale the values too."""

    def __init__(self, values: bool) -> None:
        super().__init__()
        self.embed, self.gate, self.head = nn.Linear(8, 8), nn.Linear(8, 1), nn.Linear(8, 3)
        self.values = values

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        kept = nn.functional.logsigmoid(self.gate(x)).cumsum(1)
        values = x * kept if self.values else x
        logits: Tensor = self.head(((x @ x.mT + kept - kept.mT).softmax(-1) @ values)[:, 0])
        return logits


@pytest.mark.parametrize("values", [False, True])
def test_sums_that_only_make_scores_need_no_note(values: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 6, 8)
    traced = fxplain.trace(Forgetting(values).eval(), x)
    assert [entry.role for entry in traced.census] == ["running sum", "attention"]
    assert any("cumsum" in note for note in traced.explain(x, target=1).notes) == values


class Dropping(nn.Module):
    """Dropout that is left on in evaluation mode, at some rate."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate, self.layer = rate, nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(nn.functional.dropout(x, self.rate))
        return out


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_dropout_that_drops_nothing_draws_no_random_numbers(rate: float) -> None:
    notes = fxplain.trace(Dropping(rate).eval(), torch.randn(1, 4, 8)).notes
    assert any("draws random numbers" in note for note in notes) == bool(rate)
