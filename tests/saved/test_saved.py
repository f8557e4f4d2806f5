"""A traced model on disk: read back it explains as before; no capture, labelling, model code or pickle."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import fxplain
from fxplain import layouts
from fxplain import traced as traced_module
from fxplain.adapters import load as load_model
from fxplain.attention import labelled as labelling
from fxplain.errors import InputError, LoadError, OutputError, UnsafeFileError, VerificationError
from fxplain.saved.codec import decode, encode

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


class Pooled(nn.Module):
    """A grid of patches and a learned token; a dict of outputs; an option that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, stride=2)
        self.cls = nn.Parameter(torch.randn(1, 1, 8))
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, pixels: Tensor, scale: float = 1.0) -> dict[str, Any]:
        x = self.patches(pixels).flatten(2).mT
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1)
        x = x + self.attend(x, x, x)[0]
        return {"scores": self.head(x[:, 0]) * scale, "states": (x,)}


def vit() -> tuple[nn.Module, Any]:
    config = hf.ViTConfig(**SMALL, image_size=16, patch_size=8, attn_implementation="eager")
    return hf.ViTForImageClassification(config).eval(), {"pixel_values": torch.randn(2, 3, 16, 16)}


def bert() -> tuple[nn.Module, Any]:
    config = hf.BertConfig(**SMALL, vocab_size=20, attn_implementation="sdpa")
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    inputs = {"input_ids": torch.tensor([[2, 5, 7, 9, 3], [2, 5, 3, 0, 0]]), "attention_mask": mask}
    return hf.BertForSequenceClassification(config).eval(), inputs


def t5() -> tuple[nn.Module, Any]:
    config = hf.T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 1]]), "decoder_input_ids": torch.tensor([[0, 8, 9]])}
    return hf.T5ForConditionalGeneration(config).eval(), inputs


def custom() -> tuple[nn.Module, Any]:
    return Pooled().eval(), {"pixels": torch.randn(2, 3, 6, 4), "scale": 2.0}


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "vit": vit,
    "bert": bert,
    "t5": t5,
    "custom": custom,
}


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("this was done before the model was saved")


def same(one: fxplain.Result, other: fxplain.Result) -> bool:
    equal = all(torch.equal(one.relevance[name], other.relevance[name]) for name in one.relevance)
    facts = [
        (r.target, r.output, r.readout, r.spaces, r.streams, r.attentions, r.notes) for r in (one, other)
    ]
    return equal and torch.equal(one.score, other.score) and facts[0] == facts[1]


