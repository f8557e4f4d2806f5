"""The page of an explained answer in a browser: pointing, keeping, keys, words, folds and the matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from render_fixtures import make_result, site, space, whole

from fxplain.display import Display, Series
from fxplain.explainer.answer import Answer
from fxplain.explainer.generated import Generated
from fxplain.questions import Axis, Question
from fxplain.render.words import TokenText

pytestmark = pytest.mark.packages

PROMPT = ["<s>", "Where", " is", " Par", "is", "?", "\n"]
ANSWER = [" In", " Fra", "nce", "."]


def made(prompt: list[str], answer: list[str], values: torch.Tensor) -> Generated:
    """An answer with these numbers [answer, prompt + answer but the last]."""
    size = len(prompt) + len(answer) - 1
    ids = space("input_ids", 0, size)
    read = tuple(((len(prompt) - 1 + i, 1.0),) for i in range(len(answer)))
    stream = whole(ids)
    axes = (Axis("tokens", "input_ids", size), Axis("features", "", 99))
    questions = tuple(
        Question("next token", "logits", (len(prompt) - 1 + i, i), axes, text, probability=0.5)
        for i, text in enumerate(answer)
    )
    attentions = (site(0, "self", stream, stream, "layer"),)
    targets = tuple(question.index for question in questions)
    facts: dict[str, object] = {"readout": read, "target": targets, "questions": questions}
    result = make_result((ids,), values, attentions, **facts)
    texts = [TokenText(text, special=text.startswith("<")) for text in (*prompt, *answer)]
    turns = {"input_ids": [((0, len(prompt), "user"),)]}
    display = Display(tokens={"input_ids": [texts[:-1]]}, title="a page", turns=turns)
    return Generated(
        result,
        display,
        Answer("input_ids", len(prompt), tuple(range(len(answer))), tuple(texts[len(prompt) :])),
    )


def small() -> Generated:
    values = torch.zeros(4, 10)
    values[0, [1, 2]] = torch.tensor([3.0, 1.0])
    values[1, [3, 4, 7]] = torch.tensor([4.0, 4.0, 2.0])
    values[2, [3, 4, 8]] = torch.tensor([1.0, 1.0, 8.0])
    values[3, [0, 5]] = torch.tensor([1.0, -4.0])
    return made(PROMPT, ANSWER, values)


def pictured() -> Generated:
    """A real answer about two pictures."""
    from explainer.test_pictures_in_prompts import answer

    found: Generated = answer()
    return found


def opened(browser: Any, generated: Generated, folder: Path, scheme: str = "light") -> tuple[Any, list[str]]:
    """The page, and everything that the browser complains about or asks of the network."""
    generated.save(folder / "page.html")
    page = browser.new_context(color_scheme=scheme).new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if "page.html" not in request.url else None)
    page.goto(f"file://{folder}/page.html")
    return page, said


def strengths(page: Any, which: str) -> dict[str, float]:
    """Text -> strength of the colour."""
    script = "all => all.map(one => [one.textContent, Number(one.style.getPropertyValue('--v'))])"
    return dict(page.eval_on_selector_all(f"{which} .t", script))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pointing_at_a_token_lights_up_what_it_rests_on(browser: Any, tmp_path: Path, scheme: str) -> None:
    page, said = opened(browser, small(), tmp_path, scheme)
    page.hover("[data-a='1']")
    prompt = strengths(page, ".prompt")
    assert (prompt["Par"], prompt["is"], prompt["Where"]) == (1, 1, 0)
    assert strengths(page, ".answer")["In"] == 0.5
    assert page.inner_text("#say .q").startswith("the score of ' Fra' as the next token after")
    assert "Par 40 %, is 40 %, In 20 %" in page.inner_text("#say .rests")
    assert page.eval_on_selector(".on", "one => one.textContent") == "Fra"
    assert page.eval_on_selector("[data-c='9']", "one => getComputedStyle(one).backgroundColor") != ""
    assert not said


def test_a_click_keeps_and_escape_lets_go(browser: Any, tmp_path: Path) -> None:
    page, _ = opened(browser, small(), tmp_path)
    page.click("[data-a='1']")
    page.hover("[data-a='3']")
    assert "' Fra'" in page.inner_text("#say .q")
    page.keyboard.press("Escape")
    assert page.inner_text("#say .q") == "The whole answer"
    page.hover("h1")
    page.hover("[data-a='3']")
    assert page.eval_on_selector("[data-c='5']", "one => one.classList.contains('neg')")
    assert page.eval_on_selector("[data-c='9']", "one => one.classList.contains('off')")


def test_a_token_of_the_prompt_shows_what_it_served(browser: Any, tmp_path: Path) -> None:
    page, _ = opened(browser, small(), tmp_path)
    page.click("[data-c='3']")
    assert strengths(page, ".answer") == {"In": 0, "Fra": 1, "nce": 0.25, ".": 0}
    assert "'Par' of the prompt" in page.inner_text("#say .q")
    assert "Fra 40 %, nce 10 %" in page.inner_text("#say .rests")


def test_whole_words(browser: Any, tmp_path: Path) -> None:
    page, _ = opened(browser, small(), tmp_path)
    page.check("#words")
    page.hover("[data-a='2']")
    assert page.inner_text("#say .q") == "'France', 2 tokens together"
    assert page.inner_text("#say .rests").startswith("rests most on Paris 50 %, France 40 %, In 10 %")
    prompt = strengths(page, ".prompt")
    assert prompt["Par"] == prompt["is"] == 1


def test_keys_move_and_keep(browser: Any, tmp_path: Path) -> None:
    page, _ = opened(browser, small(), tmp_path)
    page.focus("[data-a='0']")
    page.keyboard.press("ArrowRight")
    assert "' Fra'" in page.inner_text("#say .q")
    page.keyboard.press("Enter")
    page.keyboard.press("End")
    assert "'.'" in page.inner_text("#say .q")
    assert page.eval_on_selector_all(".answer .t[tabindex='0']", "all => all.length") == 1


def test_special_tokens_may_stay_out_of_the_scale(browser: Any, tmp_path: Path) -> None:
    values = torch.zeros(4, 10)
    values[:, 0], values[:, 1] = 9.0, 1.0
    page, _ = opened(browser, made(PROMPT, ANSWER, values), tmp_path)
    assert page.is_checked("#marks")
    page.hover("[data-a='0']")
    assert strengths(page, ".prompt")["Where"] == 1
    assert "<s> 90 %" in page.inner_text("#say .rests")
    page.uncheck("#marks")
    page.hover("[data-a='0']")
    assert strengths(page, ".prompt")["Where"] == pytest.approx(0.111)


def test_the_matrix(browser: Any, tmp_path: Path) -> None:
    page, said = opened(browser, small(), tmp_path)
    page.click("#as-matrix")
    assert page.is_hidden("#text-view")
    box = page.locator("#canvas").bounding_box()
    cell = {"x": 120 + 3.5 * 20, "y": 92 + 1.5 * 20}
    page.hover("#canvas", position=cell)
    assert page.inner_text("#cell .rests") == "40 % of it on 'Par'"
    ink = page.evaluate(
        "([x, y]) => [...document.getElementById('canvas').getContext('2d').getImageData(x, y, 1, 1).data]",
        [cell["x"], cell["y"]],
    )
    assert box["width"] > 200
    assert ink[3] == 255
    page.click("#canvas", position=cell)
    assert page.is_visible("#text-view")
    assert "' Fra'" in page.inner_text("#say .q")
    assert not said


def test_a_long_prompt_is_folded_and_opens(browser: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    prompt = ["<s>", *(f" word{i}" for i in range(1000))]
    values = torch.rand(20, 1020) * 1e-3
    values[:, 500] = 5.0
    page, said = opened(browser, made(prompt, [f" a{i}" for i in range(20)], values), tmp_path)
    assert page.is_checked("#fold")
    assert page.is_visible("[data-c='500']")
    hidden = page.eval_on_selector_all(".folded", "all => all.length")
    assert hidden > 300
    first = page.locator(".gap").first
    count = int(first.inner_text().split()[1])
    first.click()
    assert page.eval_on_selector_all(".folded", "all => all.length") == hidden - count
    page.uncheck("#fold")
    assert not page.eval_on_selector_all(".folded, .gap", "all => all.length")
    assert not said


def test_a_frame_in_a_notebook_works(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "notebook.html").write_text(f"<p>before</p>{small()._repr_html_()}")
    page = browser.new_page()
    page.goto(f"file://{tmp_path}/notebook.html")
    frame = page.frame_locator("iframe")
    frame.locator("[data-a='1']").hover()
    assert "' Fra'" in frame.locator("#say .q").inner_text()


def heard() -> Generated:
    """An answer about a sound of one second, padded to two."""
    features, said = space("input_features", 0, 8), space("decoder_input_ids", 8, 2)
    values = torch.zeros(2, 10)
    values[0, [0, 1, 8]] = torch.tensor([1.0, 4.0, 9.0])
    values[1, [2, 3, 6, 8, 9]] = torch.tensor([3.0, 1.0, 2.0, 1.0, 1.0])
    texts = [TokenText("<s>", special=True), TokenText(" left"), TokenText(" right")]
    axes = (Axis("tokens", said.name, 2), Axis("features", "", 4))
    questions = tuple(
        Question("next token", "logits", (place, place + 1), axes, str(text), probability=0.5)
        for place, text in enumerate(texts[1:])
    )
    result = make_result(
        (features, said),
        values,
        (site(0, "encoder_decoder", whole(said), whole(features), "layer"),),
        target=((0, 1), (1, 2)),
        readout=(((8, 1.0),), ((9, 1.0),)),
        questions=questions,
    )
    sound = np.sin(np.arange(8000) / 9).astype(np.float32)
    series = Series(sound, "seconds", step=1 / 8000, covers=(0.0, 2.0), sound=True)
    display = Display(
        tokens={"decoder_input_ids": [texts[:2]]}, series={"input_features": [series]}, title="heard"
    )
    return Generated(result, display, Answer("decoder_input_ids", 1, (1, 2), tuple(texts[1:])))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_lie_over_the_sound(browser: Any, tmp_path: Path, scheme: str) -> None:
    page, said = opened(browser, heard(), tmp_path, scheme)
    lane = page.eval_on_selector_all(".said .t", "all => all.map(one => [one.textContent, one.title])")
    assert lane == [["left", "0.25-0.50 seconds"], ["right", "0.50-0.75 seconds"]]
    page.click(".said .t >> nth=0")
    assert "lies at 0.25-0.50 seconds" in page.inner_text("#say .rests")
    assert page.inner_text("#play") == "▶ 0.25-0.50 seconds"
    cells = page.eval_on_selector_all(
        ".cells-of-track .t", "all => all.map(one => Number(one.style.getPropertyValue('--v')))"
    )
    assert cells == [0.25, 1, 0, 0]  # in a scale of their own, and without the padding
    assert page.inner_text(".behind") == "4 tokens behind the end, on padding: 0.0 %"
    page.keyboard.press("Escape")
    page.click("[data-a='1'] >> nth=0")
    assert page.inner_text(".behind").endswith(": 25 %")
    assert not said


def test_a_picture_is_one_column_of_the_matrix(browser: Any, tmp_path: Path) -> None:
    found = pictured()
    page, said = opened(browser, found, tmp_path)
    assert "pixel_values[0, " in page.inner_text("#say .rests")
    page.click("#as-matrix")
    texts = [column.text for column in found.columns if column.part == "prompt"]
    places = [i for i, text in enumerate(texts) if "<image>" in text]
    width = page.evaluate("canvas.clientWidth")
    along = len(found.columns) - len(places) - 32 + 2  # two pictures of 16 parts, each with as many marks
    assert width == 120 + 8 + 20 * along
    page.hover("#canvas", position={"x": 120 + 20 * places[0] + 10, "y": 92 + 10})
    share = found.evidence[0]["pixel_values, picture 1"]
    told = page.inner_text("#cell .rests")
    assert told.endswith("of it on picture 1")
    assert float(told.split()[0]) == pytest.approx(100 * share, abs=1)
    assert not said


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_printed_on_white_with_its_colours(browser: Any, tmp_path: Path, scheme: str) -> None:
    page, _ = opened(browser, small(), tmp_path, scheme)
    page.click("[data-a='1']")
    page.emulate_media(media="print", color_scheme=scheme)
    styles = "one => [getComputedStyle(one).backgroundColor, getComputedStyle(one).printColorAdjust]"
    assert page.eval_on_selector("body", styles) == ["rgb(255, 255, 255)", "exact"]
    assert page.eval_on_selector("body", "one => getComputedStyle(one).color") == "rgb(28, 33, 40)"
    warm = page.eval_on_selector("[data-c='3']", styles)
    assert warm == ["rgb(240, 122, 20)", "exact"]
    assert page.is_visible("#say .q")  # what the colours are about
    assert page.is_hidden("#bar")
