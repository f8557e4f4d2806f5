"""``fxplain explain-all``: folders of pictures and files of texts, into a folder that can be resumed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_folders as toys
from typer.testing import CliRunner

import fxplain
from fxplain.cli.commands import app
from fxplain.cli.dataset import _device


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["explain-all", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    model, data, out = toys.vit(tmp_path / "vit"), tmp_path / "data", tmp_path / "out"
    (data / "more").mkdir(parents=True)
    picture = toys.picture(tmp_path / "p.png")
    for name in ("b.png", "a.png", "more/c.png"):
        shutil.copy(picture, data / name)
    (data / "notes.txt").write_text("no picture")
    assert "explained 3 of 3" in run(model, data, "--out", out, "--target", "cat", "--batch-size", 2)
    found = fxplain.Explanations(out)
    assert [record.key for (record,) in found.values()] == ["a.png", "b.png", "more/c.png"]
    assert {record.relevance["pixel_values"].shape for (record,) in found.values()} == {(2, 2)}
    shutil.copy(picture, data / "z.png")
    assert "explained 4 of 4" in run(model, data, "--out", out, "--target", "cat")
    assert "another job" in run(model, data, "--out", out, code=1)


def test_a_file_of_texts(tmp_path: Path) -> None:
    model = toys.bert(tmp_path / "bert", toys.tokenizer())
    (tmp_path / "texts").write_text("a photo of the cat\n\ngood movie\n")
    assert "explained 2 of 2" in run(model, tmp_path / "texts", "-o", tmp_path / "out", "-m", "rollout")
    found = fxplain.Explanations(tmp_path / "out")
    assert [record.key for (record,) in found.values()] == ["line 1", "line 3"]
    assert [len(record.relevance["input_ids"]) for (record,) in found.values()] == [7, 4]


def test_tensors_and_errors(tmp_path: Path) -> None:
    toys.python_file(tmp_path)
    model, data = toys.vit(tmp_path / "vit"), tmp_path / "data"
    data.mkdir()
    torch.save({"pixel_values": torch.randn(1, 3, 16, 16)}, data / "good.pt")
    torch.save({"pixel_values": torch.randn(1, 3, 9, 9)}, data / "wrong.pt")
    assert "the model raised" in run(model, data, "-o", tmp_path / "out", code=1)
    text = run(model, data, "-o", tmp_path / "out", "--keep-errors")
    assert "explained 2 of 2" in text
    assert "refused   wrong.pt: the model raised" in text
    assert "nothing to explain" in run(model, tmp_path / "none", "-o", tmp_path / "out", code=1)
    assert "takes one method" in run(model, data, "-o", tmp_path / "out", "-m", "rollout,relevancy", code=1)


def test_each_process_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _device("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert (_device("cuda"), _device("cpu"), _device(None)) == ("cuda:3", "cpu", None)


NAMED = """
import torch
from fxplain.adapters import Loaded
from fxplain.tasks import Task
from toy_folders import Attend


def build():
    model = Attend()
    model.fxplain_task = Task("classes", outputs=("output",))
    return Loaded(model, "named", inputs=torch.ones(1, 5, 8), labels={0: "cat", 1: "dog", 2: "bird"})
"""


def test_classes_have_their_names(tmp_path: Path) -> None:
    (tmp_path / "named.py").write_text(NAMED)
    data = tmp_path / "data"
    data.mkdir()
    torch.save(torch.randn(1, 5, 8), data / "one.pt")
    assert "explained 1 of 1" in run(
        f"{tmp_path / 'named.py'}:build", data, "-o", tmp_path / "out", "-t", "dog"
    )
    ((record,),) = fxplain.Explanations(tmp_path / "out").values()
    assert record.question.startswith("the score of class 1 'dog', probability 0.")


def test_a_gallery_shows_what_was_found(tmp_path: Path) -> None:
    model, data, out = toys.vit(tmp_path / "vit"), tmp_path / "data", tmp_path / "out"
    data.mkdir()
    picture = toys.picture(tmp_path / "p.png")
    for name in ("b.png", "a.png", "c.png"):
        shutil.copy(picture, data / name)
    torch.save({"pixel_values": torch.randn(1, 3, 9, 9)}, data / "wrong.pt")
    assert "gallery.html" in run(model, data, "--out", out, "--target", "cat", "--keep-errors")
    text = (out / "gallery.html").read_text()
    places = [text.index(f"<h2>{name}.png</h2>") for name in "abc"]
    assert places == sorted(places)
    assert text.count("<img") == 6  # each picture and what lies over it
    assert text.count("the score of class 0 &#39;cat&#39;") == 3
    assert "wrong.pt was refused" in text
    run(model, data, "--out", out, "--target", "cat", "--keep-errors", "--gallery", 2)
    text = (out / "gallery.html").read_text()
    assert "of 4 inputs the first 2 are shown" in text
    assert "c.png</h2>" not in text


def test_a_gallery_of_texts_sets_the_row_that_was_read_aside(tmp_path: Path) -> None:
    model = toys.bert(tmp_path / "bert", toys.tokenizer())
    (tmp_path / "texts").write_text("a photo of the cat\ngood movie\n")
    run(model, tmp_path / "texts", "-o", tmp_path / "out", "-m", "relevancy")
    record = fxplain.Explanations(tmp_path / "out")[0][0]
    assert record.read == (("input_ids", 0),)
    text = (tmp_path / "out" / "gallery.html").read_text()
    assert "photo</span>" in text
    assert "movie</span>" in text
    alone = fxplain.Explainer.from_pretrained(model)("good movie")
    assert f"{alone.top(1)[0].relevance:.4g}" in text  # and not the read token's own
    run(model, tmp_path / "texts", "-o", tmp_path / "other", "--gallery", 0)
    assert not (tmp_path / "other" / "gallery.html").exists()


@pytest.mark.packages
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_cards_stand_side_by_side_and_fit_a_telephone(browser: Any, tmp_path: Path, scheme: str) -> None:
    model, data = toys.vit(tmp_path / "vit"), tmp_path / "data"
    data.mkdir()
    for name in ("a.png", "b.png"):
        toys.picture(data / name)
    run(model, data, "--out", tmp_path / "out")
    page = browser.new_context(color_scheme=scheme).new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(f"file://{tmp_path}/out/gallery.html")
    first, second = (page.locator(".cards section").nth(i).bounding_box() for i in (0, 1))
    assert first["y"] == second["y"]
    assert second["x"] > first["x"] + first["width"]
    page.set_viewport_size({"width": 360, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.locator(".cards section").nth(1).bounding_box()["y"] > first["y"]
    assert not said
