"""Things given in a list are samples, where the model stacks them: each is explained as it would be alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from one_head import Attend
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

import fxplain
from fxplain.labels.batch_axis import samples_in_lists

Stack = Callable[[Sequence[Tensor]], Tensor]


def written(pictures: Sequence[Tensor]) -> Tensor:
    """As DETR does: each into its part of a tensor of zeros."""
    x = torch.zeros(len(pictures), max(map(len, pictures)), 5)
    for one, place in zip(pictures, x, strict=True):
        place[: len(one)].copy_(one)
    return x


STACKS: dict[str, Stack] = {
    "written": written,
    "stack": lambda pictures: torch.stack(list(pictures)),
    "cat": lambda pictures: torch.cat([one[None] for one in pictures]),
    "pad_sequence": lambda pictures: pad_sequence(list(pictures), batch_first=True),
}


class Detector(nn.Module):
    def __init__(self, stack: Stack) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.first, self.second, self.head = nn.Linear(5, 8), Attend(), Attend(), nn.Linear(8, 3)
        self.queries = nn.Parameter(torch.randn(2, 8))
        self.stack = stack

    def forward(self, samples: Sequence[Tensor]) -> Tensor:
        x = self.embed(self.stack(samples))
        x = x + self.first(x, x)
        queries = self.queries[None].expand(len(x), -1, -1)
        return self.head(queries + self.second(queries, x))


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("count", [2, 3, 5])
def test_each_as_alone(name: str, count: int) -> None:
    pictures = list(torch.randn(count, 6, 5, generator=torch.Generator().manual_seed(1)))
    model = Detector(STACKS[name]).eval()
    result = fxplain.explain(model, (pictures,), target=(1, 2))
    for place, picture in enumerate(pictures):
        want = fxplain.explain(model, ([picture],), target=(1, 2)).relevance["samples.0"][0]
        torch.testing.assert_close(result.relevance[f"samples.{place}"][place], want)
        others = [other for other in range(count) if other != place]
        assert not result.relevance[f"samples.{place}"][others].any()


def test_lists_of_features_are_no_samples() -> None:
    """Levels of one picture meet: they are all of one sample, or of the samples of each."""

    class Levels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.attend, self.head = nn.Linear(5, 8), Attend(), nn.Linear(8, 3)

        def forward(self, levels: Sequence[Tensor]) -> Tensor:
            x = torch.cat([self.embed(level) for level in levels], -2)
            return self.head((x + self.attend(x, x)).mean(-2))

    for shape in ((2, 4, 5), (4, 5)):
        levels = [torch.randn(*shape), torch.randn(*shape)]
        result = fxplain.explain(Levels().eval(), (levels,), target=0)
        for name in ("levels.0", "levels.1"):
            assert len(result.relevance[name]) == (2 if len(shape) == 3 else 1)
            assert result.relevance[name].any()


def test_which_lists() -> None:
    assert samples_in_lists(["x", "rest.0.a", "rest.1.a", "more.0", "more.1"]) == {
        "rest.0.a": 0,
        "rest.1.a": 1,
        "more.0": 0,
        "more.1": 1,
    }
    assert not samples_in_lists(["x.0", "x.1", "y.0"])
    assert not samples_in_lists(["x.0", "y"])
