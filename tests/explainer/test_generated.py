"""Answers explained token by token: each row is what that token alone would have, from one run."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_folders as toys
import transformers as hf
from explainer.test_explainer import WORDS, Writer, chatty, spell, tokenizer
from render.test_pages import Page
from torch import Tensor, nn

import fxplain
from fxplain import several_targets
from fxplain.render.words import TokenText, words
from fxplain.targets import log_probability
from fxplain.tasks import Task

MESSAGES = [{"role": "system", "content": "in france"}, {"role": "user", "content": "where is paris"}]


def gpt2(**more: Any) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 11, "n_positions": 64}
    config = hf.GPT2Config(**sizes, bos_token_id=0, eos_token_id=None, **more)
    return hf.GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def explainer() -> fxplain.Explainer:
    return fxplain.Explainer(gpt2(), chatty())


@pytest.fixture(scope="module")
def chat(explainer: fxplain.Explainer) -> fxplain.Generated:
    return explainer.generate(MESSAGES, max_new_tokens=5)


def test_the_answer_is_the_models_own(explainer: fxplain.Explainer, chat: fxplain.Generated) -> None:
    ids = explainer.prepare(MESSAGES).inputs["input_ids"]
    made = explainer.model.generate(ids, max_new_tokens=5, do_sample=False)
    assert chat.answer.ids == tuple(made[0, ids.shape[1] :].tolist())
    assert (chat.answer.space, chat.answer.first, len(chat)) == ("input_ids", 8, 5)
    torch.testing.assert_close(explainer.explain_generated(MESSAGES, made).matrix, chat.matrix)
    torch.testing.assert_close(explainer.explain_generated(MESSAGES, chat.answer.ids).matrix, chat.matrix)


def test_each_row_is_the_explanation_of_that_token_alone(explainer: Any, chat: fxplain.Generated) -> None:
    ids = explainer.prepare(MESSAGES).inputs["input_ids"]
    whole = torch.cat([ids, torch.tensor([chat.answer.ids])], -1)
    for place, token in enumerate(chat.answer.ids):
        start = ids.shape[1] + place
        inputs = {"input_ids": whole[:, :start]}
        alone = fxplain.explain(explainer.model, inputs, target=token, method="auto")
        row = chat.matrix[place]
        torch.testing.assert_close(row[:start], alone.relevance["input_ids"][0], rtol=1e-4, atol=1e-7)
        assert not row[start:].any()
        assert chat.probabilities[place] == pytest.approx(alone.questions[0].probability, rel=1e-4)
        torch.testing.assert_close(chat.scores[place], alone.score[0], rtol=1e-4, atol=1e-6)
    assert chat.matrix.shape == (5, 12)
    assert (chat.matrix.sum(-1) > 0).all()


def test_one_forward_pass_serves_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    explainer = fxplain.Explainer(gpt2(), chatty())
    explainer.explain_generated("where is paris", [3, 4, 5, 6])
    runs, passes = [], []
    run, grad = several_targets.run_graph, torch.autograd.grad  # type: ignore[attr-defined]
    monkeypatch.setattr(several_targets, "run_graph", lambda *a: runs.append(1) or run(*a))
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: passes.append(1) or grad(*a, **k))
    explainer.explain_generated("where is paris", [3, 4, 5, 6])
    assert (len(runs), len(passes)) == (1, 1)


def test_columns_say_what_they_are(chat: fxplain.Generated) -> None:
    assert [column.part for column in chat.columns] == ["prompt"] * 8 + ["answer"] * 4
    assert [column.turn for column in chat.columns[:8]] == ["system"] * 3 + ["user"] * 4 + ["assistant"]
    assert chat.columns[2].text.strip() == "france"
    assert "".join(chat.answer.texts) == chat.text
    assert len(chat.questions) == 5
    assert chat.questions[0].startswith(
        f"the score of {str(chat.answer.texts[0])!r} as the next token after '"
    )


def test_notes_of_several_tokens_are_told_once() -> None:
    from fxplain.explainer.rows import merged

    notes = [
        "a",
        "23% of 4 lies on it",
        "41% of 4 lies on it",
        "7% of 5 lies on it",
        "a",
        "23% of 4 lies on it",
    ]
    assert merged(notes) == ("a", "23% to 41% of 4 lies on it", "7% of 5 lies on it")


def test_special_tokens_are_left_out_of_what_a_terminal_lists(chat: fxplain.Generated) -> None:
    from dataclasses import replace

    from fxplain.explainer.generated import rests

    special = chat[0].top(1)[0]
    texts = [
        TokenText(str(text), special=i == special.index)
        for i, text in enumerate(chat.display.tokens["input_ids"][0])
    ]
    marked = replace(chat, display=replace(chat.display, tokens={"input_ids": [texts]}))
    assert marked[0].top(1)[0].special
    assert rests(marked[0], 2) == ", ".join(f"{token} {token.share:.0%}" for token in chat[0].top(3)[1:])
    assert rests(marked[0]) in repr(marked)


def test_spans_are_sums(chat: fxplain.Generated) -> None:
    whole = chat[0:3]
    torch.testing.assert_close(whole.relevance["input_ids"][0], chat.matrix[:3].sum(0))
    torch.testing.assert_close(whole.score[0], chat.scores[:3].sum())
    assert whole.question.count("the score of") == 3
    text = "".join(chat.answer.texts[1:3])
    torch.testing.assert_close(
        chat.span(text[1:]).relevance["input_ids"][0],
        chat.matrix[[i for i in range(5) if _overlaps(chat, i, chat.text.find(text[1:]), len(text) - 1)]].sum(
            0
        ),
    )
    assert chat[-1].target == chat[4].target
    with pytest.raises(fxplain.UnknownNameError, match="no such part"):
        chat.span("Rome")
    with pytest.raises(IndexError):
        chat[5]


def _overlaps(chat: fxplain.Generated, place: int, start: int, size: int) -> bool:
    first = len("".join(chat.answer.texts[:place]))
    return first < start + size and first + len(chat.answer.texts[place]) > start


def test_the_sum_of_a_span_is_the_explanation_of_its_joint_score_up_to_what_maps_share(
    explainer: Any,
) -> None:
    found = explainer.explain_generated("where is paris", [3, 4], log_probability=True)
    for place, token in enumerate((3, 4)):
        target = log_probability((place - 2, token))
        alone = explainer({"input_ids": torch.tensor([[1, 2, 3, 3]])}, target=target)
        torch.testing.assert_close(found.scores[place], alone.score[0])
        torch.testing.assert_close(found.matrix[place], alone.relevance["input_ids"][0])
    assert found.questions[0].startswith("the log-probability of ")
    assert found.probabilities[0] == pytest.approx(float(found.scores[0].exp()), rel=1e-4)


def test_text_as_the_answer(explainer: fxplain.Explainer) -> None:
    by_text = explainer.explain_generated("where is paris", " in france")
    by_ids = explainer.explain_generated("where is paris", torch.tensor([[7, 4]]))
    torch.testing.assert_close(by_text.matrix, by_ids.matrix)
    assert by_text.text == " in france"


def test_encoder_decoder(tmp_path: Path) -> None:
    explainer = fxplain.Explainer.from_pretrained(toys.bart(tmp_path / "bart"))
    found = explainer.generate("the movie was good", max_new_tokens=4, settings={"forced_eos_token_id": None})
    assert found.answer.space == "decoder_input_ids"
    assert [c.part for c in found.columns if c.space == "input_ids"] == ["prompt"] * 6
    inputs = dict(explainer.prepare("the movie was good").inputs)
    for place in range(len(found)):
        said = [explainer.model.config.decoder_start_token_id, *found.answer.ids[:place]]
        inputs["decoder_input_ids"] = torch.tensor([said])
        alone = fxplain.explain(explainer.model, inputs, target=found.answer.ids[place])
        row = found.result.relevance["input_ids"][place]
        torch.testing.assert_close(row, alone.relevance["input_ids"][0], rtol=1e-4, atol=1e-7)
    assert "france" not in found.text


class Translator(nn.Module):
    """A person's own encoder-decoder, whose inputs have names of their own."""

    fxplain_task = Task("next token", outputs=("output",))

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = nn.Embedding(len(WORDS), 8), nn.Linear(8, len(WORDS))
        self.both = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)

    def forward(self, source: Tensor, said: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(said.shape[1])
        out: Tensor = self.head(
            self.both(self.words(source), self.words(said), tgt_mask=mask, tgt_is_causal=True)
        )
        return out


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_ones_own_modules_answer_too() -> None:
    explainer = fxplain.Explainer(Writer().eval(), tokenizer())
    found = explainer.generate("where is paris", max_new_tokens=3)
    ids = [1, 2, 3]
    for token in found.answer.ids:
        assert token == int(explainer.model(torch.tensor([ids]))[0, -1].argmax())
        ids.append(token)
    translator = fxplain.Explainer(Translator().eval(), spell=spell, labels=WORDS)
    inputs = (torch.tensor([[1, 2, 3]]), torch.tensor([[0]]))
    found = translator.generate(inputs, max_new_tokens=3, into="said")
    assert {c.space: c.part for c in found.columns} == {"source": "prompt", "said": "answer"}
    assert all(text in WORDS for text in found.answer.texts)


def test_masks_and_kinds_of_tokens_grow_with_the_answer() -> None:
    explainer = fxplain.Explainer(gpt2(), chatty())
    plain = explainer.explain_generated({"input_ids": torch.tensor([[1, 2, 3]])}, [4, 5])
    more = {
        "attention_mask": torch.ones(1, 3, dtype=torch.long),
        "token_type_ids": torch.zeros(1, 3, dtype=torch.long),
        "position_ids": torch.arange(3)[None],
    }
    kept = {name: value for name, value in more.items() if name != "token_type_ids"}
    found = explainer.explain_generated({"input_ids": torch.tensor([[1, 2, 3]]), **kept}, [4, 5])
    torch.testing.assert_close(found.matrix, plain.matrix)
    from fxplain.explainer.answer import longer

    grown = longer({"input_ids": torch.tensor([[1, 2, 3]]), **more}, "input_ids", [4, 5])
    assert {name: value[0, 3:].tolist() for name, value in grown.items()} == {
        "input_ids": [4, 5], "attention_mask": [1, 1], "token_type_ids": [0, 0], "position_ids": [3, 4],
    }  # fmt: skip


def test_what_cannot_be_answered_is_said(explainer: fxplain.Explainer, tmp_path: Path) -> None:
    with pytest.raises(fxplain.TargetError, match=r"' in' \+ ' france'|'in' \+ ' france'"):
        explainer("where is paris", target="in france")
    with pytest.raises(fxplain.InputError, match="one at a time"):
        explainer.generate({"input_ids": torch.tensor([[1, 2], [3, 4]])})
    with pytest.raises(fxplain.InputError, match="there is no answer"):
        explainer.explain_generated("where is paris", [])
    with pytest.raises(fxplain.InputError, match="which input the answer goes on"):
        explainer.generate("where is paris", into="said")
    with pytest.raises(fxplain.InputError, match="no tokenizer"):
        fxplain.Explainer(Writer().eval()).explain_generated(torch.tensor([[1]]), "in france")
    classifier = fxplain.Explainer.from_pretrained(toys.bert(tmp_path / "bert"))
    with pytest.raises(fxplain.InputError, match="which token comes next"):
        classifier.generate("the movie")
    with pytest.raises(fxplain.InputError, match="no ids of one answer"):
        explainer.explain_generated("where is paris", torch.rand(3))


# -- kept and shown


@pytest.mark.parametrize("suffix", [".json", ".npz", ".safetensors"])
def test_what_is_saved_is_read_again(chat: fxplain.Generated, suffix: str, tmp_path: Path) -> None:
    chat.save(tmp_path / f"out{suffix}")
    again = fxplain.load(tmp_path / f"out{suffix}")
    assert isinstance(again, fxplain.Generated)
    assert torch.equal(again.matrix, chat.matrix)
    assert (again.columns, again.answer, again.questions) == (chat.columns, chat.answer, chat.questions)
    assert again.to_dict() == chat.to_dict()
    assert again[1].question == chat[1].question


def data_of(text: str) -> dict[str, Any]:
    part = text.partition('<script type="application/json" id="data">')[2].partition("</script>")[0]
    found: dict[str, Any] = json.loads(part)
    return found


def test_the_page_has_all_numbers_and_runs_its_own_script_alone(
    chat: fxplain.Generated, tmp_path: Path
) -> None:
    import hashlib

    chat.save(tmp_path / "out.html")
    text = (tmp_path / "out.html").read_text()
    page = Page(text)
    data = data_of(text)
    values = np.frombuffer(base64.b64decode(data["values"]), "<f4").reshape(5, 12)
    np.testing.assert_array_equal(values, chat.matrix.numpy())
    scripts = page.all("script")
    assert [script.get("src") for script in scripts] == [None, None]
    code = text.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv")]
    assert policy == (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:; "
        f"script-src 'sha256-{digest}'"
    )
    assert [a["data-a"] for a in page.all("span") if "data-a" in a] == [str(i) for i in range(5)]
    assert [a["data-c"] for a in page.all("span") if "data-c" in a] == [
        *map(str, range(8, 12)),
        *map(str, range(8)),
    ]
    assert all(question in page.text for question in chat.questions)
    assert data["read"] == [[7], [8], [9], [10], [11]]


def test_hostile_tokens_are_text(chat: fxplain.Generated) -> None:
    from dataclasses import replace

    from fxplain.render.answer_page import answer_page

    bad = TokenText("</script><script>alert(1)</script>")
    display = replace(chat.display, tokens={"input_ids": [[bad] * 12]}, title=str(bad))
    text = answer_page(replace(chat, display=display, answer=replace(chat.answer, texts=(bad,) * 5)))
    assert text.count("<script") == 2
    assert "</script><script>alert" in data_of(text)["columns"][0]


def test_a_notebook_shows_the_page_in_a_frame(chat: fxplain.Generated) -> None:
    page = Page(chat._repr_html_())
    (frame,) = page.all("iframe")
    assert frame["sandbox"] == "allow-scripts"
    assert str(frame["srcdoc"]).startswith("<!doctype html>")


def test_pictures_and_tables(chat: fxplain.Generated, tmp_path: Path) -> None:
    chat.save(tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert chat.plot().axes[0].images[0].get_array().shape == (5, 12)  # type: ignore[union-attr]
    pytest.importorskip("pandas")
    table = chat.to_pandas()
    assert table.shape == (5, 12)
    assert table.columns.get_level_values("part").tolist() == [column.part for column in chat.columns]
    with pytest.raises(fxplain.OutputError, match="cannot be saved"):
        chat.save(tmp_path / "out.txt")


def test_words_are_made_of_tokens() -> None:
    texts = ["<s>", "The", " cap", "ital", "'s", ",", " 日", "本", "\n", "x"]
    tokens = [TokenText(text, special=text == "<s>") for text in texts]
    assert words(tokens) == [0, 1, 2, 2, 2, 3, 4, 5, 6, 7]
    assert words(["[CLS]", "play", "##ing", "[SEP]"]) == [0, 1, 1, 2]
