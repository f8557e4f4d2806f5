"""Parts of one sequence that attend to each other: streams are sets of tokens, wherever these were born."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxplain


class Attend(nn.Module):
    """One head, written out; keeps its maps for the reference."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.map = nn.Identity()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.map((self.query(x) @ self.key(y).mT / 8**0.5).softmax(-1)) @ self.value(y)


class Parts(nn.Module):
    """Six places of one input, of which some read others."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.embed, self.head, self.how = nn.Linear(4, 8), nn.Linear(8, 3), how
        self.first, self.second, self.third = Attend(), Attend(), Attend()

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        one, other = (x[:, ::2], x[:, 1::2]) if self.how == "every second" else (x[:, :3], x[:, 3:])
        if self.how == "one way":
            one = one + self.first(one, other)
        elif self.how == "slice reads all":
            one = one + self.first(one, x)
        elif self.how == "all read a slice":
            one = (x + self.first(x, one))[:, :3]
        elif self.how == "both in one call":
            mixed = x + self.first(torch.cat([one, other]), torch.cat([other, one])).unflatten(
                0, (2, -1)
            ).transpose(0, 1).flatten(1, 2)
            one = mixed[:, :3]
        elif self.how == "previous place":
            one = x[:, 1:] + self.first(x[:, 1:], x[:, :-1])
        else:
            one, other = one + self.first(one, other), other + self.second(other, one)
            one = one + self.third(one, other)
        return self.head(one[:, 0])


KINDS = {
    "one way": ["encoder_decoder"],
    "both ways": ["co", "co", "co"],
    "every second": ["co", "co", "co"],
    "slice reads all": ["self"],
    "all read a slice": ["self"],
    "both in one call": ["self"],
    "previous place": ["encoder_decoder"],
}


@pytest.mark.parametrize("how", KINDS)
def test_kinds_are_of_the_tokens_that_a_call_joins(how: str) -> None:
    torch.manual_seed(0)
    model, x = Parts(how).eval(), torch.randn(2, 6, 4)
    traced = fxplain.trace(model, x)
    assert [attention.kind for attention in traced.attentions] == KINDS[how]
    assert {space.name for space in traced.spaces} == {"x"}
    for attention in traced.attentions:
        assert len(attention.queries.tokens) == attention.queries.size


def normalised(matrix: Tensor) -> Tensor:
    """Eqs. 8 and 9."""
    excess = matrix - torch.eye(len(matrix), dtype=matrix.dtype)
    sums = excess.sum(-1, keepdim=True)
    return torch.where(sums > 0, excess / sums, 0.0) + torch.eye(len(matrix), dtype=matrix.dtype)


@pytest.mark.parametrize("how", ["both ways", "every second"])
def test_halves_of_a_sequence_follow_the_rules_of_co_attention(how: str) -> None:
    torch.manual_seed(2)
    model, x = Parts(how).double().eval(), torch.randn(1, 6, 4, dtype=torch.float64)
    maps: list[Tensor] = []
    hooks = [
        module.map.register_forward_hook(lambda _module, _given, made: maps.append(made))
        for module in (model.first, model.second, model.third)
    ]
    gradients = torch.autograd.grad(model(x)[0, 1], maps)
    for hook in hooks:
        hook.remove()
    read, back, again = ((a * g).clamp(min=0)[0].detach() for a, g in zip(maps, gradients, strict=True))
    eye, none = torch.eye(3, dtype=x.dtype), torch.zeros(3, 3, dtype=x.dtype)
    aa, ab, bb, ba = eye, none, eye, none
    # both read the state before them
    aa, ab, bb, ba = (
        aa + read @ ba,
        ab + normalised(aa).T @ read @ normalised(bb),
        bb + back @ ab,
        ba + normalised(bb).T @ back @ normalised(aa),
    )
    assert all(bool((weights > 0).any()) for weights in (read, back, again))
    aa, ab = aa + again @ ba, ab + normalised(aa).T @ again @ normalised(bb)
    one, other = ([0, 2, 4], [1, 3, 5]) if how == "every second" else ([0, 1, 2], [3, 4, 5])
    found = fxplain.explain(model, x, target=1).matrix("x", "x")[0]
    torch.testing.assert_close(found[one][:, one], aa)
    torch.testing.assert_close(found[one][:, other], ab)
