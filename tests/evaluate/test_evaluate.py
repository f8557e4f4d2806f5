"""Evaluations of a traced model: what is removed is removed, and good methods come out as good."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import fxplain
from fxplain import evaluate
from fxplain.cli.commands import app
from fxplain.demo import load_demo
from fxplain.demo.held_out import BLACK, questions
from fxplain.errors import InputError, OutputError, UnknownNameError

METHODS = ["relevancy", "rollout", "raw_attention", "random"]


@pytest.fixture(scope="module")
def asked() -> Any:
    return questions(40)


@pytest.fixture(scope="module")
def traced(asked: Any) -> Any:
    return fxplain.trace(load_demo().model, {"pixel_values": asked.pixel_values[:20]})


@pytest.fixture(scope="module")
def perturbed(traced: Any, asked: Any) -> Any:
    return evaluate.perturbation(
        traced,
        {"pixel_values": asked.pixel_values},
        asked.targets,
        METHODS,
        removal=evaluate.Pixels(value=BLACK),
        steps=(0.1, 0.5, 0.9),
        score=lambda output, part: asked.named_right(output.logits, part),
        batch=20,
    )


class Words(nn.Module):
    """The class of a text is that of the only word that has one: words 1..9 mean nothing, 10 + c is c."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(13, 16)
        self.attention = nn.MultiheadAttention(16, 1, batch_first=True)
        self.head = nn.Linear(16, 3, bias=False)
        with torch.no_grad():
            self.embed.weight.copy_(torch.eye(13, 16))
            self.head.weight.copy_(torch.eye(16)[10:13])
            weights = self.attention.in_proj_weight
            weights.zero_()
            weights[:16, 0] = 4.0  # the query of [CLS], word 0, asks for words with a class
            weights[16:32, 10:13] = 1.0
            weights[32:] = torch.eye(16)
            self.attention.out_proj.weight.copy_(torch.eye(16))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.embed(input_ids)
        found, _ = self.attention(x, x, x, key_padding_mask=attention_mask == 0, need_weights=False)
        return {"logits": self.head(found[:, 0])}


