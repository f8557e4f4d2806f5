"""Operations that nothing is known of are written out as PyTorch itself makes them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

import fxplain


class Reader(nn.Module):
    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head, self.change = nn.Linear(6, 8), nn.Linear(8, 3), change

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.change(self.embed(x))[:, 0])
        return out


X = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))


def attend(x: Tensor) -> Tensor:
    return x + (x @ x.mT).softmax(-1) @ x


def alike(x: Tensor) -> Tensor:
    return cosine_similarity(x[:, :, None], x[:, None], -1).softmax(-1) @ x


def alike_by_hand(x: Tensor) -> Tensor:
    unit = normalize(x, dim=-1)
    return (unit[:, :, None] * unit[:, None]).sum(-1).softmax(-1) @ x


SAME = {
    "similarity": (alike, alike_by_hand),
    "diagonal": (
        lambda x: attend(torch.diag_embed(x).sum(-1)),
        lambda x: attend((x[..., None] * torch.eye(8)).sum(-1)),
    ),
    "halves": (
        lambda x: attend(torch.cat(torch.unsafe_chunk(x, 2, 1)[::-1], 1)),
        lambda x: attend(torch.cat([x[:, 3:], x[:, :3]], 1)),
    ),
    "apart": (
        lambda x: attend(torch.stack(torch.unbind_copy(x, 1)[::-1], 1)),
        lambda x: attend(x.flip(1)),
    ),
}


@pytest.mark.parametrize("kind", SAME)
def test_it_is_explained_as_what_it_is_made_of(kind: str) -> None:
    one, other = (fxplain.trace(Reader(change).eval(), X) for change in SAME[kind])
    assert not one.lost
    assert [a.kind for a in one.attentions] == ["self"]
    found, wanted = (traced.explain(X, target=1).relevance["x"] for traced in (one, other))
    torch.testing.assert_close(found, wanted)
    assert not any(law.broken for law in one.laws(X))


def test_what_stands_in_its_place_comes_from_the_same_line() -> None:
    traced = fxplain.trace(Reader(SAME["diagonal"][0]).eval(), X)
    nodes = [node for node in traced.captured.graph.graph.nodes if node.op == "call_function"]
    assert not any("diag_embed" in str(node.target) for node in nodes)
    assert all("test_written_out.py" in traced.why(node.name).place for node in nodes)
