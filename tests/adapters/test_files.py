"""Python files, pickles, files of tensors and pictures: what they give, and every way they can be wrong."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_folders as toys
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import fxplain
from fxplain.adapters import Loaded, LoadOptions, load
from fxplain.adapters.media.images import encode_images, open_image, spec_of
from fxplain.adapters.names import file_stem, near
from fxplain.adapters.show import Show
from fxplain.adapters.tensors import read_tensors
from fxplain.cli import explain as cli_explain
from fxplain.errors import FxplainError, InputError, LoadError, UnsafeFileError
from fxplain.explainer.handed import shown_by_space

# -- path/to/file.py:factory


def test_a_factory_gives_a_model(tmp_path: Path) -> None:
    loaded = load(f"{toys.python_file(tmp_path)}:alone")
    assert type(loaded.model).__name__ == "Attend"
    assert not loaded.model.training
    with pytest.raises(InputError, match="is not known"):
        loaded.example()


def test_a_factory_gives_a_model_and_inputs(tmp_path: Path) -> None:
    loaded = load(f"{toys.python_file(tmp_path)}:with_inputs")
    assert loaded.example().shape == (1, 5, 8)
    assert loaded.prepare()[0].shape == (1, 5, 8)
    assert loaded.name == "with_inputs"


@pytest.mark.parametrize("made", ["(model, tokenizer)", "fxplain.Explainer(model, tokenizer)"])
def test_a_factory_may_bring_its_processor(tmp_path: Path, made: str) -> None:
    toys.bert(tmp_path / "bert")
    code = (
        "import fxplain, transformers\ndef build():\n"
        f"    where = {str(tmp_path / 'bert')!r}\n"
        "    model = transformers.BertForSequenceClassification.from_pretrained(where).eval()\n"
        "    tokenizer = transformers.AutoTokenizer.from_pretrained(where)\n"
        f"    return {made}\n"
    )
    (tmp_path / "own.py").write_text(code)
    loaded = load(f"{tmp_path / 'own.py'}:build")
    inputs, display = loaded.prepare(text="the movie")
    assert inputs["input_ids"].shape == (1, 4)
    assert [str(one).strip() for one in display.tokens["input_ids"][0]][1:3] == ["the", "movie"]


def test_classes_and_modules_are_factories_too(tmp_path: Path) -> None:
    path = toys.python_file(tmp_path)
    assert isinstance(load(f"{path}:Attend").model, nn.Module)
    assert isinstance(load(f"{path}:made").model, nn.Module)


def test_a_factory_may_bring_its_own_preparation(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(
        "from torch import nn\nfrom fxplain.adapters import Loaded\n"
        "def own():\n    return Loaded(nn.Identity(), 'mine', encode=lambda request: {'input': None})\n"
    )
    assert load(f"{path}:own").name == "mine"


def test_a_picture_goes_where_the_example_has_one(tmp_path: Path) -> None:
    path = tmp_path / "vision.py"
    path.write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n    def forward(self, scale, pixels):\n        return pixels.mean() * scale\n"
        "def build():\n    return Net(), {'scale': torch.ones(1), 'pixels': torch.rand(1, 1, 10, 20)}\n"
    )
    inputs, display = load(f"{path}:build").prepare(image=toys.picture(tmp_path / "p.png"))
    assert inputs["pixels"].shape == (1, 1, 10, 20)
    assert inputs["scale"].tolist() == [1]
    assert display.images["pixels"][0].shape == (10, 20, 3)


def test_the_search_path_is_left_as_found(tmp_path: Path) -> None:
    before = list(sys.path)
    load(f"{toys.python_file(tmp_path)}:alone")
    assert sys.path == before


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (":alnoe", "did you mean 'alone'"),
        ("", "the factory is missing"),
        (":broken", "RuntimeError: no luck"),
        (":text", "returned no model"),
        (":number", "cannot be called"),
    ],
)
def test_factories_that_give_no_model(factory: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=message):
        load(f"{toys.python_file(tmp_path)}{factory}")


@pytest.mark.parametrize("code", ["def build(:", "import no_such_module_anywhere", "raise SystemExit(3)"])
def test_files_that_do_not_run(code: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text(code)
    with pytest.raises(LoadError, match="raised while it ran"):
        load(f"{path}:build")


def test_a_python_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="no such Python file"):
        load(f"{tmp_path / 'none.py'}:build")


# -- pickled modules


def test_a_pickled_module_needs_a_flag(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(UnsafeFileError, match="--allow-pickle"):
        load(str(path))
    assert isinstance(load(str(path), LoadOptions(allow_pickle=True)).model, nn.Linear)


def test_a_refused_pickle_does_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (tmp_path / "model.pt").write_bytes(toys.bomb_bytes(mark))
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps(toys.Bomb(mark)))
    for name in ("model.pt", "bare.pkl"):
        with pytest.raises(UnsafeFileError):
            load(str(tmp_path / name))
    assert not mark.exists()


def test_weights_alone_are_no_model(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(LoadError, match="weights alone do not say the architecture"):
        load(str(tmp_path / "weights.pth"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"just text"])
def test_files_that_are_no_pickles(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    for options in (LoadOptions(), LoadOptions(allow_pickle=True)):
        with pytest.raises(LoadError):
            load(str(path), options)
    with pytest.raises(LoadError, match="no such file"):
        load(str(tmp_path / "none.pt"))


# -- tensors


def test_tensors_come_back_as_they_were_saved(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3), "b": torch.rand(2, 2)}
    torch.save(tensors, tmp_path / "x.pt")
    torch.save((tensors["a"], [tensors["b"]], None, 3), tmp_path / "y.pth")
    np.savez(tmp_path / "x.npz", a=tensors["a"].numpy(), b=tensors["b"].numpy())
    np.save(tmp_path / "x.npy", tensors["a"].numpy())
    np.savez(tmp_path / "y.npz", tensors["a"].numpy())
    save_file(tensors, tmp_path / "x.safetensors")
    for name in ("x.pt", "x.npz", "x.safetensors"):
        read = read_tensors(tmp_path / name)
        assert all(torch.equal(read[key], value) for key, value in tensors.items())
    assert torch.equal(read_tensors(tmp_path / "y.pth")[1][0], tensors["b"])
    for name in ("x.npy", "y.npz"):
        assert torch.equal(read_tensors(tmp_path / name), tensors["a"])


def test_a_file_of_tensors_runs_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (tmp_path / "x.pt").write_bytes(toys.bomb_bytes(mark))
    np.save(tmp_path / "x.npy", np.array([toys.Bomb(mark)], dtype=object), allow_pickle=True)
    with pytest.raises(UnsafeFileError, match="more than tensors"):
        read_tensors(tmp_path / "x.pt")
    with pytest.raises(InputError):
        read_tensors(tmp_path / "x.npy")
    assert not mark.exists()


def _text(path: Path) -> None:
    path.write_text("not tensors at all")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _cut(path: Path) -> None:
    torch.save(torch.rand(100), path)
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize("suffix", [".pt", ".npz", ".npy", ".safetensors"])
@pytest.mark.parametrize("spoil", [_text, _empty, _cut])
def test_broken_files_of_tensors(spoil: Callable[[Path], None], suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    spoil(path)
    with pytest.raises((InputError, UnsafeFileError), match=r"cannot be read|more than tensors"):
        read_tensors(path)


def test_what_is_no_file_of_tensors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_tensors(tmp_path / "none.pt")
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(InputError, match=r"expected: \.pt, \.pth"):
        read_tensors(tmp_path / "x.csv")
    torch.save({"a": {"b": "text"}}, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"a\.b"):
        read_tensors(tmp_path / "x.pt")


def test_unnamed_tensors_join_nothing(tmp_path: Path) -> None:
    torch.save(torch.rand(1, 2), tmp_path / "x.pt")
    loaded = Loaded(nn.Identity(), "own", encode=lambda request: {"input": torch.rand(1, 2)})
    with pytest.raises(InputError, match="tensors that have names"):
        loaded.prepare(image="p.png", input=tmp_path / "x.pt")


# -- pictures


def test_pictures_that_cannot_be_read(tmp_path: Path) -> None:
    whole = toys.picture(tmp_path / "whole.png", 400, 300).read_bytes()
    for name, content in {"cut.png": whole[:200], "text.jpg": b"hello", "empty.png": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="cannot be read as a picture") as caught:
            open_image(tmp_path / name)
        assert name in str(caught.value)
    with pytest.raises(InputError, match="no such picture"):
        open_image(tmp_path / "none.png")


def test_odd_pictures_become_rgb(tmp_path: Path) -> None:
    for mode in ("L", "RGBA", "P", "CMYK", "1", "I;16"):
        path = tmp_path / f"{mode.replace(';', '')}.tiff"
        Image.new(mode, (5, 7)).save(path)
        assert open_image(path).mode == "RGB"
    turned = Image.new("RGB", (5, 7))
    exif = turned.getexif()
    exif[0x0112] = 6  # lies on its side
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (7, 5)


def test_plain_preprocessing_round_trips(tmp_path: Path) -> None:
    picture = open_image(toys.picture(tmp_path / "p.png", 40, 30))
    pixels = encode_images([picture], spec_of(None, torch.zeros(1, 3, 30, 40)))
    assert np.array_equal(Show().pictures(pixels)[0], np.asarray(picture))


def test_an_unknown_normalisation_is_stretched() -> None:
    shown = Show().pictures(torch.linspace(-3, 5, 32).view(2, 1, 4, 4))
    assert [int(picture.max()) for picture in shown] == [255, 255]
    assert [int(picture.min()) for picture in shown] == [0, 0]
    assert Show().pictures(torch.full((1, 3, 4, 4), -2.0))[0].max() == 0


def test_videos_keep_their_frames() -> None:
    assert Show().pictures(torch.rand(1, 5, 3, 8, 6))[0].shape == (5, 8, 6, 3)


# -- names


def test_near_names_and_safe_names() -> None:
    assert near("VIT_B16", ["vit_b_16", "swin_t"]) == "'vit_b_16'"
    assert near("zzz", ["vit_b_16"]) == ""
    for hostile in ("../../etc/passwd", "a\\b:c*?", "..", "", "/", "x" * 500):
        stem = file_stem(hostile)
        assert stem
        assert len(stem) <= 80
        assert not set(stem) & set("./\\:*? ")


def test_errors_are_of_one_tree() -> None:
    for kind in (LoadError, UnsafeFileError, InputError):
        assert issubclass(kind, FxplainError)


def test_a_loader_returns_what_cannot_be_changed() -> None:
    loaded: Any = Loaded(nn.Identity(), "x")
    with pytest.raises(AttributeError):
        loaded.name = "y"


def _pixel(image: Any) -> tuple[Any, ...]:
    return tuple(np.asarray(image)[0, 0].tolist())


@pytest.mark.parametrize(
    ("name", "array", "pixel", "note"),
    [
        ("deep.png", np.full((2, 2), 32896, np.uint16), 128, "16-bit values are scaled"),
        ("deep.tif", np.full((2, 2), 25700, np.uint16), 100, "16-bit values are scaled"),
        ("unit.tif", np.full((2, 2), 0.4, np.float32), 102, "floats in 0..1 are scaled"),
        ("bytes.tif", np.full((2, 2), 77.0, np.float32), 77, "in 0..255 are rounded"),
        ("wide.tif", np.array([[500, -500], [0, 0]], np.int32), 255, "-500 to 500, are stretched"),
    ],
)
def test_deep_pictures_are_scaled_not_clipped(
    name: str, array: Any, pixel: int, note: str, tmp_path: Path
) -> None:
    Image.fromarray(array).save(tmp_path / name)
    notes: list[str] = []
    assert _pixel(open_image(tmp_path / name, notes)) == (pixel,) * 3
    assert len(notes) == 1
    assert notes[0].startswith(name)
    assert note in notes[0]


def test_of_several_frames_the_first_is_taken_and_said(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    notes: list[str] = []
    assert _pixel(open_image(tmp_path / "moving.gif", notes)) == (255, 0, 0)
    assert notes == ["moving.gif: only the first of its 2 frames is explained"]


def test_transparent_places_are_white_and_said(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (2, 2), (9, 9, 9, 0))
    clear.save(tmp_path / "clear.png")
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([9, 9, 9, 200, 0, 0])
    palette.save(tmp_path / "palette.png", transparency=0)
    for name in ("clear.png", "palette.png"):
        notes: list[str] = []
        assert _pixel(open_image(tmp_path / name, notes)) == (255, 255, 255)
        assert notes == [f"{name}: its transparent places are taken as white"]
    Image.new("RGBA", (2, 2), (9, 9, 9, 255)).save(tmp_path / "solid.png")
    notes = []
    assert _pixel(open_image(tmp_path / "solid.png", notes)) == (9, 9, 9)
    assert not notes


def test_colours_for_print_are_converted_and_said(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.jpg")
    notes: list[str] = []
    red, green, _ = _pixel(open_image(tmp_path / "print.jpg", notes))
    assert red > 240
    assert green < 15
    assert "without a colour profile" in notes[0]


def test_notes_on_a_picture_reach_who_asked(tmp_path: Path) -> None:
    loaded = load(str(toys.vit(tmp_path / "model")))
    Image.fromarray(np.full((20, 20), 32896, np.uint16)).save(tmp_path / "deep.png")
    inputs, display = loaded.prepare(image=tmp_path / "deep.png")
    assert display.notes == ("deep.png: its 16-bit values are scaled to 8 bits",)
    result = fxplain.explain(loaded.model, inputs, target=1)
    shown = shown_by_space(display, result.spaces, result.batch)
    for name in ("r.html", "r.json"):
        result.save(tmp_path / name, shown)
        assert display.notes[0] in (tmp_path / name).read_text(encoding="utf-8")
    assert f"note      {display.notes[0]}" in cli_explain.summary(result, shown, shown.notes)
