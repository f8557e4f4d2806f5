"""Pages: every token and name escaped, readable spellings, all facts of the result, nothing loaded."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
import torch
from render_fixtures import (
    HOSTILE,
    image_result,
    make_result,
    photograph,
    space,
    text_result,
    two_stream_result,
)

from fxplain.display import Display
from fxplain.render.report import report
from fxplain.render.text_page import coloured_texts, text_page
from fxplain.render.words import direction, pieces

WORDS = ["[CLS]", "the", "film", "is", "wonder", "##fully", "well", "made", "[SEP]"]


class Page(HTMLParser):
    """Collects tags, attributes and text; fails on tags left open."""

    VOID = frozenset({"meta", "img", "br", "link", "circle", "rect", "path", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def assert_inert(page: Page) -> None:
    """Nothing on the page runs or loads anything."""
    assert not {"script", "iframe", "link", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "action"):
            assert str(attributes.get(name, "data:image/png")).startswith("data:image/png")
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv")]
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_hostile_words_and_names_are_text() -> None:
    nasty = [
        HOSTILE,
        "<img src=x onerror=alert(1)>",
        '" onmouseover="alert(1)',
        "'><b>",
        "&lt;",
        "{{ 7*7 }}",
        "-->",
    ]
    result = text_result(notes=(HOSTILE,), output=HOSTILE, method=HOSTILE)
    display = Display(
        tokens={"input_ids": [[*nasty, "x", "y"]]}, title=HOSTILE, captions=[HOSTILE], labels={3: HOSTILE}
    )
    for text in (report(result, display), text_page(result, display)):
        page = Page(text)
        assert_inert(page)
        for word in nasty:
            assert word in page.text
        assert "<script" not in text
        assert "{{ 7*7 }}" in text


def test_hostile_space_names() -> None:
    result = make_result((space(HOSTILE, 0, 3), space("a", 3, 2, 2)), torch.rand(1, 7), (), readout=((),))
    page = Page(report(result, Display()))
    assert_inert(page)
    assert HOSTILE in page.text


def test_half_surrogates_and_controls_can_be_written() -> None:
    display = Display(
        tokens={"input_ids": [["\ud83d", "\x00", "\u202e", "\n", "", " ", "\t", "\x1b[31m", "a"]]}
    )
    text = report(text_result(), display)
    text.encode("utf-8")
    assert "\x00" not in text
    assert "\u202e" not in text
    assert "⟨U+202E⟩" in text


def test_strength_is_the_min_max_of_the_relevance() -> None:
    (text,) = coloured_texts(text_result(), Display(tokens={"input_ids": [WORDS]}), 0)
    assert [float(t.strength) for t in text.tokens[1:]] == pytest.approx(
        [0.05, 0.775, 0.025, 0.55, 1.0, 0.05, 0.125, 0.0], abs=1e-3
    )
    assert [t.style for t in text.tokens] == ["own", "", "hot", "", "", "hot", "", "", ""]
    assert text.tokens[2].tip.startswith("0.31\ntoken 2: 'film'")


def test_hover_shows_the_number() -> None:
    page = Page(text_page(text_result(), Display(tokens={"input_ids": [WORDS]})))
    tips = [a["title"] for a in page.all("span") if "title" in a]
    assert len(tips) == 9
    assert str(tips[5]).startswith("0.4\n")


def test_negative_relevance_has_its_own_colour() -> None:
    (text,) = coloured_texts(
        text_result([[0.0, -0.4, 0.2, 0, 0, 0, 0, 0, 0]]), Display(tokens={"input_ids": [WORDS]}), 0
    )
    assert text.scale.signed
    assert text.tokens[1].style == "neg hot"
    assert text.tokens[2].style == ""


def test_constant_relevance_says_so_and_has_no_nan() -> None:
    text = report(text_result([[0.1] * 9]), Display(tokens={"input_ids": [WORDS]}))
    assert "all tokens alike: 0.1" in text
    assert "nan" not in re.sub(r"data:image/png;base64,[^\"]*", "", text).lower().replace("finance", "")


@pytest.mark.parametrize(
    ("tokens", "shown"),
    [
        (["[CLS]", "play", "##ing", "##", "[SEP]"], "[CLS] playing ## [SEP]"),
        (["The", "Ġcaf", "Ã©", "Ġ<", "|", "<|endoftext|>"], "The café <| <|endoftext|>"),
        (["▁Hello", "▁wor", "ld", "!", "</s>"], "Hello world! </s>"),
        (["<s>", "▁a", "<0x21>", "▁b▁c"], "<s> a! b c"),
        (
            ["<|startoftext|>", "a</w>", "pho", "to</w>", "<|endoftext|>"],
            "<|startoftext|> a photo <|endoftext|>",
        ),
        (["un@@", "believ@@", "able", "story"], "unbelievable story"),
        (["Hello", " world", "!"], "Hello world!"),
        (["C", "(", "=", "O", ")"], "C ( = O )"),
        (["a", "", "\n", "\t"], "a ∅ ⏎ ⇥"),
    ],
)
def test_spellings_of_tokenizers(tokens: list[str], shown: str) -> None:
    assert "".join(piece.before + piece.text for piece in pieces(tokens)) == shown


def test_letters_split_over_tokens_show_their_bytes() -> None:
    assert [piece.text for piece in pieces(["Ġ", "ðŁĺ", "Ĥ"])][1:] == [r"\xf0\x9f\x98", r"\x82"]


def test_line_breaks_break_the_line() -> None:
    assert [piece.line_break for piece in pieces(["Ġa", "Ċ", "Ġb"])] == [False, True, False]


def test_joiners_of_emoji_and_persian_stay() -> None:
    for word in ("\u0645\u06cc\u200c\u062e\u0648", "\U0001f468\u200d\U0001f469"):
        assert pieces([word])[0].text == word


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["[CLS]", "שלום"], "rtl"),
        (["<s>", "▁مر", "حبا"], "rtl"),
        (["[CLS]", "hello", "שלום"], "ltr"),
        (["Ġhello"], "ltr"),
        (["1", "2"], "ltr"),
        ([], "ltr"),
    ],
)
def test_direction(tokens: list[str], expected: str) -> None:
    assert direction(tokens) == expected


def test_right_to_left_text_and_left_to_right_marks() -> None:
    page = Page(text_page(text_result(), Display(tokens={"input_ids": [["[CLS]", "שלום", "</s>"]]})))
    assert [a["dir"] for a in page.all("p") if "dir" in a] == ["rtl"]
    assert [a.get("dir") for a in page.all("span") if "title" in a] == ["ltr", None, "ltr"]


def test_the_report_tells_what_was_explained() -> None:
    display = Display(
        tokens={"input_ids": [["[CLS]", "what", "is", "the", "man", "[SEP]"]]}, labels=["a", "b", "c", "yes"]
    )
    result = two_stream_result()
    page = Page(report(result, display))
    co = next(attention for attention in result.attentions if attention.kind == "co")
    for fact in (
        "3 (yes)",
        f"{float(result.score):.4g}",
        "relevancy",
        f"{result.verified:.1e}",
        "question_answering_score",
        "input_ids[0]",
        "visual_pos has no tokens of its own",
    ):
        assert fact in page.text
    for fact in (
        "self-attention",
        "co-attention",
        co.module,
        co.source,
        "visual_feats",
    ):
        assert fact in page.text
    assert len([a for a in page.all("b") if "title" in a]) == 36
    assert_inert(page)


def test_the_report_of_a_batch_shows_every_sample() -> None:
    display = Display(
        images={"pixel_values": [photograph(), photograph(60, 90)]}, captions=["one.png", "two.png"]
    )
    page = Page(report(image_result(7, 2), display))
    assert len(page.all("img")) == 4
    assert "one.png" in page.text
    assert "two.png" in page.text
    assert_inert(page)


def test_very_many_tokens_are_drawn_by_their_strongest() -> None:
    rows = torch.zeros(1, 5000)
    rows[0, 4321] = 1.0
    page = Page(report(make_result((space("x", 0, 5000),), rows, (), readout=((),)), Display()))
    bars = [a["title"] for a in page.all("b") if "title" in a]
    assert len(bars) == 400
    assert any(str(tip) == "1\ntoken 4321" for tip in bars)


def test_spaces_with_rows_and_columns_but_no_picture_are_maps() -> None:
    page = Page(report(image_result(7, 1), Display()))
    assert [str(a["alt"]) for a in page.all("img")] == ["relevance of pixel_values, part 1"]


@pytest.mark.parametrize(
    ("target", "sample", "words"),
    [
        (((3,), (1,)), 1, "1 (b)"),
        (((4, 2),), 0, "4, 2 (c)"),
        (3, 0, "3"),
        ((4, 0), 1, "4, 0 (a)"),
        (torch.tensor([[1], [2]]), 1, "2 (c)"),
        ("a function", 0, "a function"),
        ((), 0, ""),
    ],
)
def test_targets_in_words(target: object, sample: int, words: str) -> None:
    assert Display(labels=["a", "b", "c"]).target_name(target, sample) == words


def test_labels_may_be_a_mapping() -> None:
    assert Display(labels={7: "seven"}).target_name(((7,),), 0) == "7 (seven)"
