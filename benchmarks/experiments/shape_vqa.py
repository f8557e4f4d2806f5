"""LXMERT and VisualBERT on questions about coloured shapes: ICCV paper, Figures 3 and 5."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import samples
import torch
from jobs import ACROSS, TERMS, Claim, Job, all_methods
from shape_models import HELD_OUT_SEED, VQA, about, load, vqa_inputs
from shape_questions import ANSWERS, OBJECTS, REGIONS, WORDS, asked
from shapes import SIZE, paint
from torch import Tensor

import fxplain
from fxplain import evaluate

BATCH = 50
METHODS = {"lxmert": all_methods(across=True), "visual_bert": all_methods(across=False)}
_VISUAL = {"lxmert": "visual_feats", "visual_bert": "visual_embeds"}
_POSITIONS = {"lxmert": ("visual_pos",), "visual_bert": ()}
# [SEP], and for VisualBERT the token before it, which its head reads
_LAST = {"lxmert": 1, "visual_bert": 2}
K = (1, 2)
SHOWN_SEED = 4


def _removal(name: str, side: str) -> evaluate.Delete:
    if side == "image":
        return evaluate.Delete(_VISUAL[name], _POSITIONS[name], "visual_attention_mask")
    return evaluate.Delete("input_ids", mask="attention_mask", first=1, last=_LAST[name])


class Asked:
    """A model and its questions. Results are kept: regions and words, and both kinds of table, need the same
    explanations wherever the model's answer is the right one."""

    def __init__(self, name: str, count: int) -> None:
        self.questions = asked(count, HELD_OUT_SEED)[1]
        self.inputs = vqa_inputs(name, self.questions)
        model = load(name)
        self._traced = fxplain.trace(model, vqa_inputs(name, self.questions[:BATCH]))
        with torch.no_grad():
            self.answered = model(**self.inputs, return_dict=False)[0].argmax(-1)
        self._kept: dict[object, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._traced, name)

    def compare(self, inputs: dict[str, Tensor], methods: Sequence[str], target: Tensor, output: Any) -> Any:
        """As a traced model's own."""
        held = tuple(value.numpy().tobytes() for value in (*inputs.values(), target))
        key = (tuple(methods), output, held)
        if key not in self._kept:
            self._kept[key] = self._traced.compare(inputs, methods, target, output)
        return self._kept[key]


@cache
def _asked(name: str, count: int) -> Asked:
    return Asked(name, count)


def perturbation(name: str, side: str, count: int) -> evaluate.Table:
    """Regions or words are deleted by their relevance to the model's answer; right answers count."""
    own = _asked(name, count)
    run = partial(evaluate.perturbation, own, own.inputs, own.answered, METHODS[name])
    return run(removal=_removal(name, side), steps="tokens", labels=own.questions.answers, batch=BATCH)


def found(name: str, side: str, count: int) -> evaluate.Table:
    """Whether the regions, or words, that the right answer depends on are the most relevant ones."""
    own = _asked(name, count)
    marked = own.questions.regions if side == "image" else own.questions.words
    removal = _removal(name, side)
    run = partial(evaluate.rationales, own, own.inputs, marked, own.questions.answers, METHODS[name])
    return run(space=removal.space, counted=removal.removable(own.inputs), k=K, batch=BATCH)


def sample(name: str, path: Path) -> None:
    """Three questions about scenes; each region's relevance lies in its box."""
    count = 3
    scenes, questions = asked(count, SHOWN_SEED)
    pixels, _ = paint(scenes, np.random.default_rng(SHOWN_SEED))
    inputs = vqa_inputs(name, questions)
    traced = fxplain.trace(load(name), inputs)
    found = samples.explained(traced, inputs, questions.answers, _VISUAL[name])
    maps = {method: _in_boxes(questions.visual_pos, values) for method, values in found.items()}
    texts = [" ".join(WORDS[n] for n in ids if n > 2) for ids in questions.input_ids.tolist()]
    answers = [ANSWERS[answer] for answer in questions.answers.tolist()]
    titles = [f"{fill(text, 22)}\n{answer}" for text, answer in zip(texts, answers, strict=True)]
    samples.draw_maps(path, torch.from_numpy(pixels), titles, maps)


def _in_boxes(boxes: Tensor, values: Tensor) -> Tensor:
    """[n, SIZE, SIZE]: every region's relevance where its box is; the most relevant of those that overlap."""
    maps = torch.zeros(len(values), SIZE, SIZE)
    for own, corners, relevance in zip(maps, (boxes * SIZE).round().long().tolist(), values, strict=True):
        for k in relevance.argsort().tolist():
            left, top, right, bottom = corners[k]
            own[top:bottom, left:right] = relevance[k]
    return maps


