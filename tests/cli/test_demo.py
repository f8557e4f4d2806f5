"""The demo: a model that is good, explanations that point at what was asked for, and files that open."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fxplain
from fxplain.cli.demo import run_demo
from fxplain.demo import load_demo, peak, pointing_game
from fxplain.demo.assets import CANVAS_FOLDER, MODEL_FOLDER

DATA = Path(__file__).parent.parent / "data" / "demo_canvases.npz"
SIZE = (64, 64)


@pytest.fixture(scope="module")
def held_out() -> tuple[Tensor, Tensor, Tensor]:
    """600 canvases of objects that the model never saw: pixel values, classes [n, 2], boxes [n, 2, 4]."""
    with np.load(DATA) as data:
        pixels, classes, boxes = (torch.from_numpy(data[name]) for name in ("pixels", "classes", "boxes"))
    values = (pixels.float() / 127.5 - 1.0)[:, None].repeat(1, 3, 1, 1)
    return values, classes.long(), boxes.long()


@pytest.fixture(scope="module")
def demo() -> Any:
    return load_demo()


@pytest.fixture(scope="module")
def traced(demo: Any, held_out: Any) -> Any:
    return fxplain.trace(demo.model, {"pixel_values": held_out[0][:50]})


def test_the_model_is_small() -> None:
    assert sum(path.stat().st_size for path in MODEL_FOLDER.iterdir()) <= 1_500_000


def test_the_folder_is_a_plain_hugging_face_folder(demo: Any) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(MODEL_FOLDER, local_files_only=True)
    assert model.dtype == torch.float32
    processor = AutoImageProcessor.from_pretrained(MODEL_FOLDER, local_files_only=True)
    assert processor.size["height"] == model.config.image_size == 64
    labels = {thing.label: thing.target for canvas in demo.canvases for thing in canvas.things}
    assert {name: model.config.label2id[name] for name in labels} == labels
    assert model.config.id2label == {index: name for name, index in model.config.label2id.items()}


def test_the_processor_prepares_pictures_as_in_training(demo: Any) -> None:
    from PIL import Image

    canvas = demo.canvases[0]
    inputs, _ = demo.prepare(canvas)
    grey = torch.from_numpy(np.array(Image.open(canvas.path))).float() / 127.5 - 1.0
    torch.testing.assert_close(inputs["pixel_values"], grey.expand(1, 3, *SIZE), atol=1e-6, rtol=0)


def test_accuracy_on_canvases_it_never_saw(demo: Any, held_out: Any) -> None:
    values, classes, _ = held_out
    with torch.no_grad():
        named = demo.model(values).logits.topk(2, dim=1).indices
    right = (named.sort(dim=1).values == classes.sort(dim=1).values).all(dim=1)
    assert right.float().mean() >= 0.97


def hits(traced: Any, held_out: Any, method: str) -> float:
    """The pointing game on 200 canvases, each object asked for once."""
    values, classes, boxes = (part[:200] for part in held_out)
    found = []
    for which in (0, 1):
        for start in range(0, len(values), 50):
            part = slice(start, start + 50)
            inputs, target = {"pixel_values": values[part]}, classes[part, which]
            maps = traced.explain(inputs, target=target, method=method).grid("pixel_values")
            found.append(pointing_game(maps, boxes[part, which], SIZE))
    return float(torch.cat(found).float().mean())


def test_relevancy_points_at_the_object_that_was_asked_for(traced: Any, held_out: Any) -> None:
    assert hits(traced, held_out, "relevancy") >= 0.90


@pytest.mark.parametrize("method", ["rollout", "raw_attention"])
def test_the_simplest_methods_point_no_better_than_at_one_of_the_two(
    traced: Any, held_out: Any, method: Any
) -> None:
    assert 0.3 <= hits(traced, held_out, method) <= 0.7


def test_one_trace_finds_the_four_layers(traced: Any) -> None:
    assert [(a.kind, a.heads, a.queries.size, a.keys.size) for a in traced.attentions] == [
        ("self", 4, 65, 65)
    ] * 4


def test_the_demo_needs_no_network_and_leaves_its_files(tmp_path: Any) -> None:
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "cache"),
        "https_proxy": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
        "OMP_NUM_THREADS": "1",
    }
    out = tmp_path / "new" / "folder"
    command = [sys.executable, "-m", "fxplain", "demo", "--out", str(out)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip()
    for name in ("demo.png", "demo.html", "attention-graph.html"):
        assert f"wrote {out / name}" in done.stdout
        assert (out / name).stat().st_size > 1000
    assert "self" in done.stdout
    assert done.stdout.count("on it") == 2


def test_the_demo_draws_both_objects(tmp_path: Any, demo: Any) -> None:
    from PIL import Image

    picture, report, graph = run_demo(tmp_path)
    with Image.open(picture) as image:
        assert min(image.size) > 600
    text = report.read_text(encoding="utf-8")
    for thing in demo.canvases[0].things:
        assert thing.label in text
    assert "<svg" in graph.read_text(encoding="utf-8")


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Any) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(fxplain.errors.OutputError, match="cannot be made"):
        run_demo(tmp_path / "file" / "below")


def test_every_canvas_lies_there_with_boxes_around_bright_pixels(demo: Any) -> None:
    from PIL import Image

    assert {canvas.path.name for canvas in demo.canvases} == {p.name for p in CANVAS_FOLDER.glob("*.png")}
    for canvas in demo.canvases:
        pixels = np.array(Image.open(canvas.path))
        outside = np.ones_like(pixels, dtype=bool)
        for left, top, right, bottom in (thing.box for thing in canvas.things):
            outside[top:bottom, left:right] = False
            assert pixels[top:bottom, left:right].max() > 100
        assert pixels[outside].max() == 0


def test_the_pointing_game_by_hand() -> None:
    maps = torch.zeros(6, 4, 4)
    maps[torch.arange(6), [0, 1, 2, 3, 0, 0], [0, 1, 2, 3, 0, 0]] = 1.0
    maps[4] = 2.0  # constant
    maps[5, 0, 0] = torch.nan
    boxes = torch.tensor([[8, 8, 16, 16]]).expand(6, 4)  # exactly the cell (1, 1) of 8 pixels
    assert peak(maps, (32, 32))[1].tolist() == [8.0, 8.0, 16.0, 16.0]
    assert pointing_game(maps, boxes, (32, 32)).tolist() == [False, True, False, False, False, False]
    # the centres of the cells (0, 0) and (2, 2) lie 4 * sqrt(2) pixels from the box's corners
    assert pointing_game(maps, boxes, (32, 32), tolerance=5.0).tolist() == [False, True] + [False] * 4
    assert pointing_game(maps, boxes, (32, 32), tolerance=6.0).tolist() == [True] * 3 + [False] * 3


def test_the_pointing_game_keeps_height_and_width_apart() -> None:
    maps = torch.tensor([[[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]])
    assert peak(maps, (20, 80)).tolist() == [[60.0, 0.0, 80.0, 10.0]]
