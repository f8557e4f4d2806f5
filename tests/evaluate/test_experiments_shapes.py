"""Short versions of the experiments on scenes of shapes; the scenes and questions are what they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from versions import newest_names

FEW = ["relevancy+libra", "rollout", "random"]
VQA = ("lxmert", "visual_bert")


def test_scenes_have_the_masks_that_they_say(module: Any) -> None:
    shapes = module("shapes")
    rng = np.random.default_rng(0)
    scenes = shapes.draw(20, rng, 2, 4)
    pixels, painted = shapes.paint(scenes, rng)
    assert pixels.shape == (20, shapes.SIZE, shapes.SIZE, 3)
    assert set((scenes.shapes >= 0).sum(1)) == {2, 3, 4}
    for masks, kinds, boxes in zip(painted, scenes.shapes, scenes.boxes, strict=True):
        assert masks.sum(0).max() <= 1  # no object covers another
        for mask, kind, (left, top, right, bottom) in zip(masks, kinds, boxes, strict=True):
            inside = mask[top:bottom, left:right]
            assert inside.sum() == mask.sum()
            assert (kind >= 0) == bool(mask.any())
            if kind >= 0:
                assert inside.any(0).all()
                assert inside.any(1)[1:].all()  # the tip of a triangle is less than a pixel


def test_questions_have_the_answers_that_the_scene_gives(module: Any) -> None:
    shapes, questions = module("shapes"), module("shape_questions")
    scenes, asked = questions.asked(150, 1)
    every = list(zip(scenes.colours.tolist(), scenes.shapes.tolist(), scenes.sizes.tolist(), strict=True))
    for i, (colours, kinds, sizes) in enumerate(every):
        words = [questions.WORDS[n] for n in asked.input_ids[i].tolist() if n]
        names = [
            (shapes.COLOURS[c], shapes.SHAPES[s], shapes.SIZES[z]) if s >= 0 else ("", "", "")
            for c, s, z in zip(colours, kinds, sizes, strict=True)
        ]
        key = {word for word in words if word in (*shapes.COLOURS, *shapes.SHAPES)}
        about = [k for k, name in enumerate(names) if key <= set(name)]
        place = next((k for k, word in enumerate(("color", "shape", "size")) if word in words), None)
        if place is None:
            wanted = "yes" if about else "no"
        else:
            assert len(about) == 1, words  # one answer alone
            wanted = names[about[0]][place]
        assert questions.ANSWERS[int(asked.answers[i])] == wanted, (words, names)
        held = asked.holds[i][asked.regions[i]].tolist()
        assert sorted(held) == about
        marked = {questions.WORDS[n] for n in asked.input_ids[i][asked.words[i]].tolist()}
        assert marked == key | ({"color", "shape", "size"} & set(words))


def test_no_question_tells_its_answer(module: Any) -> None:
    questions = module("shape_questions")
    _, asked = questions.asked(3000, 1)
    by_text: dict[tuple[int, ...], list[int]] = {}
    for ids, answer in zip(asked.input_ids.tolist(), asked.answers.tolist(), strict=True):
        by_text.setdefault(tuple(ids), []).append(answer)
    guessed = sum(max(map(found.count, set(found))) for found in by_text.values())
    assert guessed / len(asked) < 0.55  # a half would be right of yes and no, and of small and large


@pytest.mark.parametrize("name", VQA)
def test_the_models_answer_as_well_as_is_said(module: Any, name: Any) -> None:
    models, questions = module("shape_models"), module("shape_questions")
    said = models.about(name)["held_out_accuracy"]
    assert said > 0.97
    held_out = questions.asked(300, 12345)[1]
    assert models.accuracy(name, models.load(name), held_out) > said - 0.03
    size = (models.FOLDER / f"{name}.safetensors").stat().st_size
    assert size < 2_000_000


@pytest.mark.parametrize(("name", "side"), [("lxmert", "image"), ("visual_bert", "text")])
def test_the_known_regions_and_words_are_found(module: Any, monkeypatch: Any, name: Any, side: Any) -> None:
    vqa = module("shape_vqa")
    monkeypatch.setitem(vqa.METHODS, name, FEW)
    table = vqa.found(name, side, 12)
    assert table.cells["relevancy+libra"]["AP"].value > table.cells["random"]["AP"].value


@pytest.mark.parametrize(("name", "side"), [("lxmert", "text"), ("visual_bert", "image")])
def test_right_answers_fall_with_regions_and_words(
    module: Any, monkeypatch: Any, name: Any, side: Any
) -> None:
    vqa = module("shape_vqa")
    monkeypatch.setitem(vqa.METHODS, name, FEW)
    table = vqa.perturbation(name, side, 12)
    assert table.cells["relevancy+libra"]["SRG"].value > table.cells["random"]["SRG"].value
    assert table.curves is not None
    whole = [row[:, 0] for side in (table.curves.positive, table.curves.negative) for row in side.values()]
    assert all(torch.equal(row, whole[0]) for row in whole)  # nothing is removed yet


@pytest.mark.parametrize("name", VQA)
def test_training_goes_down(module: Any, monkeypatch: Any, tmp_path: Any, name: Any) -> None:
    train, models = module("train_shape_vqa"), module("shape_models")
    monkeypatch.setattr(train, "POOL", 64)
    monkeypatch.setattr(train, "HELD_OUT", 50)
    model = models.make(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    train.train(name, model, steps=2, seed=0, batch=8)
    changed = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    assert len(changed) > len(before) / 2
    models.keep(name, model, {"steps": 2}, tmp_path)
    again = models.load(name, tmp_path)
    assert all(torch.allclose(v, again.state_dict()[k], atol=1e-3) for k, v in model.state_dict().items())


def test_three_questions_are_drawn(module: Any, tmp_path: Any) -> None:
    draw = module("shape_vqa").SAMPLES["VisualBERT"]
    draw(tmp_path / "sample.png")
    assert (tmp_path / "sample.png").read_bytes().startswith(b"\x89PNG")


@newest_names
def test_the_detector_finds_as_much_as_is_said(module: Any) -> None:
    detector = module("shape_detector")
    said = module("shape_models").about("detr")["held_out_found"]
    assert said > 0.85
    scenes, pixels, _ = detector.held_out(60)
    assert detector.accuracy(detector.load(), scenes, pixels) > said - 0.1
    assert (module("weights").FOLDER / "detr.safetensors").stat().st_size < 2_000_000


@newest_names
def test_the_detectors_queries_become_masks(module: Any, monkeypatch: Any) -> None:
    detr = module("shape_detr")
    monkeypatch.setattr(detr, "METHODS", ["relevancy", "rollout"])
    monkeypatch.setattr(detr, "RESAMPLES", 5)
    cells = detr.weakly_supervised(5).cells
    for score in ("AP all", "AR all", "mask IoU"):
        assert cells["relevancy"][score].value > cells["rollout"][score].value > cells["random"][score].value


@newest_names
def test_training_the_detector_sees_boxes_and_moves_its_weights(module: Any) -> None:
    train, detector, shapes = (module(name) for name in ("train_shape_detr", "shape_detector", "shapes"))
    rng = np.random.default_rng(0)
    scenes = shapes.draw(8, rng, 1, 4)
    pixels, masks = shapes.paint(scenes, rng)
    side = 12
    in_box = train.cells(scenes, side) < len(shapes.SHAPES)
    middle = shapes.SIZE // side // 2
    assert in_box[torch.from_numpy(masks.any(1))[:, middle::8, middle::8]].all()
    model = detector.make()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    train.warm_up(model, scenes, pixels, 2, rng, batch=4)
    train.train(model, scenes, pixels, 2, rng, batch=4)
    after = model.state_dict()
    for part in ("backbone.model.embedder", "encoder.layers.1", "decoder.layers.1", "class_labels"):
        assert any(not torch.equal(after[key], before[key]) for key in before if part in key), part
