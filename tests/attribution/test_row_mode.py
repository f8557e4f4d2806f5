"""Row mode on small models: the same numbers as matrix mode, by every rule; and which mode is taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import built, traced
from zoo.compare import assert_close, assert_same

import fxplain
from fxplain.attribution.scheduled import Scheduled
from fxplain.attribution.table import METHODS
from fxplain.errors import MethodError, VerificationError
from fxplain.maps.sparse import mixing_products
from fxplain.rules.adjoint import Weights

BY_RULES = [name for name, method in METHODS.items() if isinstance(method.explain, Scheduled)]


class Reader(nn.Module):
    """A class token and windows read by a decoder; the decoder's tokens are pooled."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.embed, self.said = nn.Linear(6, 8), nn.Embedding(11, 8)
        self.packed = nn.ModuleList(nn.Linear(8, 24) for _ in range(4))
        self.merge, self.head = nn.Linear(16, 8), nn.Linear(8, 3)

    def attend(self, layer: int, reader: Tensor, read: Tensor) -> Tensor:
        weight, bias = self.packed[layer].weight, self.packed[layer].bias
        q = nn.functional.linear(reader, weight[:8], bias[:8])
        k, v = nn.functional.linear(read, weight[8:], bias[8:]).chunk(2, -1)
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(-3, -2) for t in (q, k, v))
        if self.fused:
            o = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            o = (q @ k.mT / 2).softmax(-1) @ v
        return reader + o.transpose(-3, -2).flatten(-2)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        x = self.embed(x)
        w = x.unflatten(1, (2, 4))
        x = self.attend(0, w, w).flatten(1, 2)
        x = self.merge(x.unflatten(1, (4, 2)).flatten(2))
        x = self.attend(1, x, x)
        y = self.said(ids)
        y = self.attend(2, y, y)
        y = self.attend(3, y, x)
        y = self.attend(2, y, y)
        y = self.attend(3, y, x)
        out: Tensor = self.head(y.mean(1))
        return out


def reader(fused: bool) -> Reader:
    torch.manual_seed(0)
    return Reader(fused).double().eval()


def inputs(batch: int = 2) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(batch, 8, 6, dtype=torch.float64), torch.randint(0, 11, (batch, 5))


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "written out"])
def test_every_table_of_rules_agrees_with_matrix_mode(fused: bool) -> None:
    traced = fxplain.trace(reader(fused), inputs())
    for method in BY_RULES:
        found, matrix = (traced.explain(inputs(), 1, method, mode=mode) for mode in ("auto", "matrix"))
        assert_same(found, matrix, 1e-10, f"{method}, {found.mode}")


def test_several_rows_that_are_read_each_set_their_own_entry_aside() -> None:
    model, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), torch.randn(2, 6, 8)
    traced = fxplain.trace(model, x)

    def target(out: Tensor) -> Tensor:
        return out[:, [1, 2, 5], 3].sum(1)

    rows, matrix = (traced.explain(x, target, mode=mode) for mode in ("rows", "matrix"))
    assert len(rows.readout[0]) == 3
    assert_same(rows, matrix, 1e-6, "three rows")


def test_the_matrix_is_had_when_it_is_asked_for() -> None:
    x = torch.randn(2, 6, 8)
    traced = fxplain.trace(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), x)
    rows, matrix = (traced.explain(x, (0, 3), mode=mode) for mode in ("auto", "matrix"))
    assert (rows.mode, matrix.mode) == ("rows", "matrix")
    assert rows.relevancy is None
    assert torch.equal(rows.matrix("src", "src"), matrix.matrix("src", "src"))
    assert rows.relevancy is not None


def test_a_matrix_of_another_model_is_refused() -> None:
    model, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), torch.randn(1, 6, 8)
    result = fxplain.explain(model, x, (0, 3))
    with torch.no_grad():
        model.linear2.bias.add_(1)
    with pytest.raises(VerificationError, match="have changed"):
        result.matrix("src", "src")


def test_co_attention_is_explained_in_matrix_mode_and_row_mode_says_why_not() -> None:
    _, given, expected = built("sam-sdpa")
    assert traced("sam-sdpa").explain(given, expected.target, output=expected.output).mode == "matrix"
    with pytest.raises(MethodError, match="co-attention"):
        traced("sam-sdpa").explain(given, expected.target, output=expected.output, mode="rows")


def test_batches_equal_their_samples() -> None:
    model, both = reader(True), inputs()
    together = fxplain.explain(model, both, 1)
    for sample in range(2):
        alone = fxplain.explain(model, tuple(part[sample : sample + 1] for part in both), 1)
        for name in alone.relevance:
            assert_close(together.relevance[name][sample], alone.relevance[name][0], 1e-10, name)


class Grid(nn.Module):
    """Patches that a convolution mixes with their neighbours and pools, before and after they attend."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.near = nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 8, 3, padding=1)
        self.attend, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.near(self.patches(x))
        tokens = x.flatten(2).mT
        x = x + self.attend(tokens, tokens, tokens)[0].mT.view_as(x)
        x = nn.functional.avg_pool2d(self.near(x), 2)
        out: Tensor = self.head(x.flatten(2).mT.mean(1))
        return out


@pytest.mark.parametrize("batch", [1, 2])
def test_mixings_of_few_neighbours_are_held_as_entries(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = Grid().double().eval(), torch.randn(batch, 3, 48, 48, dtype=torch.float64)
    made: list[str] = []

    def noted(*args: Any) -> Weights:
        found = mixing_products(*args)
        made.append(type(found).__name__)
        return found

    monkeypatch.setattr("fxplain.attribution.row_mode.mixing_products", noted)
    traced = fxplain.trace(model, x)
    for method in ("relevancy", "rollout"):
        rows, matrix = (traced.explain(x, 1, method, mode=mode) for mode in ("rows", "matrix"))
        assert_close(rows.relevance["x"], matrix.relevance["x"], 1e-12, method)
    assert sorted(made) == 2 * ["Dense"] + 4 * ["Sparse"]


@pytest.mark.parametrize("count", [3, 4, 5], ids=["fewer keys", "as many", "more"])
def test_no_key_is_a_sample_of_its_own(count: int) -> None:
    """Without a batch, and with one key that is no token."""
    torch.manual_seed(0)
    model = nn.MultiheadAttention(8, 2, add_zero_attn=True, batch_first=True).double().eval()
    query, key = (torch.randn(n, 8, dtype=torch.float64) for n in (4, count))
    traced = fxplain.trace(model, (query, key, key))
    (attention,) = traced.attentions
    assert attention.keys.size == count
    assert traced.explain((query, key, key), target=0).relevance["key"].shape[-1] == count


def test_many_rows_are_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double().eval()
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    traced = fxplain.trace(model, x)
    at_once = traced.explain(x, total, mode="rows")
    monkeypatch.setattr("fxplain.attribution.row_mode.MOST", 3 * 2 * 7)
    in_blocks = traced.explain(x, total, mode="rows")
    for other in (at_once, traced.explain(x, total, mode="matrix")):
        assert_close(in_blocks.relevance["src"], other.relevance["src"], 1e-12, other.mode)


def total(output: Tensor) -> Tensor:
    return output[..., 3].sum(1)
