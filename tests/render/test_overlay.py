"""Overlays: upright, aligned, never NaN; colours and scales."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from render_fixtures import image_result, make_result, photograph, space, text_result

from fxplain.display import Display
from fxplain.errors import OutputError
from fxplain.render.colours import Scale, css_gradient, heat, to_array
from fxplain.render.overlay import as_grid, blend, enlarge, overlays, plain_map, upsample
from fxplain.render.picture import picture_png
from fxplain.render.shown import readout_words, sharpness, shown


@pytest.mark.parametrize("value", [0.0, 3.5, -2.0, 1e-30])
def test_constant_maps_have_no_colour_and_no_nan(value: float) -> None:
    scale = Scale.of(np.full(9, value))
    assert not scale.unit(np.full(9, value)).any() or scale.signed
    colour, opacity = heat(scale, scale.unit(np.full((3, 3), value)))
    assert np.isfinite(colour).all()
    assert np.isfinite(opacity).all()


def test_min_max() -> None:
    scale = Scale.of(np.array([1.0, 2.0, 5.0]))
    np.testing.assert_allclose(scale.unit(np.array([1.0, 2.0, 5.0, 9.0])), [0.0, 0.2, 0.8, 0.8])


def test_signed_values_are_scaled_around_zero() -> None:
    scale = Scale.of(np.array([-1.0, 4.0]))
    assert scale.signed
    np.testing.assert_allclose(scale.unit(np.array([-1.0, 0.0, 4.0])), [-0.25, 0.0, 1.0])
    assert not Scale.of(np.array([-1e-9, 1.0])).signed


def test_nan_and_infinities_do_not_spread() -> None:
    scale = Scale.of(np.array([np.nan, 1.0, 3.0, np.inf]))
    assert (scale.low, scale.high) == (1.0, 3.0)
    assert np.isfinite(scale.unit(np.array([np.nan, np.inf, -np.inf]))).all()
    assert Scale.of(np.array([np.nan])).constant


def test_conversion_takes_every_float_type() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert to_array(torch.ones(2, dtype=dtype, requires_grad=True)).dtype == np.float32
    assert to_array(torch.ones(2, dtype=torch.float64)).dtype == np.float64


@pytest.mark.parametrize("size", [(112, 112), (90, 210), (333, 121)])
def test_the_bright_spot_lies_over_its_cell(size: tuple[int, int]) -> None:
    cells = np.zeros((7, 7))
    cells[1, 5] = 1.0
    large = upsample(cells, *size)
    row, column = np.unravel_index(int(large.argmax()), large.shape)
    assert abs((row + 0.5) / size[0] - 1.5 / 7) < 0.5 / 7
    assert abs((column + 0.5) / size[1] - 5.5 / 7) < 0.5 / 7


def test_bilinear_meets_the_values_at_the_centres() -> None:
    cells = np.arange(12.0).reshape(3, 4)
    large = upsample(cells, 3 * 15, 4 * 15)
    np.testing.assert_allclose(large[7::15, 7::15], cells, atol=1e-5)


def test_overlay_is_brightest_at_the_relevant_cell_and_keeps_the_size() -> None:
    result, grey = image_result(7, 1), np.full((140, 140, 3), 90, np.uint8)
    (drawn,) = overlays(result, Display(images={"pixel_values": [grey]}), 0)
    assert drawn.picture.shape == drawn.blended.shape
    assert drawn.blended.dtype == np.uint8
    brightness = drawn.blended.astype(int).sum(-1)
    side = brightness.shape[0] / 7
    row, column = np.unravel_index(int(brightness.argmax()), brightness.shape)
    assert (int(row / side), int(column / side)) == (1, 5)


def test_every_sample_has_its_own_picture() -> None:
    display = Display(images={"pixel_values": [photograph(), photograph(50, 50)]})
    first, second = (overlays(image_result(7, 2), display, i)[0] for i in range(2))
    assert first.picture.shape != second.picture.shape
    assert overlays(image_result(7, 3), display, 2) == []


def test_video_frames() -> None:
    cells = space("pixel_values", 0, 2, 3, 3)
    rows = torch.zeros(1, 18)
    rows[0, 9 + 4] = 1.0
    result = make_result((cells,), rows, (), readout=((),))
    video = np.stack([np.full((60, 60, 3), 20 * i, np.uint8) for i in range(4)])
    first, second = overlays(result, Display(images={"pixel_values": [video]}), 0)
    assert (first.label, second.label) == ("frame 1 of 2", "frame 2 of 2")
    # two steps of the map over four frames: each takes the frame in the middle of its step
    assert (first.picture[0, 0, 0], second.picture[0, 0, 0]) == (20, 60)
    assert first.scale == second.scale
    # the only relevant token lies in the second step: the first is all low colour
    assert len(np.unique(first.blended.reshape(-1, 3), axis=0)) == 1
    assert len(np.unique(second.blended.reshape(-1, 3), axis=0)) > 10


@pytest.mark.parametrize(
    ("tokens", "size", "shape"),
    [(49, (70, 70), (1, 7, 7)), (12, (30, 40), (1, 3, 4)), (50, (70, 70), None), (7, (70, 70), None)],
)
def test_flat_patches_are_laid_out_only_if_they_fit(
    tokens: int, size: tuple[int, int], shape: tuple[int, ...] | None
) -> None:
    grid, remark = as_grid(np.arange(tokens), (tokens,), np.zeros((*size, 3), np.uint8))
    assert (None if grid is None else grid.shape) == shape
    assert bool(remark) == (shape is not None)


def test_small_pictures_are_enlarged_by_whole_pixels() -> None:
    small = np.arange(28 * 28 * 3, dtype=np.uint8).reshape(28, 28, 3)
    large = enlarge(small)
    assert large.shape == (336, 336, 3)
    np.testing.assert_array_equal(large[::12, ::12], small)


def test_grey_pictures_get_three_channels() -> None:
    display = Display(images={"pixel_values": [np.zeros((28, 28), np.uint8)]})
    assert overlays(image_result(7, 1), display, 0)[0].picture.shape == (336, 336, 3)


def test_maps_of_spaces_without_picture() -> None:
    (map_,) = plain_map(shown(image_result(7, 1), "pixel_values", 0))
    assert map_.shape == (112, 112, 3)


def test_blend_of_a_constant_map() -> None:
    picture = photograph()
    drawn = blend(picture, np.full((3, 3), 0.2), Scale.of(np.full(9, 0.2)))
    assert drawn.shape == picture.shape


def test_own_entries_are_set_aside_where_single_rows_are_read() -> None:
    one = shown(text_result(), "input_ids", 0)
    assert one.aside.tolist() == [True] + [False] * 8
    assert one.scale.high == pytest.approx(0.4)
    pooled = text_result(readout=(tuple((i, 1 / 9) for i in range(9)),))
    assert not shown(pooled, "input_ids", 0).aside.any()
    assert shown(image_result(7, 1), "vit.embeddings.cls_token", 0).empty


def test_readout_in_words() -> None:
    assert readout_words(text_result(), 0) == "input_ids[0]"
    pooled = image_result(7, 1, readout=(tuple((i, 1 / 49) for i in range(49)),))
    assert readout_words(pooled, 0, most=2) == (
        "0.0204 of pixel_values[0, 0], 0.0204 of pixel_values[0, 1], … (49 in all)"
    )


def test_colour_bar_is_plain_css() -> None:
    assert css_gradient(Scale(0.0, 1.0, signed=False)).startswith("linear-gradient(to right, rgb(0 0 4)")


def test_png_of_a_batch_with_hostile_titles() -> None:
    display = Display(
        images={"pixel_values": [photograph(), photograph(60, 200)]},
        title="$x_{ \\frac 日本",
        captions=["$\\", "</b>" * 60],
        labels={3: "$\\bad"},
    )
    image = Image.open(io.BytesIO(picture_png(image_result(7, 2), display)))
    image.load()
    assert image.width > 900
    assert image.height > 900


@pytest.mark.parametrize("values", [0.0, 0.7])
def test_png_of_a_constant_map(values: float) -> None:
    result = make_result((space("pixel_values", 0, 3, 3),), torch.full((1, 9), values), (), readout=((),))
    assert picture_png(result, Display(images={"pixel_values": [photograph()]})).startswith(b"\x89PNG")


def test_png_without_pictures_says_what_is_missing() -> None:
    with pytest.raises(OutputError, match="token spaces input_ids"):
        picture_png(text_result(), Display(tokens={"input_ids": [["a"] * 9]}))


def test_rounding_is_written_as_zero_on_the_scale() -> None:
    assert Scale(1.3e-10, 0.1, signed=False).ends == ("0", "0.1")
    assert Scale(-0.25, 0.25, signed=True).ends == ("-0.25", "0.25")
    assert Scale(3e-9, 3e-9, signed=False).ends == ("3e-09", "3e-09")


def test_zero_has_no_colour_on_a_signed_scale() -> None:
    _, opacity = heat(Scale(-1.0, 1.0, signed=True), np.array([-1.0, 0.0, 1.0]))
    np.testing.assert_allclose(opacity, [0.75, 0.0, 0.75])


def test_nearly_even_relevance_is_pale() -> None:
    """0.0138 beside 0.0177 is not night and day."""
    scale = Scale.of(np.array([0.0138, 0.015, 0.0177]))
    assert scale.unit(np.array([0.0138, 0.0177])) == pytest.approx([0, 0.2203], abs=1e-3)
    assert scale.stretched().unit(np.array([0.0177])) == pytest.approx([1])
    assert Scale.of(np.array([0.0, 0.0177])).reach == 1
    assert "rgb(252 255 164)" in css_gradient(scale.stretched())
    assert "rgb(252 255 164)" not in css_gradient(scale)


def test_how_sharp_an_explanation_is() -> None:
    even, sharp = (
        make_result((space("ids", 0, 10),), torch.tensor([values]), (), readout=((),))
        for values in ([1.0] * 10, [9.0] + [1 / 9] * 9)
    )
    assert (
        str(sharpness(even, 0)) == "as if 10 of 10 tokens shared it evenly; the most relevant token has 10%"
    )
    found = sharpness(sharp, 0)
    assert found is not None
    assert found.share == pytest.approx(0.9)
    assert 1 < found.evenly < 2
    assert sharpness(make_result((space("ids", 0, 2),), torch.zeros(1, 2), ()), 0) is None
