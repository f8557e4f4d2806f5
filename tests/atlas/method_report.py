"""Writes ``docs/atlas-methods.md`` from the results."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from atlas.every_method import FEW, kind_of, names
from atlas.report import Record, table, versions

GOOD = ("runs", "not defined")
FAILED = {
    "no rule": "an operation has no relevance rule",
    "refused": "another error of fxplain",
    "wrong": "all zero, not finite, or of a wrong shape",
    "crashed": "an error that is not fxplain's",
}
SHOWN = 12
"""Models named for one reason."""

HEAD = f"""# Every method on the models of the atlas

Every method of `fxplain methods`, and the balanced ones (`+libra`), on the models of [the atlas](atlas.md)
that can be explained, from one capture each. This page is written by

```bash
python tests/atlas                        # first: which models can be explained
python tests/atlas --methods              # --resume goes on where it stopped, --sample 150 takes a part
python tests/atlas --methods --report     # only this page, from the results there are
```

A method *runs* on a model where its relevance has a number for every token of every sample, finite and not
all zero (which only those may be of which one map says all). It is *not defined* where it refuses by its own
definition, and says so. Anything else is a failure. Integrated gradients and SmoothGrad take {FEW} steps:
what is asked is whether they run, not how well they integrate. (`tests/atlas/every_method.py`)
"""


def method_report(records: Iterable[Record]) -> str:
    """The page, from the last record of every model."""
    found = sorted(records, key=lambda r: (r["registry"], r["name"]))
    explained = [r for r in found if r["outcome"] == "explained"]
    lost = [r for r in found if r["outcome"] != "explained"]
    parts = [
        HEAD,
        versions(),
        _read_this(found, lost),
        "## By method",
        _by_method(explained),
        "## By registry",
        _by_registry(explained),
    ]
    parts += ["## Not defined, and why", _reasons(explained, ["not defined"])]
    parts += ["## What fails", _reasons(explained, list(FAILED))]
    if lost:
        rows = [[r["registry"], r["name"], r["outcome"], kind_of(r["message"] or r["reason"])] for r in lost]
        parts += ["## Models without an answer", table(["registry", "model", "outcome", "reason"], rows)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _read_this(found: Sequence[Record], lost: Sequence[Record]) -> str:
    """What the shares are shares of."""
    counts = Counter(record["registry"] for record in found)
    told = ", ".join(f"{count} of {name}" for name, count in sorted(counts.items()))
    most = 100 * (1 - len(lost) / max(len(found), 1))
    return f"""Models: {told}.
Of these {len(lost)} have no answer for any method: all methods together did not end in the time limit, or
the model was refused: see the end. **The shares leave them out**; with them, even a method that always runs
is at {most:.1f} %.

The models are those of the atlas that pass, drawn at random: one that the atlas cannot explain is not here.
Faults that were found were mended and those models run again, so the shares are of models that the code has
seen, and not all records are of one revision. A method that was added later was run on fewer models, among
them those that were run again: its share is not that of a random sample."""


def _answers(records: Sequence[Record], method: str) -> Counter[str]:
    return Counter(record["answers"][method][0] for record in records if method in record["answers"])


def _share(counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    return f"{100 * sum(counts.get(good, 0) for good in GOOD) / total:.1f} %" if total else ""


def _by_method(records: Sequence[Record]) -> str:
    rows = []
    for method in names():
        counts = _answers(records, method)
        rows.append(
            [f"`{method}`", sum(counts.values()), *(counts[o] for o in (*GOOD, *FAILED)), _share(counts)]
        )
    return table(["method", "models", *GOOD, *FAILED.values(), "runs or not defined"], rows)


def _by_registry(records: Sequence[Record]) -> str:
    """Runs / not defined / failed, method by registry."""
    libraries = sorted({record["registry"] for record in records})
    rows = []
    for method in names():
        row = [f"`{method}`"]
        for library in libraries:
            counts = _answers([r for r in records if r["registry"] == library], method)
            failed = sum(counts[outcome] for outcome in FAILED)
            row.append(f"{counts['runs']} / {counts['not defined']} / {failed}")
        rows.append(row)
    text = "Models on which a method runs / is not defined / fails."
    return f"{text}\n\n{table(['method', *libraries], rows)}"


def _reasons(records: Sequence[Record], outcomes: Sequence[str]) -> str:
    """Reason -> the methods and models that have it."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for model, method, reason in _told(records, outcomes):
        found[reason][model].add(method)
    rows = []
    for reason, models in sorted(found.items(), key=lambda item: -len(item[1])):
        methods = [name for name in names() if any(name in had for had in models.values())]
        shown = ", ".join(list(models)[:SHOWN]) + (", ..." if len(models) > SHOWN else "")
        rows.append([reason, len(models), ", ".join(f"`{name}`" for name in methods), shown])
    return table(["reason", "models", "methods", "which"], rows) if rows else "Nothing."


def _told(records: Sequence[Record], outcomes: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    for record in records:
        for method, (outcome, text) in record["answers"].items():
            if outcome in outcomes:
                yield record["name"], method, kind_of(text)
