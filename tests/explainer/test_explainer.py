"""The explainer: any model with any processor, asked in one call; explanations are listed and kept."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_folders as toys
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

import fxplain
from fxplain.tasks import Task

WORDS = ["[UNK]", "where", "is", "paris", "france", "italy", "?", "in"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    for make in (toys.vit, toys.bert, toys.clip, toys.t5):
        make(place / make.__name__)
    toys.picture(place / "halves.png")
    toys.python_file(place)
    return place


def test_a_folder_is_asked_in_one_call(folder: Path) -> None:
    explainer = fxplain.Explainer.from_pretrained(folder / "bert")
    assert repr(explainer) == "Explainer(bert with tokenizer)"
    explanation = explainer("the movie was good", target="positive")
    assert explanation.target == ((1,),)
    assert explanation.question.startswith("the score of class 1 'positive', probability 0.")
    assert [token.text for token in explanation.tokens] == [
        "[CLS]",
        "the",
        " movie",
        " was",
        " good",
        "[SEP]",
    ]
    own = fxplain.explain(explainer.model, explainer.prepare("the movie was good")[0], target=1)
    torch.testing.assert_close(explanation.relevance["input_ids"], own.relevance["input_ids"])
    assert explanation.probability == pytest.approx(own.questions[0].probability)
    top = explanation.top(2)
    values = own.relevance["input_ids"][0].tolist()
    assert [token.relevance for token in top] == sorted(values, reverse=True)[:2]
    assert "2 attentions" in repr(explainer)


def test_shares_are_of_the_whole_and_the_row_that_is_read_has_none(folder: Path) -> None:
    explanation = fxplain.Explainer.from_pretrained(folder / "bert")("the movie was good")
    first, *others = explanation.tokens
    assert first.aside
    assert first.share == 0
    assert sum(token.share for token in others) == pytest.approx(1)
    assert first not in explanation.top(9)
    shares = torch.tensor([token.share for token in others])
    assert explanation.sharpness() == pytest.approx(float((-shares * shares.log()).sum().exp()), rel=1e-5)


def test_a_batch_of_texts(folder: Path) -> None:
    explainer = fxplain.Explainer.from_pretrained(folder / "bert")
    explanation = explainer(["the movie was good", "bad"], target=["positive", "negative"])
    assert explanation.target == ((1,), (0,))
    assert {token.sample for token in explanation.tokens} == {0, 1}
    assert explanation.top(1, sample=1)[0].sample == 1
    assert "and of 1 more samples" in repr(explanation)


def test_pictures_by_file_and_in_memory(folder: Path) -> None:
    explainer = fxplain.Explainer.from_pretrained(folder / "vit")
    path = folder / "halves.png"
    wanted = explainer(path, target="dog, hound")
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    for given in (str(path), picture, np.asarray(picture)):
        torch.testing.assert_close(explainer(given, target=1).relevance, wanted.relevance)
        torch.testing.assert_close(explainer(images=given, target=1).relevance, wanted.relevance)
    assert {token.place for token in wanted.tokens} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert wanted.display.images["pixel_values"][0].shape == (16, 16, 3)
    with pytest.raises(fxplain.InputError, match="this is no picture"):
        explainer(np.zeros((3, 4, 4), np.float32))


def test_picture_and_text(folder: Path) -> None:
    explanation = fxplain.Explainer.from_pretrained(folder / "clip")("a cat", images=folder / "halves.png")
    assert {token.space for token in explanation.tokens} == {"input_ids", "pixel_values"}


def test_pairs_of_texts_are_two_blocks_with_their_own_words(folder: Path) -> None:
    explainer = fxplain.Explainer.from_pretrained(folder / "bert")
    explanation = explainer("The movie", text_pair="was Good")
    assert explanation.display.tokens["input_ids"][0] == [
        "[CLS]", "The", " movie", "[SEP]", "was", " Good", "[SEP]",
    ]  # fmt: skip
    assert explanation.display.turns["input_ids"] == [((1, 3, "first text"), (4, 6, "second text"))]
    assert "first text" in explanation._repr_html_()
    same = explainer("the movie", text_pair="the movie was")
    assert same.display.tokens["input_ids"][0][3:] == ["[SEP]", "the", " movie", " was", "[SEP]"]
    with pytest.raises(fxplain.InputError, match="to each text belongs one second text"):
        explainer(["a", "cat"], text_pair="dog")


def test_tensors_need_no_processor(folder: Path) -> None:
    explainer = fxplain.Explainer.from_pretrained(folder / "bert")
    inputs = {"input_ids": torch.tensor([[2, 8, 13, 3]])}
    explanation = explainer(inputs, target="negative")
    assert [token.text for token in explanation.tokens] == ["[CLS]", "the", " movie", "[SEP]"]
    with pytest.raises(fxplain.InputError, match="tensors are the whole input"):
        explainer(inputs, text_pair="a")
    with pytest.raises(TypeError, match="there is no imges="):
        explainer("a", imges=3)  # type: ignore[call-overload]


# -- a person's own model


class Writer(nn.Module):
    """Says which word comes next; its input has a name of its own."""

    fxplain_task = Task("next token", outputs=("output",))

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = nn.Embedding(len(WORDS), 8), nn.Linear(8, len(WORDS))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        out: Tensor = self.head(self.layer(self.words(ids), mask, is_causal=True))
        return out


def tokenizer() -> Tokenizer:
    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def spell(ids: Any, text: Any = None) -> list[str]:
    return [WORDS[i] for i in ids]


def by_hand(text: str) -> dict[str, Tensor]:
    return {"ids": torch.tensor([[WORDS.index(word) for word in text.split()]])}


PROCESSORS: dict[str, Callable[[], dict[str, Any]]] = {
    "tokenizers": lambda: {"processor": tokenizer()},
    "transformers": lambda: {"processor": hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer())},
    "function": lambda: {"processor": by_hand, "spell": spell, "labels": WORDS},
    "function and display": lambda: {
        "processor": lambda text: (
            by_hand(text),
            fxplain.Display(tokens={"ids": [text.split()]}, labels=WORDS),
        ),
        "labels": WORDS,
    },
    "tensor": lambda: {"processor": lambda text: by_hand(text)["ids"], "spell": spell, "labels": WORDS},
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_any_module_with_any_processor(name: str) -> None:
    explainer = fxplain.Explainer(Writer().eval(), **PROCESSORS[name]())
    explanation = explainer("where is paris", target="france")
    assert explanation.target == ((2, 4),)
    assert [token.text.strip() for token in explanation.tokens] == ["where", "is", "paris"]
    said = explanation.question.replace("' france'", "'france'")
    assert said.startswith("the score of 'france' as the next token after '")
    assert "paris" in said


def test_names_within_sums_and_places() -> None:
    explainer = fxplain.Explainer(Writer().eval(), tokenizer())
    explanation = explainer("where is paris", target=fxplain.contrast("france", "italy"))
    assert str(explanation.target[0]) == "(2, 4) - (2, 5)"
    assert "france' against ' italy'" in explanation.question
    assert explainer("where is paris", target=(1, "in")).target == ((1, 7),)
    with pytest.raises(fxplain.TargetError, match="did you mean ' france'"):
        explainer("where is paris", target="franc")


def test_what_is_no_processor_is_refused() -> None:
    with pytest.raises(fxplain.InputError, match="the processor can make no inputs"):
        fxplain.Explainer(Writer(), 3)
    with pytest.raises(fxplain.InputError, match="nothing that turns pictures or texts"):
        fxplain.Explainer(Writer().eval())("where is paris")


def test_a_factory_of_ones_own(folder: Path) -> None:
    explainer = fxplain.Explainer.from_pretrained(f"{folder}/factories.py:with_inputs")
    assert explainer(target=2).target == ((2,),)


# -- chats


CHAT = (
    "{% for m in messages %}<|{{ m.role }}|> {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


def chatty() -> Any:
    words = [*WORDS, "<|user|>", "<|assistant|>", "<|system|>"]
    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    whole = hf.PreTrainedTokenizerFast(tokenizer_object=made)
    whole.add_special_tokens({"additional_special_tokens": words[-3:]})
    whole.chat_template = CHAT
    return whole


def test_messages_go_through_the_template_and_turns_are_marked() -> None:
    config = hf.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=11, bos_token_id=0, eos_token_id=0)
    explainer = fxplain.Explainer(hf.GPT2LMHeadModel(config).eval(), chatty())
    messages = [{"role": "system", "content": "in france"}, {"role": "user", "content": "where is paris"}]
    explanation = explainer(messages, target="france")
    display = explanation.display
    assert display.turns["input_ids"] == [((0, 3, "system"), (3, 7, "user"), (7, 8, "assistant"))]
    texts = display.tokens["input_ids"][0]
    assert [str(text).strip() for text in texts[:4]] == ["<|system|>", "in", "france", "<|user|>"]
    assert [text.special for text in texts[:2]] == [True, False]  # type: ignore[attr-defined]
    plain = fxplain.Explainer(hf.GPT2LMHeadModel(config).eval(), tokenizer())
    with pytest.raises(fxplain.InputError, match="no chat template"):
        plain(messages)


# -- sounds


def test_sounds_by_file_and_in_memory(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for part in toys.hearer(800):
        part.save_pretrained(tmp_path / "model")
    explainer = fxplain.Explainer.from_pretrained(tmp_path / "model")
    sound = np.sin(np.arange(400) / 9).astype(np.float32)
    with wave.open(str(tmp_path / "s.wav"), "wb") as file:
        file.setparams((2, 2, 800, 0, "NONE", ""))
        file.writeframes((np.stack([sound, sound], -1) * 32767).astype("<i2").tobytes())
    found = [explainer(audio=one, target=1) for one in (tmp_path / "s.wav", sound, (sound, 800))]
    found.append(explainer(tmp_path / "s.wav", target=1))
    for one in found:
        torch.testing.assert_close(one.score, found[1].score, rtol=1e-2, atol=1e-3)
        assert len(one.tokens) == one.relevance["input_values"].shape[1]
    assert "resampled from 1600 to 800" in explainer(audio=(sound, 1600), target=1).notes[0]
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    with pytest.raises(fxplain.InputError, match="cannot be read as a sound"):
        explainer(tmp_path / "bad.wav")


# -- kept and shown


@pytest.fixture(scope="module")
def explanations(folder: Path) -> dict[str, fxplain.Explanation]:
    text = fxplain.Explainer.from_pretrained(folder / "bert")
    both = fxplain.Explainer.from_pretrained(folder / "clip")
    writer = fxplain.Explainer(Writer().eval(), tokenizer())
    return {
        "text": text("the movie was good", target="positive"),
        "batch": text(["the movie", "a cat"]),
        "pair": text("the movie", text_pair="was good"),
        "picture and texts": both(["a cat", "a dog"], images=folder / "halves.png", target=1),
        "contrast": writer("where is paris", target=fxplain.contrast("france", "italy")),
        "inputs": text("the movie was good", target="positive", method="attnlrp"),
    }


NAMES = ["text", "batch", "pair", "picture and texts", "contrast", "inputs"]


@pytest.mark.parametrize("suffix", [".json", ".npz", ".safetensors"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_is_read_again(
    name: str, suffix: str, explanations: dict[str, fxplain.Explanation], tmp_path: Path
) -> None:
    explanation = explanations[name]
    path = tmp_path / f"out{suffix}"
    explanation.save(path)
    again = fxplain.load(path)
    assert again.to_dict() == explanation.to_dict()
    assert again.tokens == explanation.tokens
    assert (again.target, again.question) == (explanation.target, explanation.question)
    assert again.result.attentions == explanation.result.attentions
    for space, values in explanation.relevance.items():
        assert torch.equal(again.relevance[space], values)
    for space, pictures in explanation.display.images.items():
        assert all(np.array_equal(a, b) for a, b in zip(again.display.images[space], pictures, strict=True))
    assert again._repr_html_() == explanation._repr_html_()


def test_plain_results_are_read_too_and_other_files_are_refused(tmp_path: Path) -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    result = fxplain.explain(model, torch.randn(1, 5, 8), target=(0, 3))
    result.save(tmp_path / "out.json")
    assert torch.equal(fxplain.load(tmp_path / "out.json").relevance["src"], result.relevance["src"])
    facts = json.loads((tmp_path / "out.json").read_text())
    (tmp_path / "old.json").write_text(json.dumps(facts | {"format": "fxplain result 1"}))
    with pytest.raises(fxplain.LoadError, match="another format or version"):
        fxplain.load(tmp_path / "old.json")
    for content in ("{}", "[1", ""):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(fxplain.LoadError, match="holds no explanation"):
            fxplain.load(tmp_path / "bad.json")
    with pytest.raises(fxplain.LoadError, match="no such explanation"):
        fxplain.load(tmp_path / "none.npz")


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_shows_words_and_pictures_in_a_box_of_its_own(
    name: str, explanations: dict[str, fxplain.Explanation]
) -> None:
    from render.test_pages import Page

    explanation = explanations[name]
    text = explanation._repr_html_()
    page = Page(text)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    rules = text.partition("<style>")[2].partition("</style>")[0].strip().splitlines()
    assert all(
        part.strip().startswith(".fxplain") for rule in rules for part in rule.partition("{")[0].split(",")
    )
    for token in explanation.tokens:
        assert token.text.strip() in page.text
    assert ("img" in {tag for tag, _ in page.tags}) == bool(explanation.display.images)
    assert explanation.question.splitlines()[0] in page.text


@pytest.mark.parametrize("name", ["text", "picture and texts"])
def test_figures(name: str, explanations: dict[str, fxplain.Explanation], tmp_path: Path) -> None:
    figure = explanations[name].plot()
    figure.savefig(tmp_path / "out.svg")
    assert (tmp_path / "out.svg").read_text().startswith("<?xml")
    assert len(figure.axes) >= 1


def test_tables(explanations: dict[str, fxplain.Explanation], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    table = explanations["text"].to_pandas()
    assert list(table["text"]) == [token.text for token in explanations["text"].tokens]
    assert table["share"].sum() == pytest.approx(1)
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(fxplain.OutputError, match=r"fxplain\[pandas\]"):
        explanations["text"].to_pandas()
