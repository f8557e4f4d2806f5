"""What row mode holds: nothing of tokens times tokens where attention is fused."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from speed_meters import peak_bytes
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fxplain
from fxplain.maps import blocks as map_blocks
from fxplain.maps import products as map_products

TOKENS, WIDTH, HEADS = 192, 16, 2


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The largest storage that any operation makes, in elements, and the shape of its tensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements, self.shape = 0, torch.Size()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        elements = storage.nbytes() // max(tensor.element_size(), 1)
        if elements > self.elements:
            self.elements, self.shape = elements, tensor.shape


class Decoder(nn.Module):
    """Layers of causal attention in one kernel; the last position is classified."""

    def __init__(self, layers: int = 3, shared: int = 1) -> None:
        super().__init__()
        self.embed, self.shared = nn.Embedding(50, WIDTH), shared
        self.queries = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(layers))
        self.others = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH // shared) for _ in range(layers))
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for queries, others in zip(self.queries, self.others, strict=True):
            q = queries(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            k, v = (
                t.unflatten(-1, (HEADS // self.shared, -1)).transpose(1, 2) for t in others(x).chunk(2, -1)
            )
            y = nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=self.shared > 1
            )
            x = x + y.transpose(1, 2).flatten(2)
        logits: Tensor = self.head(x)
        return logits


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_blocks, "MOST", TOKENS * 16)


@pytest.mark.parametrize("shared", [1, 2], ids=["heads of their own", "shared keys"])
def test_no_map_is_ever_alive_in_a_fused_decoder(shared: int) -> None:
    torch.manual_seed(0)
    model, ids = Decoder(shared=shared).eval(), torch.randint(0, 50, (1, TOKENS))
    traced = fxplain.trace(model, ids)
    target = (TOKENS - 1, 2)
    with Largest() as seen:  # the rebuilt maps of a new layout are held against their outputs, too
        result = traced.explain(ids, target)
    assert result.mode == "rows"
    assert seen.elements < TOKENS * TOKENS / 2, f"a tensor of shape {tuple(seen.shape)}"
    matrix = traced.explain(ids, target, mode="matrix")
    torch.testing.assert_close(result.relevance["ids"], matrix.relevance["ids"], rtol=1e-5, atol=1e-9)


def test_matrix_mode_does_hold_maps() -> None:
    """The measure sees them."""
    model, ids = Decoder().eval(), torch.randint(0, 50, (1, TOKENS))
    traced = fxplain.trace(model, ids)
    with Largest() as seen:
        traced.explain(ids, (TOKENS - 1, 2), mode="matrix")
    assert seen.elements >= TOKENS * TOKENS * HEADS


def test_nothing_of_an_explanation_stays_with_the_result() -> None:
    model, ids = Decoder().eval(), torch.randint(0, 50, (1, TOKENS))
    traced = fxplain.trace(model, ids)
    alive: list[Any] = []

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            alive.extend(weakref.ref(t) for t in tree_leaves(result) if isinstance(t, Tensor))
            return result

    with Watch():
        result = traced.explain(ids, (TOKENS - 1, 2))
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept = [t for ref in alive if (t := ref()) is not None and t.data_ptr() not in own]
    assert result.mode == "rows"
    assert sum(tensor.untyped_storage().nbytes() for tensor in kept) < 32 * TOKENS


def layers(count: int = 3) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 128, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, count, enable_nested_tensor=False).eval()
    return model.requires_grad_(False)


def peak_of(model: nn.Module, run: Callable[[], object]) -> int:
    return peak_bytes(run, "cpu", model.parameters())


def test_an_explanation_holds_little_more_than_a_pass_forward_and_backward() -> None:
    model, x = layers(), torch.randn(1, TOKENS, 32)
    traced = fxplain.trace(model, x)
    traced.explain(x, (0, 2))

    def floor() -> None:
        begun = x.detach().requires_grad_()
        torch.autograd.grad(model(begun)[0, 0, 2], begun)

    assert peak_of(model, lambda: traced.explain(x, (0, 2))) <= 1.2 * peak_of(model, floor)


def test_gradients_of_several_targets_take_no_more_than_they_may() -> None:
    model, x = layers(), torch.randn(1, TOKENS, 32)
    traced, targets = fxplain.trace(model, x), [(place, 0) for place in range(8)]
    traced.explain(x, (0, 2))
    alone = peak_of(model, lambda: traced.explain(x, (0, 2)))
    peaks = []
    for memory in (1, 1 << 20, 1 << 21, 1 << 30):
        peaks.append(peak_of(model, lambda memory=memory: traced.explain_targets(x, targets, memory=memory)))  # type: ignore[misc]
        assert peaks[-1] <= alone * 1.2 + memory, f"{memory} bytes"
    assert peaks[0] < peaks[1] < peaks[2] < peaks[3]


def test_maps_that_are_kept_in_between_are_kept_without_heads() -> None:
    """Eq. 10 asks for the encoder's maps more than once; their blocks here hold one head each."""
    torch.manual_seed(0)
    model = nn.Transformer(32, 4, 3, 1, 64, dropout=0.0, batch_first=True).eval().requires_grad_(False)
    x, y = torch.randn(1, 64, 32), torch.randn(1, 8, 32)
    traced = fxplain.trace(model, (x, y))
    result = traced.explain((x, y), (7, 2))
    assert result.mode == "rows"
    matrix = traced.explain((x, y), (7, 2), mode="matrix")
    torch.testing.assert_close(result.relevance["src"], matrix.relevance["src"], rtol=1e-4, atol=1e-7)
    held: list[int] = []
    summed = map_products.MapProducts._summed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            map_products.MapProducts,
            "_summed",
            lambda self: [
                (held.append(sum(part.numel() for part in every)), (where, every))[1]
                for where, every in summed(self)
            ],
        )
        traced.explain((x, y), (7, 2))
    assert sum(held) <= 3 * 64 * 64 + 8 * 8 + 8 * 64
