"""Several answers explained together: boxes and outlines on the picture, one heat map for several scales."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_folders as toys
import transformers as hf
from cli.test_cli import run
from render.test_pages import Page
from torch import Tensor, nn
from versions import newest_names

import fxplain
from fxplain.questions import Spot
from fxplain.render.marks import outline
from fxplain.render.report import report
from fxplain.render.scales import shares
from fxplain.targets import likeliest, point
from fxplain.tasks import Task

pytestmark = newest_names  # its detectors are configured as newer ones are


@cache
def pyramid() -> Any:
    """Deformable attention over three scales of a backbone, and a fourth made of the last."""
    torch.manual_seed(0)
    stem = hf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8], depths=[1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3"],
    )  # fmt: skip
    both: dict[str, Any] = {f"{part}_{what}": size for part in ("encoder", "decoder") for what, size in
            (("layers", 2), ("attention_heads", 2), ("ffn_dim", 16))}  # fmt: skip
    sizes: dict[str, Any] = {"d_model": 32, "num_queries": 5, "num_feature_levels": 3, **both}
    config = hf.DeformableDetrConfig(
        backbone_config=stem, use_timm_backbone=False, use_pretrained_backbone=False, with_box_refine=True,
        id2label={0: "cat", 1: "dog", 2: "person"}, **sizes,
    )  # fmt: skip
    processor = hf.DeformableDetrImageProcessor(size={"height": 64, "width": 64})
    return fxplain.Explainer(hf.DeformableDetrForObjectDetection(config).eval(), processor)


def photograph(seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 255, (48, 64, 3), dtype=np.uint8)


@cache
def detected() -> Any:
    return pyramid()(photograph(), top=3, threshold=0.0)


def test_detections_are_the_surest_queries_each_as_if_asked_alone() -> None:
    ranked, explainer = detected(), pyramid()
    inputs = explainer.prepare(photograph()).inputs
    with torch.no_grad():
        sure, classes = explainer.model(**inputs).logits[0].sigmoid().max(-1)
    order = sure.topk(3).indices
    assert [one.target[0] for one in ranked] == [(int(q), int(classes[q])) for q in order]
    assert ranked.probabilities == pytest.approx(sure[order].tolist())
    for one in ranked:
        alone = explainer.trace(inputs).explain(inputs, one.target[0])
        for name, values in alone.relevance.items():
            torch.testing.assert_close(one.relevance[name], values, rtol=1e-4, atol=1e-8)


def test_of_no_sure_detection_the_first_is_explained_and_the_others_are_counted() -> None:
    ranked = pyramid()(photograph(), top=4, threshold=0.99)
    assert len(ranked) == 1
    assert any(note.startswith("3 less likely answers, below a probability of 0.99") for note in ranked.notes)


def test_all_scales_of_a_picture_are_one_heat_map() -> None:
    one = detected()[0]
    spaces = [space for space in one.result.spaces if space.origin == "input"]
    assert [space.grid for space in spaces] == [(8, 8), (4, 4)]
    cells = one.heat_map()
    assert cells.shape == (8, 8)
    assert cells.sum() == pytest.approx(sum(float(one.relevance[s.name].sum()) for s in spaces), rel=1e-5)
    coarse = one.heat_map(spaces[1].name)
    fine = one.relevance[spaces[0].name].reshape(8, 8).numpy()
    np.testing.assert_allclose(cells, fine + np.kron(coarse, np.full((2, 2), 0.25)), rtol=1e-5)
    assert Page(report(one.result, one.display)).text.count("2 scales together: 8 x 8, 4 x 4") == 1
    with pytest.raises(fxplain.UnknownNameError, match="no such picture"):
        one.heat_map("sound")


@pytest.mark.parametrize(("fine", "coarse"), [(7, 3), (5, 5), (4, 1), (2, 3)])
def test_nothing_is_lost_between_grids(fine: int, coarse: int) -> None:
    np.testing.assert_allclose(shares(fine, coarse).sum(0), 1)


@pytest.mark.parametrize("suffix", [".json", ".npz", ".safetensors"])
def test_several_answers_are_read_again(suffix: str, tmp_path: Path) -> None:
    ranked = detected()
    ranked.save(tmp_path / f"found{suffix}")
    again = fxplain.load(tmp_path / f"found{suffix}")
    assert again.samples == ranked.samples
    assert again.questions == ranked.questions
    assert again.result.questions == ranked.result.questions
    assert again[1].tokens == ranked[1].tokens
    assert np.array_equal(
        again[0].display.images["pixel_values"][0], ranked[0].display.images["pixel_values"][0]
    )


def test_boxes_are_drawn_with_name_and_probability(tmp_path: Path) -> None:
    ranked = detected()
    ranked.save(tmp_path / "found.html")
    text = (tmp_path / "found.html").read_text(encoding="utf-8")
    Page(text)
    assert text.count('<rect class="line"') == 6, "three on the picture, one on each overlay"
    name = ranked[0].display.labels[ranked[0].target[0][1]]
    assert f"1 {name} {ranked.probabilities[0]:.2f}</span>" in text
    box = ranked.result.questions[0].spot.box
    boxes = pyramid().model(**pyramid().prepare(photograph()).inputs).pred_boxes[0]
    across, down, width, height = boxes[ranked[0].target[0][0]].tolist()
    assert box == pytest.approx(
        (across - width / 2, down - height / 2, across + width / 2, down + height / 2)
    )
    for path in ("found.png", "one.png"):
        (ranked if path == "found.png" else ranked[0]).save(tmp_path / path)
        assert toys.picture_size(tmp_path / path)[0] > 300
    assert len(ranked.plot().axes) == 7
    assert "<iframe" in ranked._repr_html_()


def test_a_batch_of_pictures_has_the_answers_of_each() -> None:
    ranked = pyramid()([photograph(), photograph(1)], top=2, threshold=0.0)
    assert ranked.samples == (0, 0, 1, 1)
    mine = ranked.of(1)
    assert len(mine) == 2
    alone = pyramid()(photograph(1), top=2, threshold=0.0)
    for one, other in zip(mine, alone, strict=True):
        assert one.target == other.target
        torch.testing.assert_close(
            one.relevance["pixel_values"], other.relevance["pixel_values"], rtol=1e-3, atol=1e-7
        )
    table = ranked.to_pandas()
    assert sorted({*table["sample"]}) == [0, 1]
    assert {*table["answer"]} == {0, 1, 2, 3}
    top = ranked.top(3, sample=1)
    assert len(top) == 3
    assert top[0].share >= top[1].share >= top[2].share > 0


def test_classes_and_next_words(tmp_path: Path) -> None:
    explainer = fxplain.Explainer.from_pretrained(toys.vit(tmp_path / "vit"))
    ranked = explainer(photograph(), top=2)
    logits = explainer.model(**explainer.prepare(photograph()).inputs).logits[0]
    assert [one.target for one in ranked] == [((int(i),),) for i in logits.topk(2).indices]
    ranked.save(tmp_path / "classes.html")
    assert "2. " in (tmp_path / "classes.html").read_text(encoding="utf-8")
    assert len(explainer(photograph(), top=9)) == 3
    with pytest.raises(fxplain.TargetError, match="names one answer"):
        explainer(photograph(), target="bird", top=2)
    with pytest.raises(fxplain.TargetError, match="at least 1"):
        explainer(photograph(), top=0)


class Segmenter(nn.Module):
    """Says at every place of a picture which of three classes it is: by its brightest channel."""

    fxplain_task = Task("places", names={0: "red", 1: "green", 2: "blue"}, outputs=("output",))

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.leave = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 3)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, pixel_values: Tensor) -> Tensor:
        grid = self.enter(pixel_values)
        seen = self.leave(self.layer(grid.flatten(2).mT)).mT.unflatten(-1, grid.shape[-2:])
        out: Tensor = seen + 30 * nn.functional.avg_pool2d(pixel_values, 4)
        return out


def painted(*channels: int) -> Tensor:
    """Stripes of 8 columns, each of one channel."""
    picture = torch.zeros(1, 3, 16, 8 * len(channels))
    for place, channel in enumerate(channels):
        picture[0, channel, :, 8 * place : 8 * place + 8] = 1
    return picture


@cache
def segmenter() -> Any:
    return fxplain.Explainer(Segmenter().eval())


def test_regions_by_class_by_point_and_by_size() -> None:
    explainer, picture = segmenter(), {"pixel_values": painted(0, 1, 0)}
    whole = explainer(picture, target="red")
    assert whole.question == "the mean score of class 0 'red' over the 16 places where it is predicted"
    own = explainer(picture, target=point(0.1, 0.5))
    assert own.question.startswith(
        "the mean score of class 0 'red' over the 8 places where it is predicted around"
    )
    assert own.result.questions[0].spot.mask().tolist() == [[True, True, False, False, False, False]] * 4
    assert [one.target[0][0] for one in explainer(picture, top=3)] == [0, 1]
    black = np.zeros((16, 24, 3), np.uint8)
    text = report(own.result, fxplain.Display(images={"pixel_values": [black]}))
    assert [tag for tag, facts in Page(text).tags if facts.get("class") == "line"] == ["path"]
    with pytest.raises(fxplain.TargetError, match="outside the picture"):
        explainer(picture, target=point(2, 0.5))
    with pytest.raises(fxplain.TargetError, match="segmentation alone"):
        pyramid()(photograph(), target=point(0.5, 0.5))


def test_pictures_that_lack_a_class_are_named() -> None:
    both = {"pixel_values": torch.cat([painted(0, 1), painted(1, 1), painted(0, 0)])}
    with pytest.raises(fxplain.TargetError, match="samples 1; explain the others without them: 0, 2"):
        segmenter()(both, target="red")
    assert segmenter()(both, top=2).samples == (0, 0, 1, 2)


def test_spots_and_outlines() -> None:
    mask = torch.tensor([[True, True, False], [False, True, False]])
    spot = Spot.of_places(mask)
    assert torch.equal(spot.mask(), mask)
    assert spot.places == 3
    length = sum(abs(c - a) * 3 + abs(d - b) * 2 for a, b, c, d in outline(spot))
    assert length == pytest.approx(8)
    assert Spot.of_places(torch.zeros(2, 2, dtype=torch.bool)).places == 0


def test_padding_of_a_picture_is_not_shown() -> None:
    stem = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], out_features=["stage2"])
    both: dict[str, Any] = {f"{part}_{what}": size for part in ("encoder", "decoder") for what, size in
            (("layers", 1), ("attention_heads", 2), ("ffn_dim", 16))}  # fmt: skip
    config = hf.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone_config=stem, d_model=16,
        num_queries=3, num_labels=2, **both,
    )  # fmt: skip
    processor = hf.DetrImageProcessor(size={"shortest_edge": 32, "longest_edge": 64})
    explainer = fxplain.Explainer(hf.DetrForObjectDetection(config).eval(), processor)
    wide, square = np.full((32, 64, 3), 200, np.uint8), np.full((32, 32, 3), 200, np.uint8)
    explanation = explainer([wide, square])
    assert explanation.display.seen["pixel_values"] == [(1.0, 1.0), (1.0, 0.5)]
    figure = explanation.plot()
    drawn = [image.get_array().shape[:2] for axes in figure.axes for image in axes.get_images()]
    sides = [shape for shape in drawn if min(shape) > 100]
    assert sides[0][1] == 2 * sides[0][0]
    assert sides[2][0] == sides[2][1]


def test_how_a_picture_looks(tmp_path: Path) -> None:
    one = detected()[0]
    one.save(tmp_path / "as_usual.png")
    one.save(tmp_path / "bare.png", fxplain.Look(colours="viridis", bare=True))
    assert (tmp_path / "bare.png").read_bytes() != (tmp_path / "as_usual.png").read_bytes()
    with pytest.raises(fxplain.OutputError, match="no colour map 'virdis'"):
        one.save(tmp_path / "no.png", fxplain.Look(colours="virdis"))
    faint = one.plot(fxplain.Look(opacity=0.0)).axes[1].get_images()[0].get_array()
    strong = one.plot(fxplain.Look(opacity=1.0)).axes[1].get_images()[0].get_array()
    assert np.abs(np.asarray(strong).astype(int) - np.asarray(faint)).max() > 50


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    toys.vit(tmp_path / "vit")
    toys.picture(tmp_path / "halves.png")
    said = run("explain", "vit", "--image", "halves.png", "--top", 2, "--colours", "viridis", "--bare")
    assert "the score of class" in said
    assert {p.name for p in tmp_path.glob("vit-*")} >= {
        "vit-halves-relevancy-top.png",
        "vit-halves-relevancy-top.json",
    }
    assert isinstance(fxplain.load(tmp_path / "vit-halves-relevancy-top.json"), fxplain.Ranked)
    refusals = {
        ("--threshold", "0.3"): "--top N beside it",
        ("--top", "2", "--contrast", "1"): "by one method",
        ("--point", "0.1"): "this is no point",
        ("--point", "0.1,0.2", "--target", "1"): "in place of --target",
        ("--point", "0.1,0.2"): "segmentation alone",
    }
    for more, why in refusals.items():
        assert why in run("explain", "vit", "--image", "halves.png", *more, code=1)


def test_likeliest_is_a_target_of_traced_models() -> None:
    model = Segmenter().eval()
    found = fxplain.trace(model, painted(0, 1)).explain_targets(painted(0, 1), likeliest(5))
    assert [result.target[0][0] for result in found] == [0, 1]
