"""The BERT that reads movie reviews: CVPR paper, Figure 4; words deleted and masked as in the ICCV paper."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import samples
import torch
from jobs import TERMS, VARIANTS, Claim, Job, all_methods
from reviews import MASK, Reviews, held_out, load

import fxplain
from fxplain import evaluate

BATCH = 50
METHODS = all_methods(across=False)
K = (1, 2, 3, 5, 8, 12)
_WEAKER = ("rollout", "raw_attention", "attention_gradcam", "partial_lrp", "random")
_LEADS = "Relevancy leads rollout, raw attention, Grad-CAM and partial LRP"
_ATTRIBUTION = "Transformer attribution leads them too"

SPECIFIC = ("relevancy", *VARIANTS, "attention_gradcam", "rollout")
PREDICTED = "{}, predicted class"

ABOUT = {
    "BERT": """
A small BERT (class of transformers: 4 layers, 4 heads, width 64, 1.2 MB) that says whether people liked what
a snippet of a movie review tells. It learned from the mean valence that twenty people gave each of 9100
snippets (`benchmarks/experiments/train_reviews.py`; data: `pip download --no-deps --no-binary :all:
vaderSentiment==3.3.2`). It tells the side of 74.4 % of 1440 held-out snippets, and of 80.5 % of those with a
valence beyond 1.5; adding up the lexicon's valences of their words tells 64 %. The marked words are those of
that lexicon (valence of at least 0.5, on the side of the snippet's label): people gave each word its valence
without any context, and the model never saw the lexicon.""",
}


def _traced(reviews: Reviews) -> fxplain.Traced:
    return fxplain.trace(load(), {name: value[:BATCH] for name, value in reviews.inputs().items()})


def words(count: int) -> evaluate.Table:
    """The class that people gave is explained; the lexicon's words on its side should be found."""
    reviews = held_out(count)
    traced = _traced(reviews)

    found = partial(evaluate.rationales, traced, reviews.inputs(), reviews.marked)
    return found(reviews.labels, METHODS, counted=reviews.counted, k=K, batch=BATCH)


def perturbed(removal: evaluate.Removal, count: int) -> evaluate.Table:
    """The class that the model names is explained; whether it stays counts."""
    reviews = held_out(count)
    traced = _traced(reviews)

    found = partial(evaluate.perturbation, traced, reviews.inputs(), None, METHODS)
    return found(removal=removal, steps="tokens", batch=BATCH)


def true_class(count: int) -> evaluate.Table:
    """The class that people gave is explained, then the one that the model names; the first is watched."""
    reviews = held_out(count)
    traced = _traced(reviews)
    tables = [
        evaluate.perturbation(
            traced,
            reviews.inputs(),
            targets,
            SPECIFIC,
            removal=REPLACE,
            steps="tokens",
            labels=reviews.labels,
            batch=BATCH,
        )
        for targets in (reviews.labels, None)
    ]
    true, named = tables
    rows = {PREDICTED.format(name): row for name, row in named.rows.items() if name in SPECIFIC}
    return replace(true, rows={**true.rows, **rows}, curves=None)


def sample(path: Path) -> None:
    """Three short snippets that the model gets right."""
    reviews = held_out(120)
    traced = _traced(reviews)
    with torch.no_grad():
        right = traced.model(**reviews.inputs()).logits.argmax(-1) == reviews.labels
    places = samples.chosen(reviews.texts, right, 3)
    inputs = {name: value[places] for name, value in reviews.inputs().items()}
    found = samples.explained(traced, inputs, reviews.labels[places], "input_ids")
    texts = [reviews.texts[place] for place in places]
    # after [CLS]
    words = {name: values[:, 1:] for name, values in found.items()}
    samples.draw_words(path, texts, reviews.marked[places, 1:], words)


SAMPLES = {"BERT": sample}
DELETE = evaluate.Delete("input_ids", mask="attention_mask", first=1, last=1)
REPLACE = evaluate.Replace("input_ids", MASK, mask="attention_mask", first=1, last=1)

_ABLATIONS = ("relevancy_no_gradient", "relevancy_no_aggregation", "relevancy_last_layer")


def _claims(measure: str) -> tuple[Claim, ...]:
    return (
        Claim(_LEADS, measure, "relevancy", _WEAKER),
        Claim(_ATTRIBUTION, measure, "transformer_attribution", _WEAKER),
        *(Claim(TERMS[name], measure, "relevancy", (name,)) for name in _ABLATIONS),
    )


FOUND = """
**Why relevancy does not lead here: the model gathers the opinion in its first layer.** Relevancy of the
first attention alone has an AP of 0.40, of the second, third or fourth alone 0.22, 0.27 and 0.24, where
chance has 0.24 (150 of these snippets; `layers=` in `explain`). After the first layer every position holds
what was gathered, so that later maps say which position is read and no longer which word; eq. 6 adds them
up as if position j were still word j, and methods that read the last map alone (raw attention, Grad-CAM,
partial LRP) are at chance. Methods that go on through the layers to the embeddings
(`gradient_x_input+libra`, `cp_lrp`, `attnlrp`, `gamma_lrp`) need no such assumption. It is no matter of wrong
answers: on the 85 % that the model gets right relevancy has 0.35, rollout 0.51 and `gradient_x_input+libra`
0.61. Rollout knows no class, and finds more of these words because this model looks at opinion words of
either side."""


JOBS = (
    Job(
        "bert-words",
        "BERT",
        "CVPR Figure 4: the words of a lexicon",
        "Held-out snippets that hold a marked word. The class that people gave is explained; the k most "
        "relevant words against the marked ones. The paper takes k from 10 to 80 of hundreds of words, and "
        "people marked phrases there; these snippets have 22 words on average, so k is smaller.",
        words,
        200,
        _claims("AP"),
        found=FOUND,
    ),
    Job(
        "bert-deleted",
        "BERT",
        "The ICCV paper's perturbation of text: words are deleted",
        "The class that the model names is explained, words are deleted by the paper's steps, and what "
        "counts is whether the model still names it. [CLS] and [SEP] stay.",
        partial(perturbed, DELETE),
        100,
        _claims("SRG"),
    ),
    Job(
        "bert-masked",
        "BERT",
        "The same with [MASK] in the place of words",
        "The words' places stay, which leaves the other words where they were.",
        partial(perturbed, REPLACE),
        100,
        _claims("SRG"),
    ),
    Job(
        "bert-true-class",
        "BERT",
        "Do class-specific methods gain with the true class? (CVPR Table 1, target against predicted)",
        "Words are masked by the explanation of the class that people gave, and by that of the class that "
        "the model names; what counts for both is whether the model says what people said. They differ in "
        "the snippets that the model gets wrong.",
        true_class,
        120,
        tuple(
            Claim("With the true class it is better", "SRG", name, (PREDICTED.format(name),))
            for name in SPECIFIC
            if name != "rollout"
        ),
    ),
)