_LEADS = "Relevancy leads rollout, raw attention, Grad-CAM, partial LRP and transformer attribution"
_WEAKER = (
    "rollout",
    "raw_attention",
    "attention_gradcam",
    "partial_lrp",
    "transformer_attribution",
    "random",
)
_TITLES = {"lxmert": "LXMERT", "visual_bert": "VisualBERT"}
_FIGURES = {"lxmert": "ICCV Figure 3", "visual_bert": "ICCV Figure 5"}
_SHOULD = {
    "image": "the region of the thing that is asked about should be the most relevant. Questions about what "
    "is not there have no such region and do not count.",
    "text": "the words that say what is asked for, and of what, should be the most relevant ones.",
}


_ABOUT = """
A small {title} ({layers}; `benchmarks/experiments/train_shape_vqa.py`) on questions about coloured shapes:
{least} to {most} things in a scene, {regions} regions, the others empty; a region's features tell shape,
colour, size and box, blurred by noise. "What size is the red thing ?", "is there a blue circle ?": no
question tells its answer. Of {count} held-out questions it answers {right:.1%} right."""
_LAYERS = {
    "lxmert": "2 layers of language, 1 of regions, 2 across",
    "visual_bert": "4 layers over words and regions",
}


def _told(name: str) -> str:
    found = about(name)
    return _ABOUT.format(
        title=_TITLES[name],
        layers=_LAYERS[name],
        least=OBJECTS[0],
        most=OBJECTS[1],
        regions=REGIONS,
        right=found["held_out_accuracy"],
        count=found["held_out"],
    )


_FOUND = {
    "lxmert-image-found": """
Why the gradient does not help: the score is saturated, and what is left of its gradient nearly cancels in
the normalisations after each layer. The relevance of all regions together is 0.01 or so (the median of 50
answers); with balanced gradients (`relevancy+libra`: what the normalisations divide by is held constant)
it is 0.2 to 0.9, and then the right region leads. On 262 questions with such a region, AP is 0.93 where
the answer is a colour, 0.95 a size, 0.78 a shape, 0.62 "yes"; with balanced gradients 1.00, 1.00, 1.00
and 0.99. The rules on plain heads (`relevancy_no_gradient`) have 0.99. Raw attention does well, because
one question asks about one thing and the last map looks at it. Attention flow is below chance: it asks
how much could arrive by all ways together, and in the first of these scenes five of ten regions can take
all that leaves the row (a flow of 1), the right one 0.80.""",
    "lxmert-text-found": """
Here balanced gradients are not enough, though by perturbation they find what the model minds as well as
the rules on plain heads do: the marked words are not all that this model reads. "The red thing", for one,
says that no colour is asked for.""",
    "visualbert-image-found": """
As with LXMERT it is the gradient: the relevance of all regions together is less than 0.01 for "yes" and
for shapes, more than 1 with balanced gradients, which have the right region first. How far this goes is
the training's doing: the same model trained by Muon instead of AdamW, whose weights grow larger (99.7 %
right), had SRG -0.003 by relevancy, no more than chance, 0.467 by `relevancy+libra` and 0.491 by rollout.""",
}


def _claims(name: str, side: str, measure: str) -> tuple[Claim, ...]:
    # eq. 10 is about words on regions
    own = [one for one in TERMS if one in METHODS[name] and (side == "image" or one not in ACROSS)]
    terms = [Claim(TERMS[one], measure, "relevancy", (one,)) for one in own]
    return (Claim(_LEADS, measure, "relevancy", _WEAKER), *terms)


def _jobs(name: str, side: str, things: str) -> tuple[Job, Job]:
    return (
        Job(
            f"{name}-{side}".replace("_", ""),
            _TITLES[name],
            f"{_FIGURES[name]}, {side}: perturbation",
            f"The model's answer is explained, {things} are deleted, and what counts is whether the answer "
            "is right.",
            partial(perturbation, name, side),
            60,
            _claims(name, side, "SRG"),
        ),
        Job(
            f"{name}-{side}-found".replace("_", ""),
            _TITLES[name],
            f"Known {things}: are they found?",
            f"The right answer is explained; {_SHOULD[side]}",
            partial(found, name, side),
            60,
            _claims(name, side, "AP"),
            found=_FOUND.get(f"{name}-{side}-found".replace("_", ""), ""),
        ),
    )


_SIDES = {"image": "regions", "text": "words"}
JOBS = tuple(job for name in VQA for side, things in _SIDES.items() for job in _jobs(name, side, things))
SAMPLES = {title: partial(sample, name) for name, title in _TITLES.items()}
ABOUT = {title: _told(name) for name, title in _TITLES.items()}
