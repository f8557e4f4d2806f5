"""The page on this machine: what it answers, what it refuses, and how it looks to a person."""

from __future__ import annotations

import io
import threading
import time
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_folders as toys
from PIL import Image

import fxplain
from fxplain.serve.handed import MOST_LETTERS, asked_of, picture, sound

pytest.importorskip("starlette")
pytest.importorskip("python_multipart")
testing = pytest.importorskip("starlette.testclient")

TOKEN = "secret"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("served")
    toys.vit(place / "vit")
    toys.bert(place / "bert")
    toys.bart(place / "bart")
    return place


def client(folder: Path, name: str) -> Any:
    from fxplain.serve.app import application

    made = application(fxplain.Explainer.from_pretrained(folder / name), TOKEN)
    return testing.TestClient(made, base_url="http://127.0.0.1")


@pytest.fixture(scope="module")
def pictures(folder: Path) -> Any:
    return client(folder, "vit")


@pytest.fixture(scope="module")
def texts(folder: Path) -> Any:
    return client(folder, "bert")


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 24), "orange").save(buffer, "PNG")
    return buffer.getvalue()


def test_a_text_is_answered_and_its_page_is_kept(texts: Any) -> None:
    found = texts.post(f"/{TOKEN}/explain", data={"text": "the movie was good"}, files={"sound": b""})
    answer = found.json()
    assert found.status_code == 200, answer
    assert {one["name"].rpartition(" ")[0] for one in answer["choices"]} == {"positive", "negative"}
    assert answer["question"].startswith("the score of class")
    page = texts.get(f"/{TOKEN}/{answer['page']}")
    assert "movie</span>" in page.text
    assert page.headers["content-security-policy"].startswith("sandbox")
    assert page.headers["referrer-policy"] == "no-referrer"
    other = answer["choices"][1]
    again = texts.post(
        f"/{TOKEN}/explain",
        data={"text": "the movie was good", "target": other["target"]},
        files={"sound": b""},
    ).json()
    assert again["choices"] == []
    assert other["name"].split()[0] in again["question"]


def test_a_picture_is_answered(pictures: Any) -> None:
    found = pictures.post(f"/{TOKEN}/explain", files={"picture": ("p.png", png())}).json()
    assert len(found["choices"]) == 3
    assert "data:image/png" in pictures.get(f"/{TOKEN}/{found['page']}").text


def test_a_target_is_asked_for_although_an_answer_could_be_given(folder: Path) -> None:
    answering = client(folder, "bart")
    text = {"text": "the movie was good", "tokens": "2"}
    home = answering.get(f"/{TOKEN}/").text
    assert '<select name="method" id="method"><option>auto</option>' in home
    assert 'value="20"' in home
    assert (
        "the answer"
        in answering.post(f"/{TOKEN}/explain", data=text, files={"sound": b""}).json()["question"]
    )
    asked = answering.post(f"/{TOKEN}/explain", data=text | {"target": " cat"}, files={"sound": b""}).json()
    assert asked["question"].startswith("the score of ' cat'")


def test_without_the_secret_or_by_another_name_nothing_is_answered(texts: Any) -> None:
    assert texts.get("/").status_code == 404
    assert texts.get("/wrong/").status_code == 404
    assert texts.get(f"/{TOKEN}/", headers={"host": "evil.example"}).status_code == 400
    assert texts.get(f"/{TOKEN}/page/999").status_code == 404
    home = texts.get(f"/{TOKEN}/")
    assert "script-src 'sha256-" in home.text
    assert "Type a text" in home.text
    assert "Drop a picture" not in home.text


@pytest.mark.parametrize(
    ("data", "files", "message"),
    [
        ({}, {"sound": b""}, "there is nothing to explain yet"),
        ({"text": "x" * (MOST_LETTERS + 1)}, {"sound": b""}, "too long"),
        ({}, {"picture": ("p.png", b"import os")}, "no picture that can be read"),
        ({}, {"sound": ("s.wav", b"RIFF")}, "no .wav that can be read"),
        ({"text": "the cat", "target": "nobody"}, {"sound": b""}, "no target named"),
        ({"text": "the cat", "tokens": "9999"}, {"sound": b""}, "no length of an answer"),
        ({}, {"picture": ("p.png", bytes(25 << 20))}, "too much was sent"),
    ],
)
def test_what_cannot_be_explained_is_told(texts: Any, data: Any, files: Any, message: str) -> None:
    found = texts.post(f"/{TOKEN}/explain", data=data, files=files)
    assert found.status_code == 400
    assert message in found.json()["error"]


def test_what_is_dropped_is_read_within_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(np.arange(800, dtype="<i2").tobytes())
    array, rate = sound(buffer.getvalue())
    assert (len(array), rate) == (800, 8000)
    monkeypatch.setattr("fxplain.serve.handed.MOST_SECONDS", 0.05)
    with pytest.raises(fxplain.InputError, match="too long"):
        sound(buffer.getvalue())
    monkeypatch.setattr("fxplain.serve.handed.MOST_PIXELS", 10)
    with pytest.raises(fxplain.InputError, match="too large"):
        picture(png())
    other = io.BytesIO()
    Image.new("RGB", (4, 4)).save(other, "TIFF")
    with pytest.raises(fxplain.InputError, match="no picture"):
        picture(other.getvalue())
    asked = asked_of({"text": "a", "target": "3, 1", "method": "rollout"}, {})
    assert (asked.target, asked.method, asked.inputs) == ((3, 1), "rollout", {})


@pytest.fixture(scope="module")
def address(folder: Path) -> str:
    """A server of its own, as the command starts it."""
    return served(folder / "vit")


def served(folder: Path) -> str:
    pytest.importorskip("uvicorn")
    from fxplain.serve.app import serve

    told: list[str] = []
    explainer = fxplain.Explainer.from_pretrained(folder)
    threading.Thread(target=serve, args=(explainer, 0, told.append), daemon=True).start()
    while not told:
        time.sleep(0.05)
    return told[0]


@pytest.mark.packages
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_person_drops_a_picture_and_picks(browser: Any, address: str, tmp_path: Path, scheme: str) -> None:
    (tmp_path / "p.png").write_bytes(png())
    page = browser.new_context(color_scheme=scheme).new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(address)
    page.set_input_files("#picture", tmp_path / "p.png")
    page.click("#go")
    page.wait_for_selector("#choices button", timeout=120_000)
    assert page.locator("#choices button").count() == 3
    first = page.inner_text("#state")
    assert page.frame_locator("#shown").locator("h1").inner_text() == "vit"
    page.click("#choices button >> nth=1")
    page.wait_for_function(
        "first => !['explaining', first].some(t => state.textContent.startsWith(t))",
        arg=first,
        timeout=120_000,
    )
    assert page.get_attribute("#choices button >> nth=1", "aria-pressed") == "true"
    assert not [line for line in said if "favicon" not in line and "404" not in line]


@pytest.mark.packages
def test_an_answer_lights_up_in_the_frame(browser: Any, folder: Path) -> None:
    page = browser.new_page()
    page.goto(served(folder / "bart"))
    box, form = page.locator("#text").bounding_box(), page.locator("#form").bounding_box()
    assert box["width"] > 0.95 * form["width"]  # nothing to drop: the text has the whole width
    page.fill("#text", "the movie was good")
    page.fill("#tokens", "2")
    page.keyboard.press("Control+Enter")
    shown = page.frame_locator("#shown")
    shown.locator("[data-a='0']").click(timeout=120_000)
    assert "the score of" in shown.locator("#say .q").inner_text()
    assert page.inner_text("#state").startswith("the answer")