@pytest.mark.parametrize("name", MODELS)
def test_explains_as_before(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = MODELS[name]()
    traced = fxplain.trace(model, inputs)
    expected = [
        traced.explain(inputs, method=method)
        for method in ("relevancy", "rollout", "transformer_attribution")
    ]
    traced.save(tmp_path / "model.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    monkeypatch.setattr(layouts, "capture_and_label", refuse)
    monkeypatch.setattr(traced_module, "capture_and_label", refuse)
    monkeypatch.setattr(labelling, "find", refuse)
    for unpickle in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, unpickle, refuse)
    again = fxplain.load(tmp_path / "model.pt2")
    assert all(same(result, again.explain(inputs, method=result.method)) for result in expected)
    assert all(same(result, again.explain(inputs, method=result.method)) for result in expected)
    assert (again.attentions, again.mixings, again.census) == (
        traced.attentions,
        traced.mixings,
        traced.census,
    )
    assert again.graph.nodes(data=True) == traced.graph.nodes(data=True)


def test_other_inputs_of_the_layout_and_callable_targets(tmp_path: Path) -> None:
    model, inputs = custom()
    traced = fxplain.trace(model, inputs)
    traced.save(tmp_path / "model")
    again = fxplain.load(str(tmp_path / "model"))
    others = inputs | {"pixels": torch.randn(2, 3, 6, 4)}

    def target(output: Any) -> Tensor:
        score: Tensor = output["scores"][:, 1] + output["states"][0][:, 2, 3]
        return score

    assert torch.equal(
        again.explain(others, target).relevance["pixels"], traced.explain(others, target).relevance["pixels"]
    )


def test_outputs_of_a_library_keep_their_names(tmp_path: Path) -> None:
    model, inputs = bert()
    fxplain.trace(model, inputs).save(tmp_path / "model")
    again = fxplain.load(tmp_path / "model")
    with torch.no_grad():
        torch.testing.assert_close(again.model(**inputs).logits, model(**inputs).logits)
        torch.testing.assert_close(again.model(**inputs)[0], model(**inputs)[0])
    a, b = (t.explain(inputs, lambda out: out.logits[:, 1]) for t in (again, fxplain.trace(model, inputs)))
    assert torch.equal(a.relevance["input_ids"], b.relevance["input_ids"])


def test_other_layouts_are_refused_by_name(tmp_path: Path) -> None:
    model, inputs = bert()
    fxplain.trace(model, inputs).save(tmp_path / "model")
    with pytest.raises(InputError, match="'input_ids' differs"):
        fxplain.load(tmp_path / "model").explain({name: tensor[:, :4] for name, tensor in inputs.items()})


def test_weights_are_those_of_the_time_it_is_saved(tmp_path: Path) -> None:
    model, inputs = custom()
    traced = fxplain.trace(model, inputs)
    with torch.no_grad():
        model.head.weight.mul_(2)  # type: ignore[operator, union-attr]
    traced.save(tmp_path / "model")
    again = fxplain.load(tmp_path / "model")
    assert torch.equal(again.explain(inputs, 1).score, traced.explain(inputs, 1).score)
    again.save(tmp_path / "copy")
    assert same(fxplain.load(tmp_path / "copy").explain(inputs, 1), traced.explain(inputs, 1))


def test_half_precision_and_shared_weights(tmp_path: Path) -> None:
    config = hf.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=8)
    model, inputs = hf.GPT2LMHeadModel(config).eval().bfloat16(), {"input_ids": torch.tensor([[3, 4, 5]])}
    traced = fxplain.trace(model, inputs)
    traced.save(tmp_path / "model")
    again = fxplain.load(tmp_path / "model")
    assert same(again.explain(inputs), traced.explain(inputs))
    assert (tmp_path / "model").stat().st_size < 400_000


class Counted(nn.Module):
    """How often it attends is decided by the input's values: no graph but a recording."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(x.abs().sum().item() > 0) + 1):
            x = x + self.attend(x, x, x)[0]
        return x[:, 0]


def test_what_cannot_be_saved_says_so(tmp_path: Path) -> None:
    recorded = fxplain.trace(Counted().eval(), torch.randn(1, 3, 8))
    assert recorded.captured.strategy == "record"
    with pytest.raises(OutputError, match="recorded graph cannot be saved"):
        recorded.save(tmp_path / "model")

    model, inputs = t5()
    states = hf.modeling_outputs.BaseModelOutput(torch.randn(1, 4, 8))
    traced = fxplain.trace(
        model, {"encoder_outputs": states, "decoder_input_ids": inputs["decoder_input_ids"]}
    )
    with pytest.raises(OutputError, match="no form as a file"):
        traced.save(tmp_path / "model")
    with pytest.raises(OutputError, match="does not exist"):
        fxplain.trace(*custom()).save(tmp_path / "no" / "model")
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced = fxplain.trace(*custom())
    (tmp_path / "model").write_text("old")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.export, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        traced.save(tmp_path / "model")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("model", "old")]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path: Path = tmp_path_factory.mktemp("saved") / "model.pt2"
    fxplain.trace(*custom()).save(path)
    return path.read_bytes()


def changed(file: bytes, part: str, change: Callable[[bytes], bytes]) -> bytes:
    """The archive with one record's content changed."""
    source, buffer = zipfile.ZipFile(io.BytesIO(file)), io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            target.writestr(name, change(source.read(name)) if name.endswith(part) else source.read(name))
    return buffer.getvalue()


