"""Snippets of movie reviews with what people felt about them, and the words that carry opinions.

The data come with vaderSentiment (Hutto, Gilbert, *VADER*, ICWSM 2014; MIT licence): 10605 snippets of movie
reviews (and of others, of tweets and of editorials, to train on), each with the mean valence that twenty
people gave it, from -4 to 4, and a lexicon of 7500 words with a valence of their own. To have all of them:

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2

The snippets that a model is measured on lie beside its weights, so that measuring needs no download.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from weights import FOLDER, restore

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNKNOWN, CLS, SEP, MASK = range(5)
LENGTH = 48
"""Tokens of a snippet, [CLS] and [SEP] among them; longer ones are cut."""
DECIDED = 0.5
"""Snippets and words with a smaller valence have no side."""
HELD_OUT = FOLDER / "reviews.json"
VOCABULARY = FOLDER / "reviews-words.txt"
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|[0-9]+|[^\sa-z0-9]")


@dataclass(frozen=True)
class Snippet:
    """A text and its mean valence."""

    text: str
    valence: float

    @property
    def words(self) -> list[str]:
        return _WORD.findall(self.text.lower())


@dataclass(frozen=True)
class Data:
    """Everything that the package holds."""

    reviews: list[Snippet]
    """Of movies."""
    others: list[Snippet]
    lexicon: dict[str, float]


@dataclass(frozen=True)
class Reviews:
    """Snippets as a model reads them."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    """[samples]: 1 where people liked it."""
    marked: Tensor
    """[samples, tokens] bool: words of the lexicon on the label's side."""
    counted: Tensor
    """[samples, tokens] bool: words, that is neither [CLS] nor [SEP] nor padding."""
    texts: list[list[str]]

    def inputs(self) -> dict[str, Tensor]:
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}


def read(archive: Path) -> Data:
    """What lies in the package's source archive."""
    with tarfile.open(archive) as outer:
        nested = next(name for name in outer.getnames() if name.endswith("hutto_ICWSM_2014.tar.gz"))
        packed = _content(outer, nested)
    with tarfile.open(fileobj=io.BytesIO(packed)) as inner:
        files = {Path(name).name: _content(inner, name) for name in inner.getnames() if name.endswith(".txt")}
    snippets = {
        name: list(_snippets(content)) for name, content in files.items() if name.endswith("GroundTruth.txt")
    }
    reviews = snippets.pop("movieReviewSnippets_GroundTruth.txt")
    words = (line.split("\t") for line in files["vader_sentiment_lexicon.txt"].decode("latin-1").splitlines())
    lexicon = {parts[0].rstrip(":"): float(parts[1]) for parts in words if len(parts) > 1}
    return Data(reviews, [one for some in snippets.values() for one in some], lexicon)


def _content(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None, name
    return file.read()


def _snippets(content: bytes) -> Iterable[Snippet]:
    for line in content.decode("latin-1").splitlines():
        _, valence, text = line.split("\t", 2)
        yield Snippet(text, float(valence))


def vocabulary_of(snippets: Sequence[Snippet], least: int) -> list[str]:
    """The words that occur so often, most frequent first."""
    counts = Counter(word for one in snippets for word in one.words)
    return [*SPECIAL, *(word for word, count in counts.most_common() if count >= least)]


def ids(words: Sequence[str], numbers: dict[str, int]) -> list[int]:
    """[CLS], the words, [SEP]."""
    return [CLS, *(numbers.get(word, UNKNOWN) for word in words[: LENGTH - 2]), SEP]


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids [batch, tokens], and 1 where there is a token."""
    longest = max(map(len, rows))
    filled = torch.tensor([[*row, *[PAD] * (longest - len(row))] for row in rows])
    return filled, (filled != PAD).long()


def keep(snippets: Sequence[Snippet], lexicon: dict[str, float], accuracy: dict[str, float]) -> None:
    """Write what a model is measured on beside its weights."""
    used = {word for one in snippets for word in one.words}
    record = {
        "source": "vaderSentiment 3.3.2, Hutto and Gilbert 2014, MIT licence",
        "accuracy": accuracy,
        "lexicon": {word: lexicon[word] for word in sorted(used) if word in lexicon},
        "snippets": [[one.valence, one.text] for one in snippets],
    }
    HELD_OUT.write_text(json.dumps(record, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")


def held_out(count: int | None = None) -> Reviews:
    """Snippets that the model has not seen, those with a side and with a marked word."""
    record = json.loads(HELD_OUT.read_text(encoding="utf-8"))
    numbers = {word: place for place, word in enumerate(VOCABULARY.read_text(encoding="utf-8").split("\n"))}
    lexicon = record["lexicon"]
    texts, labels, marked = [], [], []
    for valence, text in record["snippets"]:
        words = Snippet(text, valence).words[: LENGTH - 2]
        sides = [lexicon.get(word, 0.0) * (1 if valence > 0 else -1) >= DECIDED for word in words]
        if any(sides):
            texts.append(words)
            labels.append(int(valence > 0))
            marked.append(sides)
    texts, labels, marked = texts[:count], labels[:count], marked[:count]
    input_ids, mask = padded([ids(words, numbers) for words in texts])
    places = torch.zeros_like(mask, dtype=torch.bool)
    for row, sides in enumerate(marked):
        places[row, 1 : len(sides) + 1] = torch.tensor(sides)
    counted = mask.bool() & (input_ids != CLS) & (input_ids != SEP)
    return Reviews(input_ids, mask, torch.tensor(labels), places, counted, texts)


def make(words: int) -> Any:
    """The model with weights drawn at random: a BERT of 4 layers and 4 heads of width 16."""
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(
            vocab_size=words,
            hidden_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=128,
            max_position_embeddings=LENGTH,
            num_labels=2,
            pad_token_id=PAD,
            id2label={0: "negative", 1: "positive"},
            label2id={"negative": 0, "positive": 1},
        )
    )


def load() -> Any:
    """The trained model."""
    words = len(VOCABULARY.read_text(encoding="utf-8").split("\n"))
    return restore("reviews", make(words))
