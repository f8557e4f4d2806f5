"""Hugging Face folders: class, weights, processors and names; nothing unsafe, and no look at the network."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_folders as toys
import transformers as hf
from safetensors.torch import save_file

from fxplain.adapters import LoadOptions, load
from fxplain.errors import InputError, LoadError, UnsafeFileError


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a local folder must load without the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_a_picture_is_shown_as_the_model_saw_it(tmp_path: Path) -> None:
    loaded = load(str(toys.vit(tmp_path / "model")))
    inputs, display = loaded.prepare(image=toys.picture(tmp_path / "halves.png"))
    assert type(loaded.model) is hf.ViTForImageClassification
    assert not loaded.model.training
    assert inputs["pixel_values"].shape == (1, 3, 16, 16)
    shown = display.images["pixel_values"][0]
    assert shown.shape == (16, 16, 3)
    assert shown.dtype == np.uint8
    assert abs(int(shown[8, 2, 0]) - 250) <= 1
    assert abs(int(shown[8, 13, 2]) - 250) <= 1
    assert display.captions == ["halves.png"]
    assert loaded.labels == {0: "cat", 1: "dog, hound", 2: "bird"}
    assert loaded.notes == ()


def test_words_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    loaded = load(str(toys.bert(tmp_path / "model")))
    inputs, display = loaded.prepare(text=["the movie was good", "cats"])
    assert display.tokens["input_ids"][0] == ["[CLS]", "the", " movie", " was", " good", "[SEP]"]
    assert display.tokens["input_ids"][1] == ["[CLS]", "cat", "s", "[SEP]", "[PAD]", "[PAD]"]
    assert set(inputs) == {"input_ids", "attention_mask", "token_type_ids"}
    assert loaded.model(**inputs).logits.shape == (2, 2)


def test_a_long_text_is_cut_to_what_the_model_takes(tmp_path: Path) -> None:
    loaded = load(str(toys.bert(tmp_path / "model")))
    inputs, display = loaded.prepare(text=["cat " * 30, "cat " * 10])
    assert inputs["input_ids"].shape == (2, 12)
    assert display.notes == ("text 0 is cut: it has 32 tokens, and the model takes 12",)
    assert list(display.tokens["input_ids"][0]) == ["[CLS]", "cat", *[" cat"] * 9, "[SEP]"]


def test_a_long_text_beside_a_picture_is_cut_with_a_note(tmp_path: Path) -> None:
    loaded = load(str(toys.clip(tmp_path / "model")))
    _, display = loaded.prepare(image=toys.picture(tmp_path / "p.png"), text="cat " * 30)
    assert display.notes == ("the text is cut: it has 32 tokens, and the model takes 12",)


def test_picture_and_text_together(tmp_path: Path) -> None:
    loaded = load(str(toys.clip(tmp_path / "model")))
    picture = toys.picture(tmp_path / "halves.png")
    inputs, display = loaded.prepare(image=picture, text=["a cat", "a photo of the dog"])
    assert "token_type_ids" not in inputs  # the tokenizer makes them, the model does not take them
    assert loaded.model(**inputs).logits_per_image.shape == (1, 2)
    assert set(display.images) == {"pixel_values"}
    assert set(display.tokens) == {"input_ids"}
    assert loaded.labels == {}  # the configuration's LABEL_0, LABEL_1 name nothing


def test_the_decoder_starts_or_goes_on(tmp_path: Path) -> None:
    loaded = load(str(toys.t5(tmp_path / "model")))
    inputs, _ = loaded.prepare(text="good movie")
    assert inputs["decoder_input_ids"].tolist() == [[0]]
    inputs, display = loaded.prepare(text=["good movie", "bad movie"], decoder_text="it was")
    assert inputs["decoder_input_ids"].shape == (2, 3)
    assert display.tokens["decoder_input_ids"][0] == ["[PAD]", "it", " was"]
    assert loaded.labels[toys.WORDS.index("good")] == " good"  # the word, not the end of another
    assert loaded.labels[toys.WORDS.index("##s")] == "s"


def test_tensors_join_text_by_name(tmp_path: Path) -> None:
    loaded = load(str(toys.lxmert(tmp_path / "model")))
    torch.save(
        {"visual_feats": torch.rand(1, 4, 8), "visual_pos": torch.rand(1, 4, 4)}, tmp_path / "boxes.pt"
    )
    inputs, display = loaded.prepare(text="a cat", input=tmp_path / "boxes.pt")
    assert loaded.model(**inputs).question_answering_score.shape == (1, 3)
    assert display.tokens["input_ids"] == [["[CLS]", "a", " cat", "[SEP]"]]


@pytest.mark.parametrize("make", [toys.vit, toys.bert, toys.clip, toys.t5, toys.bart, toys.lxmert])
def test_example_inputs_run(make: Callable[[Path], Path], tmp_path: Path) -> None:
    loaded = load(str(make(tmp_path / "model")))
    loaded.model(**loaded.example())


@pytest.mark.parametrize("make", [toys.vit, toys.bert, toys.clip, toys.t5, toys.bart, toys.lxmert])
def test_example_inputs_run_without_processors(make: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    for path in folder.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()
    loaded = load(str(folder))
    loaded.model(**loaded.example())


def test_without_a_tokenizer_none_is_invented(tmp_path: Path) -> None:
    folder = toys.bert(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(InputError, match="no tokenizer lies beside the model"):
        load(str(folder)).prepare(text="a cat")


def test_without_an_image_processor_pictures_are_plain(tmp_path: Path) -> None:
    folder = toys.vit(tmp_path / "model")
    (folder / "preprocessor_config.json").unlink()
    loaded = load(str(folder))
    inputs, display = loaded.prepare(image=toys.picture(tmp_path / "p.png"))
    assert inputs["pixel_values"].shape == (1, 3, 16, 16)
    assert 0 <= inputs["pixel_values"].min() <= inputs["pixel_values"].max() <= 1
    assert "no image processor lies beside the model" in display.notes[0]
    torch.save(inputs, tmp_path / "p.pt")
    _, display = loaded.prepare(input=tmp_path / "p.pt")
    assert not [*loaded.notes, *display.notes]  # tensors are taken as they are


def test_what_a_model_cannot_take_is_said(tmp_path: Path) -> None:
    picture = toys.picture(tmp_path / "p.png")
    vit, bert = load(str(toys.vit(tmp_path / "vit"))), load(str(toys.bert(tmp_path / "bert")))
    with pytest.raises(InputError, match="takes no text"):
        vit.prepare(text="a cat")
    with pytest.raises(InputError, match="takes no picture"):
        bert.prepare(image=picture)
    with pytest.raises(InputError, match="takes no decoder text"):
        bert.prepare(text="a cat", decoder_text="it")
    with pytest.raises(InputError, match="nothing to explain"):
        bert.prepare()


def test_half_precision_inputs_follow_the_model(tmp_path: Path) -> None:
    folder = toys.vit(tmp_path / "model")
    hf.ViTForImageClassification.from_pretrained(folder).bfloat16().save_pretrained(folder)
    loaded = load(str(folder))
    inputs, _ = loaded.prepare(image=toys.picture(tmp_path / "p.png"))
    assert loaded.model.dtype == inputs["pixel_values"].dtype == torch.bfloat16


def test_pickled_weights_need_a_flag(tmp_path: Path) -> None:
    folder = toys.bert(tmp_path / "model")
    weights = hf.BertForSequenceClassification.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(UnsafeFileError, match=r"expected: model\.safetensors") as caught:
        load(str(folder))
    assert "--allow-pickle" in str(caught.value)
    loaded = load(str(folder), LoadOptions(allow_pickle=True))
    assert torch.equal(loaded.model.state_dict()["classifier.weight"], weights["classifier.weight"])


def test_code_beside_the_weights_does_not_run(tmp_path: Path) -> None:
    folder = toys.bert(tmp_path / "model")
    mark = tmp_path / "ran"
    (folder / "modelling.py").write_text(f"open({str(mark)!r}, 'w')\nclass Config: ...\nclass Model: ...\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "architectures": ["OwnModel"]}
    config["auto_map"] = {"AutoConfig": "modelling.Config", "AutoModel": "modelling.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsafeFileError, match="--allow-remote-code"):
        load(str(folder))
    assert not mark.exists()


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _broken_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "bert", ')


def _unknown_type(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "never_heard_of"}')


def _unknown_class(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"architectures": ["BertForSequenceClasification"]})
    )


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _truncated_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-2000])


def _empty_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def _other_weights(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 32}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_no_config, "has no configuration"),
        (_broken_config, "configuration cannot be loaded"),
        (_unknown_type, "never_heard_of"),
        (_unknown_class, "'BertForSequenceClassification'"),
        (_no_weights, "weights cannot be loaded"),
        (_truncated_weights, "weights cannot be loaded"),
        (_empty_weights, "weights cannot be loaded"),
        (_other_weights, "weights cannot be loaded"),
    ],
)
def test_broken_folders(spoil: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    folder = toys.bert(tmp_path / "model")
    spoil(folder)
    with pytest.raises(LoadError, match=message) as caught:
        load(str(folder))
    assert str(folder) in str(caught.value)


def test_missing_tensors_are_told(tmp_path: Path) -> None:
    folder = toys.bert(tmp_path / "model")
    hf.BertModel.from_pretrained(folder).save_pretrained(tmp_path / "bare")
    (folder / "model.safetensors").write_bytes((tmp_path / "bare" / "model.safetensors").read_bytes())
    notes = load(str(folder)).notes
    assert "not in the file and have random values: classifier.bias" in notes[0]


def test_a_configuration_without_a_class_gives_the_bare_model(tmp_path: Path) -> None:
    folder = toys.bert(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    del config["architectures"]
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load(str(folder))
    assert type(loaded.model) is hf.BertModel
    assert any("names no class" in note for note in loaded.notes)


def test_random_weights_need_no_file_and_repeat(tmp_path: Path) -> None:
    folder = toys.bert(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    before = torch.random.get_rng_state()
    first, second = (load(str(folder), LoadOptions(random_weights=True)).model for _ in range(2))
    assert torch.equal(first.classifier.weight, second.classifier.weight)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_of_the_folder_is_no_model(name: str, tmp_path: Path) -> None:
    folder = toys.bert(tmp_path / "model")
    with pytest.raises(LoadError, match="give the folder"):
        load(str(folder / name))


def test_names_that_are_nothing(tmp_path: Path) -> None:
    for name in (str(tmp_path / "nowhere"), "./nowhere", "a/b/c"):
        with pytest.raises(LoadError, match="no such file or folder"):
            load(name)
    with pytest.raises(LoadError, match="no model was named"):
        load("  ")


def test_the_hub_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(hf.AutoConfig, "from_pretrained", offline)
    monkeypatch.setattr(hf.PretrainedConfig, "get_config_dict", offline)
    with pytest.raises(LoadError, match="HF_HUB_OFFLINE"):
        load("somebody/something")


def test_loading_leaves_the_logging_of_transformers_alone(tmp_path: Path) -> None:
    before = hf.utils.logging.get_verbosity(), hf.utils.logging.is_progress_bar_enabled()
    load(str(toys.vit(tmp_path / "model")))
    assert before == (hf.utils.logging.get_verbosity(), hf.utils.logging.is_progress_bar_enabled())


def test_an_unknown_device(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="cannot be moved"):
        load(str(toys.vit(tmp_path / "model")), LoadOptions(device="nonsense:0"))


OWN_CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel


class OwnConfig(PretrainedConfig):
    model_type = "own"


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.line = torch.nn.Linear(2, 2)
        self.post_init()

    def forward(self, values):
        return self.line(values)
"""


def test_code_beside_the_weights_runs_where_it_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "own.py").write_text(OWN_CODE)
    config = {
        "model_type": "own",
        "architectures": ["OwnModel"],
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"line.weight": torch.eye(2), "line.bias": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(UnsafeFileError):
        load(str(folder))
    model = load(str(folder), LoadOptions(allow_remote_code=True)).model
    assert type(model).__name__ == "OwnModel"
    assert torch.equal(model.line.weight, torch.eye(2))