def test_a_file_that_is_no_traced_model(file: bytes, tmp_path: Path) -> None:
    def told(content: bytes, error: type[Exception], match: str) -> None:
        (tmp_path / "model.pt2").write_bytes(content)
        with pytest.raises(error, match=match):
            fxplain.load(tmp_path / "model.pt2")

    with pytest.raises(LoadError, match="no such traced model"):
        fxplain.load(tmp_path / "nothing")
    told(b"", LoadError, "no exported program, or it is truncated")
    told(b"weights", LoadError, "no exported program, or it is truncated")
    told(file[: len(file) // 2], LoadError, "no exported program, or it is truncated")
    told(pickle.dumps({"a": 1}), LoadError, "no exported program")
    plain = io.BytesIO()
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), plain)
    told(plain.getvalue(), LoadError, "was not saved by fxplain")
    for content in (b"", b"[]", b"{}", b'{"format": "fxplain traced model 99"}'):
        told(changed(file, "fxplain.json", lambda _, new=content: new), LoadError, "cannot be read")  # type: ignore[misc]


def test_what_was_tampered_with_is_refused(file: bytes, tmp_path: Path) -> None:
    def loaded(content: bytes) -> Any:
        (tmp_path / "model.pt2").write_bytes(content)
        return fxplain.load(tmp_path / "model.pt2")

    def edited(change: Callable[[dict[str, Any]], None]) -> bytes:
        def edit(text: bytes) -> bytes:
            facts = json.loads(text)
            change(facts)
            return json.dumps(facts).encode()

        return changed(file, "fxplain.json", edit)

    with pytest.raises(VerificationError, match="gives something else"):
        loaded(changed(file, "weight_0", lambda data: bytes(len(data))))
    with pytest.raises(LoadError, match="the program ends before"):
        loaded(edited(lambda facts: facts["nodes"].append(["x", "call_function aten.relu.default"])))
    with pytest.raises(LoadError, match="cannot be read"):
        loaded(edited(lambda facts: facts["found"]["records"][0].update({"of": "os.system"})))
    with pytest.raises(LoadError, match="another size"):
        loaded(edited(lambda facts: facts["found"]["tensors"][0].update({"shape": [7, 7, 7]})))
    with pytest.raises(UnsafeFileError, match=r"torch\.ops\.evil"):
        loaded(
            changed(
                file, "model.json", lambda text: text.replace(b"torch.ops.aten.softmax", b"torch.ops.evil.x")
            )
        )


def test_the_form_holds_records_numbers_and_tensors() -> None:
    wide = torch.arange(3).view(3, 1).expand(3, 4)
    value = {
        (1, "a"): [None, True, float("inf"), torch.float16, torch.device("cpu")],
        "t": (wide, wide.clone()),
    }
    found = decode(json.loads(json.dumps(encode(value))), {})
    assert found[(1, "a")] == value[(1, "a")]
    assert torch.equal(found["t"][1], wide)
    with pytest.raises(TypeError, match="a value of type object"):
        encode(object())


@torch.library.custom_op("fxplain_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    return x * 2


doubled.register_fake(torch.empty_like)
doubled.register_autograd(lambda ctx, grad: grad * 2)


class Foreign(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return doubled(x + self.attend(x, x, x)[0])[:, 0]  # type: ignore[no-any-return]


def test_operations_of_other_libraries_must_be_named(tmp_path: Path) -> None:
    model, x = Foreign().eval(), torch.randn(1, 3, 8)
    traced = fxplain.trace(model, x)
    traced.save(tmp_path / "model")
    with pytest.raises(UnsafeFileError, match=r"fxplain_tests\.doubled[\s\S]*name it in operations="):
        fxplain.load(tmp_path / "model")
    assert same(fxplain.load(tmp_path / "model", operations=["fxplain_tests"]).explain(x), traced.explain(x))


def test_the_command_line_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = custom()
    traced = fxplain.trace(model, inputs)
    traced.save(tmp_path / "model.pt2")
    monkeypatch.setattr(layouts, "capture_and_label", refuse)
    monkeypatch.setattr(traced_module, "capture_and_label", refuse)
    loaded = load_model(str(tmp_path / "model.pt2"))
    assert same(fxplain.trace(loaded.model, loaded.inputs).explain(loaded.inputs), traced.explain(inputs))
