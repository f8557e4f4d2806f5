"""The texts of tokens are parts of what the user wrote, for every family of tokenizers (trained here)."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import transformers as hf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from fxplain.adapters.text import Speller
from fxplain.render.words import TokenText, direction, pieces

LINES = [
    "The capital of France is Paris.\n## Heading\n\n    indented code",
    "Where is it? The cat's photo of the dog was good",
    "café naïve straße",
]
TEXTS = [
    "The capital of France",
    "## Heading\nThe cat's  photo\n\n    of it\n",
    " France is café 😂 naïve 日本",
    "good\tdog",
    "",
]


def byte_level(trimmed: bool = False) -> Any:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=trimmed)
    letters = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        LINES,
        trainers.BpeTrainer(
            vocab_size=340, initial_alphabet=letters, special_tokens=["<|endoftext|>"], show_progress=False
        ),
    )
    end = "<|endoftext|>"
    return hf.PreTrainedTokenizerFast(tokenizer_object=made, unk_token=end, eos_token=end, bos_token=end)


def byte_level_trimmed() -> Any:
    return byte_level(trimmed=True)


def word_piece() -> Any:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(cleanup=False)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    made.train_from_iterator(
        LINES, trainers.WordPieceTrainer(vocab_size=90, special_tokens=special, show_progress=False)
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), special, strict=True))
    return hf.PreTrainedTokenizerFast(tokenizer_object=made, **names)


def unigram() -> Any:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(
        LINES,
        trainers.UnigramTrainer(
            vocab_size=90, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
        ),
    )
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


FAMILIES = [byte_level, byte_level_trimmed, word_piece, unigram]


def body(tokens: list[TokenText]) -> str:
    return "".join(token for token in tokens if not token.special)


@pytest.mark.parametrize("make", FAMILIES)
def test_joined_the_tokens_are_the_text(make: Any) -> None:
    tokenizer = make()
    spell = Speller(tokenizer)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert body(spell(ids, text)) == text * bool(text.strip())
        if ids:
            padded = [*ids, *[tokenizer.pad_token_id or 0] * 3]
            assert body(spell(padded, text)) == text * bool(text.strip())


def test_decoded_alone_byte_level_tokens_are_the_text_too() -> None:
    tokenizer = byte_level()
    for text in TEXTS:
        assert body(Speller(tokenizer)(tokenizer(text)["input_ids"])) == text


def test_a_slow_tokenizer_is_decoded() -> None:
    tokenizer = hf.CanineTokenizer()
    assert not tokenizer.is_fast
    tokens = Speller(tokenizer)(tokenizer("ab c")["input_ids"], "ab c")  # type: ignore[arg-type]
    assert body(tokens) == "ab c"
    assert [token.special for token in tokens] == [True, *[False] * 4, True]


def test_nothing_of_another_text_is_shown() -> None:
    tokenizer = word_piece()
    ids = tokenizer("the dog was good")["input_ids"]
    assert body(Speller(tokenizer)(ids, "the dog was Paris")) == "the dog was good"


def test_a_cut_text_is_shown_as_far_as_it_was_read() -> None:
    tokenizer = word_piece()
    ids = tokenizer("The dog was good", truncation=True, max_length=5)["input_ids"]
    tokens = Speller(tokenizer)(ids, "The dog was good")
    assert body(tokens)
    assert "The dog was good".startswith(body(tokens))


def test_unknown_words_are_shown_as_written_and_read() -> None:
    tokenizer = word_piece()
    tokens = Speller(tokenizer)(tokenizer("the 日 dog")["input_ids"], "the 日 dog")
    assert [(str(t), t.read_as) for t in tokens if t.read_as] == [(" 日", "[UNK]")]


def test_a_split_character_is_shown_once() -> None:
    tokenizer = byte_level()
    ids = tokenizer("😂")["input_ids"]
    assert len(ids) == 4
    for text in ("😂", None):
        tokens = Speller(tokenizer)(ids, text)
        assert tokens == ["😂", "", "", ""]
        assert [piece.text for piece in pieces(tokens)] == ["😂", "·", "·", "·"]


def test_a_heading_of_markdown_leaves_a_page_byte_level() -> None:
    assert "".join(p.before + p.text for p in pieces(["##", "ĠParis", "Ċ", "Ġis"])) == "## Paris⏎ is"
    tokenizer = byte_level()
    text = "## The\nFrance"
    shown = pieces(Speller(tokenizer)(tokenizer(text)["input_ids"], text))
    assert "".join(p.before + p.text for p in shown) == "## The⏎France"
    assert [p.line_break for p in shown if p.text == "⏎"] == [True]


def test_marks_stand_apart_and_spaces_are_kept() -> None:
    tokens = [
        TokenText("<s>", special=True),
        TokenText("a"),
        TokenText("\n  b"),
        TokenText(" "),
        TokenText("c"),
    ]
    assert [(p.before, p.text) for p in pieces(tokens)] == [
        ("", "<s>"), (" ", "a"), ("\n  ", "b"), ("", "␣"), ("", "c"),
    ]  # fmt: skip
    assert direction([TokenText("<s>", special=True), TokenText("שלום")]) == "rtl"


def test_a_token_text_survives_a_pickle() -> None:
    again = pickle.loads(pickle.dumps(TokenText("日", read_as="[UNK]")))
    assert (again, again.special, again.read_as) == ("日", False, "[UNK]")