@pytest.fixture(scope="module")
def texts() -> dict[str, Tensor]:
    """[CLS], then words of which one has a class; the second text is padded by two."""
    ids = torch.tensor([[0, 3, 11, 4, 5, 6], [0, 7, 8, 12, 0, 0]])
    return {"input_ids": ids, "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2])}


@pytest.fixture(scope="module")
def reader(texts: Any) -> Any:
    return fxplain.trace(Words().eval(), texts)


def test_relevancy_beats_rollout_beats_chance_on_the_demo(perturbed: Any) -> None:
    scores = {method: row["SRG"].value for method, row in perturbed.cells.items()}
    assert scores["relevancy"] > scores["rollout"] > scores["random"] + 0.3
    assert abs(scores["random"]) < 0.2
    # the two saw the same samples: their difference is sure, though their own intervals are wide
    assert perturbed.difference("SRG", "relevancy", "rollout").low > 0


def test_samples_are_independent_of_the_batches(perturbed: Any, traced: Any, asked: Any) -> None:
    again = evaluate.perturbation(
        traced,
        {"pixel_values": asked.pixel_values[:7]},
        asked.targets[:7],
        ["relevancy"],
        removal=evaluate.Pixels(value=BLACK),
        steps=(0.1, 0.5, 0.9),
        score=lambda output, part: asked.named_right(output.logits, part),
        batch=4,
    )
    for name in ("SRG", "positive AUC"):
        assert torch.equal(again.rows["relevancy"][name], perturbed.rows["relevancy"][name][:7])


def test_the_demo_localises_what_was_asked_for(traced: Any, asked: Any) -> None:
    table = evaluate.localisation(
        traced, {"pixel_values": asked.pixel_values}, asked.masks, asked.targets, METHODS, batch=20
    )
    cells = table.cells
    assert cells["relevancy"]["pointing game"].value >= 0.9
    assert 0.3 <= cells["rollout"]["pointing game"].value <= 0.7
    for name in ("AP", "mIoU", "pixel accuracy", "share inside"):
        assert cells["relevancy"][name].value > cells["rollout"][name].value > cells["random"][name].value
        assert table.difference(name, "relevancy", "random").low > 0


def test_sanity_of_methods(traced: Any, asked: Any) -> None:
    inputs = {"pixel_values": asked.pixel_values[:20]}
    arguments: dict[str, Any] = {"space": "pixel_values", "batch": 20}
    other = evaluate.class_sensitivity(
        traced, inputs, asked.targets[:20], asked.others[:20], METHODS, **arguments
    ).cells
    assert other["rollout"]["rank correlation"].value == pytest.approx(1.0)
    assert other["relevancy"]["rank correlation"].value < 0.6
    shuffled = evaluate.randomisation(traced, inputs, asked.targets[:20], METHODS, **arguments).cells
    assert shuffled["relevancy"]["rank correlation"].value < 0.5
    assert shuffled["random"]["rank correlation"].value == pytest.approx(1.0)


def test_deleted_tokens_are_gone_and_the_rest_keep_their_order(texts: Any) -> None:
    removal = evaluate.Delete("input_ids", mask="attention_mask", first=1)
    assert removal.removable(texts).tolist() == [[False] + [True] * 5, [False] + [True] * 3 + [False] * 2]
    kept = torch.tensor([[1, 0, 1, 1, 0, 1], [1, 1, 0, 0, 1, 1]]).bool()
    left = removal.apply(texts, kept)
    assert left["input_ids"].tolist() == [[0, 11, 4, 6], [0, 7, 0, 0]]
    assert left["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    nothing = removal.apply(texts, torch.zeros(2, 6, dtype=torch.bool))
    assert nothing["input_ids"].tolist() == nothing["attention_mask"].tolist() == [[0], [0]]
    with pytest.raises(InputError, match="different numbers of tokens"):
        evaluate.Delete("input_ids").apply(texts, kept[:, [0, 1, 2, 3, 3, 3]])


def test_deletion_is_the_same_as_a_shorter_text(reader: Any, texts: Any) -> None:
    """What fills up the shorter texts of a batch changes nothing."""
    removal = evaluate.Delete("input_ids", mask="attention_mask", first=1)
    kept = torch.tensor([[1, 0, 1, 1, 1, 1], [1, 1, 0, 1, 1, 1]]).bool()
    together = reader.model(**removal.apply(texts, kept))["logits"]
    alone = reader.model(torch.tensor([[0, 7, 12]]), torch.ones(1, 3))["logits"]
    torch.testing.assert_close(together[1:], alone)


def test_replaced_tokens_and_pixels(texts: Any) -> None:
    kept = torch.tensor([[1, 0, 1, 1, 0, 1], [1, 1, 0, 0, 1, 1]]).bool()
    left = evaluate.Replace("input_ids", 9).apply(texts, kept)
    assert left["input_ids"].tolist() == [[0, 9, 11, 4, 9, 6], [0, 7, 9, 9, 0, 0]]
    picture = {"pixel_values": torch.arange(8.0).reshape(1, 2, 2, 2)}
    mask = torch.tensor([[True, False, True, True]])
    black = evaluate.Pixels(value=(-1.0, -2.0)).apply(picture, mask)["pixel_values"]
    assert black.tolist() == [[[[0.0, -1.0], [2.0, 3.0]], [[4.0, -2.0], [6.0, 7.0]]]]
    flat = {"pixel_values": torch.full((1, 3, 9, 9), 5.0)}
    blurred = evaluate.Pixels(blur=1.5).apply(flat, torch.zeros(1, 81, dtype=torch.bool))
    torch.testing.assert_close(blurred["pixel_values"], flat["pixel_values"])


def test_words_that_matter(reader: Any, texts: Any, tmp_path: Any) -> None:
    inputs = {name: value.repeat(4, 1) for name, value in texts.items()}
    removal = evaluate.Delete("input_ids", mask="attention_mask", first=1)
    table = evaluate.perturbation(
        reader, inputs, None, ["relevancy"], removal=removal, steps=(0.34, 0.7), batch=8
    )
    assert table.cells["relevancy"]["positive AUC"].value < 1.0
    assert table.cells["relevancy"]["negative AUC"].value == 1.0
    marked = inputs["input_ids"] >= 10
    words = evaluate.rationales(
        reader, inputs, marked, None, ["relevancy"], counted=removal.removable(inputs), k=(1, 2)
    )
    assert words.cells["relevancy"]["top token"].value == 1.0
    assert words.cells["relevancy"]["AP"].value == 1.0
    assert words.cells["relevancy"]["F1@2"].value == pytest.approx(2 / 3)
    words.save(tmp_path / "words.png")  # with F1 over k
    assert (tmp_path / "words.png").read_bytes().startswith(b"\x89PNG")


def test_the_true_source_is_found(reader: Any, texts: Any) -> None:
    sources = torch.tensor([2, 3])  # the word with a class
    counted = texts["attention_mask"].bool()
    table = evaluate.alignment(
        reader, texts, sources, None, ["relevancy"], space="input_ids", counted=counted
    )
    assert table.cells["relevancy"]["alignment share"].value == 1.0
    assert table.cells["relevancy"]["AP"].value == 1.0
    elsewhere = evaluate.alignment(reader, texts, sources - 1, None, ["relevancy"], space="input_ids")
    assert elsewhere.cells["relevancy"]["alignment share"].value == 0.0
    with pytest.raises(UnknownNameError, match="no token space"):
        evaluate.alignment(reader, texts, sources, space="words")


def test_the_score_itself_can_be_watched(reader: Any, texts: Any) -> None:
    removal = evaluate.Replace("input_ids", 1, "attention_mask", first=1)
    table = evaluate.perturbation(
        reader, texts, None, ["relevancy"], removal=removal, steps=(0.0, 1.0), score="target"
    )
    logits = reader.model(**texts)["logits"].amax(1)
    assert table.curves is not None
    torch.testing.assert_close(table.curves.positive["relevancy"][:, 0], logits.double())
    assert (table.curves.positive["relevancy"][:, 1].abs() < 1e-6).all()


def test_a_method_that_refuses_is_told() -> None:
    model = nn.Transformer(8, 2, 1, 1, 16, batch_first=True).eval()
    inputs = {"src": torch.randn(2, 5, 8), "tgt": torch.randn(2, 3, 8)}
    marked = torch.eye(5).bool()[:2]
    table = evaluate.rationales(
        fxplain.trace(model, inputs), inputs, marked, (2, 0), ["legrad", "relevancy"], space="src", k=(1,)
    )
    assert set(table.rows) == {"relevancy", "random"}
    assert "refused: legrad" in table.text()


def test_a_table_as_files(perturbed: Any, tmp_path: Any) -> None:
    for suffix in (".json", ".md", ".png"):
        perturbed.save(tmp_path / f"table{suffix}")
    found = json.loads((tmp_path / "table.json").read_text())
    assert next(iter(found["scores"])) == "relevancy"
    assert len(found["curves"]["positive"]["rollout"]) == 3
    assert "| `relevancy` |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OutputError, match="cannot be saved"):
        perturbed.save(tmp_path / "table.csv")
    with pytest.raises(UnknownNameError):
        perturbed.difference("SRG", "relevancy", "nothing")


def test_wrong_inputs_are_told(traced: Any, asked: Any) -> None:
    with pytest.raises(InputError, match="must have names"):
        evaluate.perturbation(traced, asked.pixel_values, removal=evaluate.Pixels())
    with pytest.raises(InputError, match="no protocol"):
        evaluate.perturbation(
            traced, {"pixel_values": asked.pixel_values}, removal=evaluate.Pixels(), steps="half"
        )


def test_the_command(tmp_path: Any) -> None:
    out = tmp_path / "scores.json"
    arguments = ["evaluate", "--count", "6", "--method", "relevancy", "--steps", "pixels", "--out", str(out)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "perturbation of pixel_values (6 samples, 95 % intervals)" in done.output
    assert "mIoU" in done.output
    assert json.loads(out.read_text())["samples"] == 6
    assert (tmp_path / "scores-localisation.json").exists()
    refused = CliRunner().invoke(app, ["evaluate", "--out", str(tmp_path / "scores.csv")])
    assert refused.exit_code == 1
    assert "cannot be written" in refused.output


def test_the_command_on_a_model_of_ones_own(tmp_path: Any) -> None:
    from fxplain.demo.assets import CANVAS_FOLDER, MODEL_FOLDER

    pictures = [f"--image={CANVAS_FOLDER / f'canvas-{i}.png'}" for i in range(2)]
    done = CliRunner().invoke(app, ["evaluate", str(MODEL_FOLDER), *pictures, "--method", "relevancy"])
    assert done.exit_code == 0, done.output
    assert "perturbation of pixel_values (2 samples" in done.output
