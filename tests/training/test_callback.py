"""Explanations while a model trains."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import toy_folders as toys
import transformers as hf
from PIL import Image

import fxplain
from fxplain.training import ExplainCallback, Folder, TensorBoard


class Writer:
    """Keeps what a SummaryWriter would write."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any, int]] = []

    def add_image(self, name: str, picture: Any, step: int, dataformats: str) -> None:
        assert dataformats == "HWC"
        self.seen.append((name, picture.shape, step))

    def add_text(self, name: str, text: str, step: int) -> None:
        self.seen.append((name, text, step))

    def flush(self) -> None:
        pass


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return hf.AutoModelForSequenceClassification.from_pretrained(toys.bert(tmp_path / "bert")).train()


def state(step: int) -> Any:
    return SimpleNamespace(global_step=step, is_world_process_zero=True)


def test_every_so_many_steps_an_overlay_is_written(model: Any, tmp_path: Path) -> None:
    writer = Writer()
    inputs = {"good": "the movie was good", "bad": "it was bad"}
    loggers: list[Any] = [Folder(tmp_path / "seen"), TensorBoard(writer)]
    callback = ExplainCallback(toys.tokenizer(), inputs, loggers, every=2, targets={"good": 1})
    before = torch.random.get_rng_state()
    callback.on_train_begin(None, state(0), None, model=model)
    for step in (1, 2, 3):
        with torch.no_grad():
            model.classifier.bias[1] += 1
        callback.on_step_end(None, state(step), None, model=model)
    callback.on_train_end(None, state(3), None, model=model)
    names = sorted(path.name for path in (tmp_path / "seen").iterdir())
    assert names == [f"{name}-{step:06d}.png" for name in ("bad", "good") for step in (0, 2, 3)]
    with Image.open(tmp_path / "seen" / names[0]) as picture:
        assert picture.width > 200
    assert [step for name, _, step in writer.seen if name == "explained/good"] == [0, 0, 2, 2, 3, 3]
    texts = [text for _, text, _ in writer.seen if isinstance(text, str)]
    assert texts[0] != texts[2]  # the weights had changed
    assert model.training
    assert torch.equal(before, torch.random.get_rng_state())


def test_what_cannot_be_explained_is_told_once(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    callback = ExplainCallback(toys.tokenizer(), {"x": "the cat"}, [], targets={"x": "nobody"}, every=1)
    with caplog.at_level(logging.WARNING, "fxplain"):
        for step in (1, 2):
            callback.on_step_end(None, state(step), None, model=model)
    assert [record.getMessage().startswith("x is not explained") for record in caplog.records] == [True]
    with pytest.raises(fxplain.InputError, match="nothing to explain while training"):
        ExplainCallback(None, {}, [])
