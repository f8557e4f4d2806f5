"""What must hold whatever the model: symmetries, batches, reuse, wrappers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from zoo import fresh, slice_batch
from zoo.compare import assert_close, assert_same
from zoo.spec import ids, make, mask

import fxplain

SIZE, WIDTH = 6, 16


class Bag(nn.Module):
    """Two layers of attention without positions: the order of the tokens after the first means nothing."""

    def __init__(self, fused: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, WIDTH)
        self.packed = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, 3)
        self.fused = fused

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.packed:
            q, k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in layer(x).chunk(3, -1))
            if self.fused:
                y = functional.scaled_dot_product_attention(q, k, v)
            else:
                y = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v
            x = x + y.transpose(1, 2).flatten(2)
        logits: Tensor = self.head(x[:, 0])
        return logits


def test_permuted_tokens_have_permuted_relevance() -> None:
    model, tokens = make(Bag), ids(2, SIZE, 50)
    order = torch.tensor([0, 4, 2, 5, 1, 3])
    plain = fxplain.explain(model, {"tokens": tokens}, target=1)
    moved = fxplain.explain(model, {"tokens": tokens[:, order]}, target=1)
    assert_close(moved.relevance["tokens"], plain.relevance["tokens"][:, order], 1e-5, "permuted")
    block = plain.matrix("tokens", "tokens")[:, order][:, :, order]
    assert_close(moved.matrix("tokens", "tokens"), block, 1e-5, "permuted R")


def test_fused_and_written_out_attention_agree() -> None:
    tokens = {"tokens": ids(2, SIZE, 50)}
    fused, written = (fxplain.explain(make(lambda f=f: Bag(f)), tokens, target=1) for f in (True, False))  # type: ignore[misc]
    assert_same(fused, written, 1e-5, "fused")


def test_same_sample_twice_has_the_same_relevance_twice() -> None:
    tokens = ids(1, SIZE, 50).expand(2, -1)
    result = fxplain.explain(make(Bag), {"tokens": tokens}, target=1)
    assert_close(result.relevance["tokens"][0], result.relevance["tokens"][1], 1e-6, "twins")


@pytest.mark.parametrize("name", ["bert-sdpa", "swin-sdpa", "lxmert-eager"])
def test_traced_model_explains_other_inputs_of_its_shapes(name: str) -> None:
    model, inputs, expected = fresh(name)
    swapped = {key: value.flip(0) for key, value in inputs.items()}
    traced = fxplain.trace(model, inputs)
    reused = traced.explain(swapped, target=expected.target, output=expected.output)
    anew = fxplain.explain(model, swapped, target=expected.target, output=expected.output)
    assert_same(reused, anew, 1e-5, "reused")
    again = traced.explain(inputs, target=expected.target, output=expected.output)
    for space in again.relevance:
        assert_close(again.relevance[space], reused.relevance[space].flip(0), 1e-4, "first inputs again")


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["bert-sdpa", "vit-sdpa"])
def test_traced_model_explains_other_batch_sizes(name: str, batch: int) -> None:
    case = model, inputs, expected = fresh(name)
    other = {key: torch.cat([value, value[:1]]) if batch == 3 else value[:1] for key, value in inputs.items()}
    assert slice_batch(case, 0).keys() == other.keys()
    traced = fxplain.trace(model, inputs)
    result = traced.explain(other, target=expected.target)
    both = traced.explain(inputs, target=expected.target)
    for space in both.relevance:
        assert result.relevance[space].shape[0] == batch
        assert_close(result.relevance[space][:1], both.relevance[space][:1], 1e-4, f"batch {batch}")


def test_traced_model_explains_other_lengths() -> None:
    """A layout that was not seen before is captured and verified anew."""
    model, inputs, expected = fresh("bert-sdpa")
    traced = fxplain.trace(model, inputs)
    for other in (
        {"input_ids": ids(length=4), "attention_mask": mask(length=4)},
        {"input_ids": inputs["input_ids"]},
    ):
        result = traced.explain(other, target=expected.target)
        assert_same(result, fxplain.explain(model, other, target=expected.target), 1e-5, "another layout")


def test_new_weights_are_seen() -> None:
    """Fine-tuning goes on after tracing: the trace holds the live weights."""
    model, inputs, expected = fresh("bert-sdpa")
    traced = fxplain.trace(model, inputs)
    before = traced.explain(inputs, target=expected.target)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    after = traced.explain(inputs, target=expected.target)
    assert_same(after, fxplain.explain(model, inputs, target=expected.target), 1e-5, "new weights")
    assert not torch.allclose(after.score, before.score)


class Wrapper(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, **inputs: Any) -> Any:
        return self.inner(**inputs)


def test_a_wrapper_changes_nothing() -> None:
    model, inputs, expected = fresh("bert-sdpa")
    plain = fxplain.explain(model, inputs, target=expected.target)
    assert_same(fxplain.explain(Wrapper(model), inputs, target=expected.target), plain, 1e-6, "wrapper")


@pytest.mark.parametrize("form", ["dict", "tuple", "tensor", "BatchEncoding"])
def test_inputs_come_in_every_form(form: str) -> None:
    from transformers import BatchEncoding

    model, inputs, expected = fresh("bert-sdpa")
    plain = fxplain.explain(model, {"input_ids": inputs["input_ids"]}, target=expected.target)
    given = {
        "dict": {"input_ids": inputs["input_ids"]},
        "tuple": (inputs["input_ids"],),
        "tensor": inputs["input_ids"],
        "BatchEncoding": BatchEncoding({"input_ids": inputs["input_ids"]}),
    }[form]
    assert_same(fxplain.explain(model, given, target=expected.target), plain, 1e-6, form)


def test_explaining_twice_gives_the_same() -> None:
    model, inputs, expected = fresh("swin-sdpa")
    traced = fxplain.trace(model, inputs)
    one, two = (traced.explain(inputs, target=expected.target) for _ in range(2))
    assert_same(one, two, 0.0, "twice")


def test_verify_is_reported_again_on_demand() -> None:
    model, inputs, expected = fresh("bert-sdpa")
    traced = fxplain.trace(model, inputs)
    result = traced.explain(inputs, target=expected.target, verify=True)
    assert 0 <= result.verified <= 1e-5


def test_padding_more_changes_nothing() -> None:
    """The same text with two more padded positions has the same relevance."""
    model, _, _ = fresh("bert-sdpa")
    tokens = ids(1, 5)
    short = fxplain.explain(model, {"input_ids": tokens, "attention_mask": mask(1, 5)}, target=1)
    longer = torch.cat([tokens, torch.zeros(1, 2, dtype=torch.long)], 1)
    attended = torch.tensor([[1, 1, 1, 1, 1, 0, 0]])
    padded = fxplain.explain(model, {"input_ids": longer, "attention_mask": attended}, target=1)
    assert_close(padded.relevance["input_ids"][:, :5], short.relevance["input_ids"], 1e-5, "padding")
    assert padded.relevance["input_ids"][:, 5:].abs().max() == 0


def test_relevance_grids_have_the_shape_of_the_image() -> None:
    model, inputs, _ = fresh("vit-sdpa")
    result = fxplain.explain(model, inputs, target=1)
    assert result.grid("pixel_values").shape == (2, 4, 4)
    assert torch.equal(result.grid("pixel_values").flatten(1), result.relevance["pixel_values"])
