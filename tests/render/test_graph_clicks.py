"""The page of the attention graph in a browser: folds, search, filters, heads, and the way of relevance."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import fxplain
from fxplain.display import Display
from fxplain.graph_page import GraphPage

pytestmark = pytest.mark.packages

WORDS = ["[CLS]", "the", "film", "was", "wonder", "##ful", "[SEP]"]


@cache
def small() -> GraphPage:
    """Six layers over seven words, one class explained."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    config = hf.BertConfig(**sizes, num_hidden_layers=6, vocab_size=30, num_labels=3)
    model = hf.BertForSequenceClassification(config).eval()
    words = torch.arange(7)[None]
    return fxplain.trace(model, words).page(words, 1, display=Display(tokens={"input_ids": [WORDS]}))


@cache
def translating() -> GraphPage:
    """Three encoder and three decoder layers."""
    torch.manual_seed(0)
    model = torch.nn.Transformer(8, 2, 3, 3, 16, batch_first=True).eval()
    inputs = (torch.randn(1, 5, 8), torch.randn(1, 4, 8))
    return fxplain.trace(model, inputs).page(inputs, (0, 3))


def opened(browser: Any, made: GraphPage, folder: Path, scheme: str = "light") -> tuple[Any, list[str]]:
    """The page, and everything that the browser complains about or asks of the network."""
    made.save(folder / "page.html")
    page = browser.new_context(color_scheme=scheme, reduced_motion="reduce").new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if "page.html" not in request.url else None)
    page.goto(f"file://{folder}/page.html")
    return page, said


def count(page: Any, which: str) -> int:
    return int(page.locator(which).count())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_repeats_are_folded_and_unfold(browser: Any, tmp_path: Path, scheme: str) -> None:
    page, said = opened(browser, small(), tmp_path, scheme)
    assert count(page, ".site") == 1
    assert page.text_content(".fold").strip().endswith("6  unfold")
    page.click(".fold")
    assert count(page, ".site") == 6
    assert page.get_attribute(".fold", "aria-expanded") == "true"
    page.click(".fold")
    assert count(page, ".site") == 1
    assert not said


def test_a_click_opens_an_attention_and_its_layers(browser: Any, tmp_path: Path) -> None:
    page, said = opened(browser, small(), tmp_path)
    page.click(".site")
    assert page.inner_text("#panel h2") == "bert.encoder.layer.0.attention.self"
    assert "modeling_bert.py:" in page.inner_text("#panel dl")
    page.click("[aria-label='the next repeat']")
    assert page.inner_text("#panel h2") == "bert.encoder.layer.1.attention.self"
    page.locator(".share[data-site='attention:4']").click(force=True)
    assert page.inner_text("#panel h2") == "bert.encoder.layer.4.attention.self"
    page.keyboard.press("Escape")
    assert page.inner_text("#panel h2") == "Relevance on its way"
    assert not said


def test_heads_on_the_own_words(browser: Any, tmp_path: Path) -> None:
    page, said = opened(browser, small(), tmp_path)
    page.click(".site")
    page.wait_for_selector("canvas.map")
    assert count(page, ".heads button") == 3  # the mean, and two heads
    page.click("[aria-label='head 1']")
    page.focus("canvas.map")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#cell").startswith("'film' reads 'the': 0.")
    page.keyboard.press("Enter")
    assert page.inner_text("#say").startswith("'film' in layer.0.attention.self, head 1")
    assert page.eval_on_selector(".t.on", "one => one.textContent") == "film"
    page.click("#maps .views:nth-child(2) button:last-child")
    page.wait_for_selector("#maps .views:nth-child(2) button:last-child[aria-pressed=true]")
    page.get_by_text("lines", exact=True).click()
    assert count(page, ".lines [data-query]") == 7
    assert not said


def test_the_way_of_one_word(browser: Any, tmp_path: Path) -> None:
    page, said = opened(browser, small(), tmp_path)
    look = small().look
    assert look is not None
    assert look.result is not None
    token = 2
    share = float(look.passed["attention:3"][token] / look.result.relevance["input_ids"][0, token])
    page.click(f"[data-t='{token}']")
    assert page.inner_text("#panel h2") == "The way of 'film'"
    row = page.locator("#panel .row", has_text="layer.3").inner_text()
    shown = float(row.split()[-2])
    assert shown == pytest.approx(share * 100, abs=0.6)
    assert "'film' has" in page.inner_text("#say")
    page.locator("#panel .row", has_text="layer.3").click()
    assert "of the relevance of 'film' comes through it" in page.inner_text("#panel")
    assert not said


def test_search_finds_and_goes_on(browser: Any, tmp_path: Path) -> None:
    page, _ = opened(browser, translating(), tmp_path)
    page.keyboard.press("/")
    page.keyboard.type("decoder.layers.2")
    assert page.inner_text("#found") == "2 of 9"
    page.keyboard.press("Enter")
    first = page.inner_text("#panel h2")
    page.keyboard.press("Enter")
    assert first.startswith("decoder.layers.2.")
    assert page.inner_text("#panel h2") != first
    assert count(page, ".site.dim") > 0


def test_kinds_and_streams_are_filters(browser: Any, tmp_path: Path) -> None:
    page, said = opened(browser, translating(), tmp_path)
    page.click("#unfold")
    assert count(page, ".site") == 9
    page.uncheck("[data-kind='encoder_decoder']")
    assert count(page, ".site") == 6
    page.uncheck("[data-kind='self']")
    assert page.is_visible("#nothing")
    page.check("[data-kind='encoder_decoder']")
    assert count(page, ".site.k-encoder_decoder") == 3
    page.click("summary:has-text('streams')")
    page.uncheck("[data-stream='tgt']")
    assert count(page, ".site") == 0
    assert not said


def test_keys_walk_from_box_to_box(browser: Any, tmp_path: Path) -> None:
    page, _ = opened(browser, small(), tmp_path)
    page.click(".fold")
    page.focus(".site[tabindex='0']")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.inner_text("#panel h2") == "bert.encoder.layer.1.attention.self"


def test_zoom(browser: Any, tmp_path: Path) -> None:
    page, _ = opened(browser, small(), tmp_path)
    scale = "() => d3.zoomTransform(document.getElementById('stage')).k"
    before = page.evaluate(scale)
    page.click("#closer")
    assert page.evaluate(scale) == pytest.approx(before * 1.3)
    page.click("#fit")
    assert page.evaluate(scale) == pytest.approx(before)


def test_nothing_overlaps_and_all_lies_inside(browser: Any, tmp_path: Path) -> None:
    page, _ = opened(browser, translating(), tmp_path)
    page.click("#unfold")
    boxes = page.eval_on_selector_all(
        ".site .fill, .stream rect",
        "all => all.map(one => one.getBoundingClientRect()).map(b => [b.x, b.y, b.right, b.bottom])",
    )
    for number, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[number + 1 :]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top


def test_a_frame_in_a_notebook_works(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "notebook.html").write_text(f"<p>before</p>{small()._repr_html_()}")
    page = browser.new_page()
    page.goto(f"file://{tmp_path}/notebook.html")
    frame = page.frame_locator("iframe")
    frame.locator(".site").first.click()
    assert "layer.0.attention" in frame.locator("#panel h2").inner_text()
