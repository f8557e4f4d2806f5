"""Files: the suffix picks the form, the numbers come back, and nothing is ever half written."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from render_fixtures import image_result, make_result, photograph, space, text_result, two_stream_result

from fxplain.display import Display
from fxplain.errors import OutputError
from fxplain.files import write_whole
from fxplain.render import save as save_module
from fxplain.render.save import WRITERS
from fxplain.result import Relevance


def test_every_suffix_is_written(tmp_path: Path) -> None:
    display = Display(images={"pixel_values": [photograph(), photograph()]})
    starts = {".html": b"<!doctype html>", ".png": b"\x89PNG", ".json": b"{", ".npz": b"PK"}
    starts |= {".safetensors": b""}
    assert set(starts) == set(WRITERS)
    for suffix, start in starts.items():
        path = tmp_path / f"out{suffix.upper()}"
        image_result().save(path, display)
        assert path.read_bytes().startswith(start)
    assert sorted(p.suffix.lower() for p in tmp_path.iterdir()) == sorted(starts)


@pytest.mark.parametrize("name", ["out.txt", "out", "out.html.gz", ".html"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match=r"\.html, \.png, \.json, \.npz"):
        text_result().save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_named_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(save_module, "WRITERS", {".html": lambda *_: pytest.fail("drawn in vain")})
    with pytest.raises(OutputError, match="nowhere"):
        text_result().save(tmp_path / "nowhere" / "out.html")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        text_result().save(tmp_path / "folder.html")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OutputError, match="No space left"):
        text_result().save(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]


def test_a_failing_drawing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match="no picture to draw"):
        text_result().save(path)
    assert path.read_bytes() == b"old"


def test_an_interrupt_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        text_result().save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]
    assert path.read_text() == "old"


def test_permissions_are_as_plain_open_would_give(tmp_path: Path) -> None:
    plain, written = tmp_path / "plain", tmp_path / "written"
    plain.write_text("x")
    write_whole(written, "x")
    assert written.stat().st_mode == plain.stat().st_mode
    written.chmod(0o640)
    write_whole(written, "y")
    assert stat.S_IMODE(written.stat().st_mode) == 0o640


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_json_holds_all_that_the_picture_needs(tmp_path: Path) -> None:
    result = two_stream_result()
    display = Display(tokens={"input_ids": [["[CLS]", "a", "b", "c", "d", "\ud83d"]]}, labels={3: "yes"})
    result.save(tmp_path / "out.json", display)
    facts = json.loads((tmp_path / "out.json").read_text())
    assert facts["score"] == pytest.approx(result.score.tolist())
    assert facts["target"] == [[3]]
    assert facts["target_names"] == ["3 (yes)"]
    assert facts["verified"] == result.verified
    assert facts["notes"] == list(result.notes)
    assert facts["readout"] == [[[0, 1.0]]]
    assert [s["grid"] for s in facts["spaces"]] == [[6], [36]]
    for entry in facts["spaces"]:
        torch.testing.assert_close(torch.tensor(entry["relevance"]), result.relevance[entry["name"]])
    kinds = [(a["kind"], a["queries"], a["keys"]) for a in facts["attentions"]]
    assert kinds == [(a.kind, a.queries.name, a.keys.name) for a in result.attentions]
    assert ("co", "input_ids", "visual_feats") in kinds
    assert facts["streams"][0]["tokens"] == list(range(6))
    assert facts["tokens"]["input_ids"][0][5] == "\ud83d"


def test_json_has_no_nan(tmp_path: Path) -> None:
    text_result(verified=float("nan")).save(tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["verified"] is None


def test_npz_loads_without_pickle(tmp_path: Path) -> None:
    result, pictures = image_result(), [photograph(), photograph(60, 80)]
    result.save(tmp_path / "out.npz", Display(images={"pixel_values": pictures}))
    with np.load(tmp_path / "out.npz", allow_pickle=False) as data:
        facts = json.loads(str(data["facts"]))
        np.testing.assert_array_equal(
            data["relevance/pixel_values"], result.relevance["pixel_values"].numpy()
        )
        np.testing.assert_array_equal(data["image/pixel_values/1"], pictures[1])
        np.testing.assert_allclose(data["score"], result.score.numpy())
    assert facts["spaces"][0]["grid"] == [7, 7]


def test_names_make_no_paths_inside_npz(tmp_path: Path) -> None:
    result = make_result((space("../../etc/x", 0, 2),), torch.ones(1, 2), ())
    result.save(tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as data:
        assert "relevance/.._.._etc_x" in data.files


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_float_type_is_written(tmp_path: Path, dtype: torch.dtype) -> None:
    result = text_result()
    values = result.relevance["input_ids"].to(dtype).requires_grad_()
    result = text_result(
        relevance=Relevance({"input_ids": values}, result.spaces),
        score=result.score.to(dtype).requires_grad_(),
    )
    for suffix in (".json", ".npz", ".html"):
        result.save(tmp_path / f"out{suffix}")
    facts = json.loads((tmp_path / "out.json").read_text())
    assert facts["spaces"][0]["relevance"][0] == pytest.approx(values[0].tolist())
