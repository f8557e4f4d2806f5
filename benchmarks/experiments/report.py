"""Writes docs/results.md from what the experiments left in ``results/``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

from jobs import RESULTS, ROOT, ROWS, VARIANTS, Job, decided
from samples import path_of

PAGE = ROOT / "docs" / "results.md"
HEAD = """# Results

Do the explanations do what the papers say, on models and data that fit a laptop? Every number here was
measured by

```console
$ python benchmarks/experiments/run.py
```

which makes every table and writes this page (`benchmarks/experiments/`). Cells are a score with its 95 %
interval from 1000 bootstrap draws; the best method by the first column comes first, and
`random` is in every table. Published numbers are of other, larger models on other data: only the order can be
compared. How the scores are made: [evaluation](evaluation.md).

**A claim is checked by the difference of two methods on the same samples**, drawn alike: it *holds* if the
gain is surely above 0, *does not hold* if it is surely below, and is *not decided* else. Sure is what the
interval says and what is left after Holm's correction over all claims of the table (5 % for all together; the
chance of a gain is that of a normal distribution with the bootstrap's interval). Where several samples are of
one unit (two questions about one canvas, tokens of one molecule), whole units are drawn. What each method
scored on each sample is kept for tables that say so (`benchmarks/experiments/results/rows/`).
"""


BY_HAND = "*Looked into by hand, once; the numbers in this text are not made anew with the table:*"
MODELS = ("ViT", "BERT", "LXMERT", "VisualBERT", "DETR", "SmolLM2", "Gemma 3")
"""The order of the page; others follow."""
CLUSTERED = ("SmolLM2", "Gemma 3")
"""Models whose notes say how samples were drawn."""


def ordered(jobs: Sequence[Job]) -> list[Job]:
    """As the papers have their models; those of other authors last."""
    return sorted(jobs, key=lambda job: MODELS.index(job.model) if job.model in MODELS else len(MODELS))


def write(jobs: Mapping[str, Job], about: Mapping[str, str]) -> None:
    """The page: these experiments in this order, and under each model what is said of it."""
    records = {name: _record(name) for name in jobs}
    made = {name: record for name, record in records.items() if record is not None}
    found = list(made.values())
    parts = [HEAD, *_in_short(found), *_variants(found), *_overview(found), *_in_words(found)]
    missing = [f"`{name}`" for name in jobs if name not in made]
    if missing:
        parts.append(f"Not run yet: {', '.join(missing)}.\n")
    model = ""
    for name, record in made.items():
        job = jobs[name]
        if job.model != model:
            model = job.model
            parts.append(f"## {model}\n\n{about[model].strip()}\n")
            if path_of(model).exists():
                parts.append(f"![samples](images/{path_of(model).name})\n")
        parts.append(_section(job, record))
    PAGE.write_text("\n".join(parts), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


def _record(name: str) -> dict[str, Any] | None:
    file = RESULTS / f"{name}.json"
    if not file.exists():
        return None
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return record


def _in_short(records: Sequence[dict[str, Any]]) -> list[str]:
    """Which method, where, how sure: a line for each model."""
    lines = [
        "## Which method, where, how sure\n",
        "By the first score of each table. *Leads*: the methods with the best score, and in how many tables. "
        "The last columns: in how many tables a method is surely better, and surely worse, than relevancy. "
        "`auto` takes `net_relevancy` where attention is causal (SmolLM2, Gemma 3 "
        "and annalog here), and `relevancy` for the others ([why](methods.md#auto)).\n",
        "| model | tables | samples (units) | leads | `net_relevancy` | `relevancy+libra` |",
        "|---|---|---|---|---|---|",
    ]
    for model in dict.fromkeys(record["model"] for record in records):
        own = [r for r in records if r["model"] == model and r["claims"]]
        if not own:
            continue
        first = [next(iter(record["scores"])) for record in own]
        leads = ", ".join(f"`{name}` ({first.count(name)})" for name in dict.fromkeys(first))
        samples = sum(record["samples"] for record in own)
        units = sum(record.get("units", record["samples"]) for record in own)
        cells = [
            _won(own, name) if any(name in r["against"] for r in own) else "not run"
            for name in ("net_relevancy", "relevancy+libra")
        ]
        lines.append(f"| {model} | {len(own)} | {samples} ({units}) | {leads} | {' | '.join(cells)} |")
    return ["\n".join(lines) + "\n"]


def _overview(records: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "## The claims, in short\n",
        "| model | claim | score | holds against | does not hold | not decided |",
    ]
    lines.append("|---|---|---|---|---|---|")
    for record in records:
        for text, measure in dict.fromkeys((c["text"], c["measure"]) for c in record["claims"]):
            own = [c for c in record["claims"] if (c["text"], c["measure"]) == (text, measure)]
            cells = [
                ", ".join(f"`{c['than']}`" for c in own if c["said"] == said)
                for said in ("holds", "does not hold", "not decided")
            ]
            where = f"[{record['name']}](#{record['name']})"
            lines.append(f"| {where} | {text} | {measure} | {' | '.join(cells)} |")
    return ["\n".join(lines) + "\n"]


def _in_words(records: Sequence[dict[str, Any]]) -> list[str]:
    """How often relevancy leads each other method: the claims of all tables added up."""
    said: dict[str, list[str]] = {}
    for record in records:
        for claim in record["claims"]:
            if claim["better"] == "relevancy":
                said.setdefault(claim["than"], []).append(claim["said"])
    lines = [
        "Added up, relevancy against each:\n",
        "| against | better | worse | not decided |",
        "|---|---|---|---|",
    ]
    for name, answers in said.items():
        counts = [answers.count(one) for one in ("holds", "does not hold", "not decided")]
        lines.append(f"| `{name}` | {' | '.join(map(str, counts))} |")
    return ["\n".join(lines) + "\n", _verdicts(records)]


def _verdicts(records: Sequence[dict[str, Any]]) -> str:
    """What became of each claim, in words: of all its comparisons over all tables."""
    said: dict[str, list[str]] = {}
    for record in records:
        for claim in record["claims"]:
            said.setdefault(claim["text"], []).append(claim["said"])
    lines = [
        "Added up, each claim:\n",
        "| claim | holds | does not hold | not decided |",
        "|---|---|---|---|",
    ]
    for text, answers in said.items():
        counts = [answers.count(one) for one in ("holds", "does not hold", "not decided")]
        lines.append(f"| {text} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines) + "\n"


def _variants(records: Sequence[dict[str, Any]]) -> list[str]:
    """A table of the first score of every experiment, for relevancy and the variants."""
    compared = [r for r in records if r.get("against") and next(iter(r["measures"].values())) == "higher"]
    if not compared:
        return []
    names = " | ".join(f"`{name}`" for name in VARIANTS)
    lines = [
        "## Does a variant do better?\n",
        "The first score of every table. **Bold**: surely better than relevancy (the interval of the paired "
        "difference lies above 0, also after Holm's correction over the row); *slanted*: surely worse; "
        "neither: not decided.\n",
        f"| table | score | `relevancy` | {names} |",
        "|---" * (3 + len(VARIANTS)) + "|",
    ]
    for record in compared:
        measure = next(iter(record["measures"]))
        scores = {name: row[measure][0] for name, row in record["scores"].items()}
        surely = _surely(record)
        cells = [_cell(scores.get(name), surely.get(name)) for name in VARIANTS]
        lines.append(f"| {record['name']} | {measure} | {scores['relevancy']:.3f} | {' | '.join(cells)} |")
    sums = " | ".join(_won(compared, name) for name in VARIANTS)
    lines.append(f"| **surely better, surely worse** | of {len(compared)} | | {sums} |")
    return ["\n".join(lines) + "\n", _better(compared), _held_out(compared)]


def _held_out(records: Sequence[dict[str, Any]]) -> str:
    """For each model, what the tables of all others would have one take, and how that does on its own."""
    lines = [
        "### Chosen without the model itself\n",
        "For each model: the variant that is surely better than relevancy in most tables of all *other* "
        "models (less those where it is surely worse), and in how many of the model's own tables it is "
        "surely better, and surely worse.\n",
        "| model left out | chosen by the others (better, worse) | on its own tables (better, worse) |",
        "|---|---|---|",
    ]
    for model in dict.fromkeys(record["model"] for record in records):
        others = [record for record in records if record["model"] != model]
        own = [record for record in records if record["model"] == model]
        if not others:
            return ""
        best = max(VARIANTS, key=lambda name: _balance(others, name))
        cell = f"{_won(own, best)} of {sum(best in record['against'] for record in own)}"
        lines.append(f"| {model} | `{best}` ({_won(others, best)}) | {cell} |")
    return "\n".join(lines) + "\n"


def _balance(records: Sequence[dict[str, Any]], name: str) -> int:
    return sum(_surely(record).get(name, 0) for record in records)


def _better(records: Sequence[dict[str, Any]]) -> str:
    """What the table of variants says, in words."""
    sentences = ["What each is: [methods](methods.md), [LRP methods](methods-lrp.md)."]
    for name in VARIANTS:
        gains = {r["name"]: _surely(r)[name] for r in records if name in r["against"]}
        if not gains:
            continue
        better = sum(one > 0 for one in gains.values())
        worse = [table for table, one in gains.items() if one < 0]
        where = f"worse on {', '.join(worse)}" if worse else "worse nowhere"
        sentences.append(
            f"`{name}`: of {len(gains)} tables surely better than relevancy in {better}, surely {where}."
        )
    return (
        "\n".join(f"* {sentence}" if place else f"{sentence}\n" for place, sentence in enumerate(sentences))
        + "\n"
    )


def _won(records: Sequence[dict[str, Any]], name: str) -> str:
    """In how many tables a variant is surely better than relevancy, and in how many surely worse."""
    found = [_surely(record)[name] for record in records if name in record["against"]]
    return f"{found.count(1)}, {found.count(-1)}"


def _surely(record: dict[str, Any]) -> dict[str, int]:
    """Variant -> 1 if it is surely better than relevancy in this table, -1 if worse, 0 if not decided."""
    names = list(record["against"])
    return dict(zip(names, decided([record["against"][name] for name in names]), strict=True))


def _cell(score: float | None, surely: int | None) -> str:
    """Bold if surely above, slanted if surely below; empty where the method is not defined."""
    if score is None or surely is None:
        return ""
    return (f"{score:.3f}", f"**{score:.3f}**", f"*{score:.3f}*")[surely]


def _counted(record: dict[str, Any]) -> str:
    """How many samples there are, of how many units, and whether their rows are kept."""
    units = record.get("units", record["samples"])
    of = f" of {units} units, which are drawn for the intervals" if units != record["samples"] else ""
    kept = (RESULTS / ROWS / f"{record['name']}.npz").exists()
    return f"{record['samples']} samples{of}{', rows kept' if kept else ''}"


def _section(job: Job, record: dict[str, Any]) -> str:
    lines = [f"### {record['name']}\n", fill(f"**{job.title}.** {job.about}", 118)]
    lines += [
        f"{_counted(record)}; {record['cpu_seconds']} seconds of one core.\n",
        *(f"{note}\n" for note in record["notes"] if record["model"] in CLUSTERED),
        record["markdown"],
        "",
    ]
    if job.source:
        lines.append(f"Published: {job.source}.\n")
    lines += [f"Refused: `{name}` ({why}).\n" for name, why in record["refused"].items()]
    if record["claims"]:
        lines += ["| claim | by | gain over | how much | |", "|---|---|---|---|---|"]
        for claim in record["claims"]:
            value, low, high = claim["gain"]
            gain = f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
            lines.append(
                f"| {claim['text']} | {claim['measure']} | `{claim['than']}` | {gain} | {claim['said']} |"
            )
        lines.append("")
    if job.found:
        lines.append(f"{BY_HAND}\n\n{job.found.strip()}\n")
    lines.append(f"![{record['name']}](images/results-{record['name']}.png)\n")
    return "\n".join(lines)
