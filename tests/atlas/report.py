"""Writes ``docs/atlas.md`` from the results."""

from __future__ import annotations

import platform
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

Record = Mapping[str, Any]

BUILT = ("passed", "no_attention", "refused", "wrong", "crashed", "timeout")
COLUMNS = {
    "passed": "all of it holds",
    "no_attention": "rightly no attention",
    "refused": "refused",
    "wrong": "something does not hold",
    "crashed": "crashed",
    "timeout": "too slow",
    "not_built": "not built",
}
PACKAGES = ("torch", "transformers", "timm", "torchvision", "diffusers")

AGREEMENT = {
    "equal": "the same numbers in the same places",
    "for all samples": "the model takes one picture after the other out of a packed row, and says no sample",
    "laid out differently": "the same numbers; reported window by window, or folded in another way",
    "before the softmax": "the model reports the scores; their softmax is the map",
    "transposed": "the model reports keys by queries",
    "a part": "the model leaves out rows and columns, of a prompt for instance",
    "columns of no token": "the model reports columns of zeros beside the keys too",
    "places of no token": "the model reports padding that attends and is attended to, as the notes say",
    "with padding": "the model reports the rows of padding too",
    "in several windows": "a class token stands in every window: its weights are added up",
    "reported twice": "the very numbers of a map that was reported before, under another name",
    "unused": "no output of the model depends on it, so there is nothing to explain",
    "mean of heads": "the model reports the mean of the heads, once for each head",
    "no map": "the model reports something else, such as the output",
    "differs": "none of the maps that multiply the values: see the failures",
}

HEAD = """# The atlas

Every model of whole registries, built at toy size with random weights, traced, explained and judged. There is
no list of architectures: configurations are made small by what their attributes are called
(`tests/atlas/shrink.py`), and inputs are guessed from the signature of `forward` (`tests/atlas/guess.py`).
This page is written by

```bash
python tests/atlas              # all registries, two processes; --resume goes on where it stopped
python tests/atlas --report     # only this page, from the results there are
```

All of it took 97 minutes of computing (the user and system time of one run, at 2cc1969, two workers on two
cores): less than an hour where nothing else runs.

For each model all of this must hold (`tests/atlas/judge.py`):

* the captured graph equals the model, and every map rebuilt from a fused attention reproduces its output;
* the maps equal those that the model itself reports with `output_attentions`, in number and value;
* every softmax-like operation has a role, and no labels were lost at an operation;
* every attention has a kind, and its tokens come from inputs or parameters;
* the relevancy is finite, not negative and not all zero; eager and fused attention give the same to 1e-4
  (in float64, where float32 does not tell: then all that a model computes in float32 is float64, too);
* the laws hold: labels and maps say what the graph does (`docs/laws.md`);
* a model without attention is said to have none, and reports no map either.

Otherwise it counts as *refused*, where an error of fxplain says why, or as *something does not hold*. Some
refusals are all that can be said: of a model whose own gradient is NaN, or ends at a choice of codes.
"""


def report(records: Iterable[Record], listed: Mapping[str, int]) -> str:
    """The page, from the last record of every model.

    Args:
        records: those of :mod:`atlas.run`.
        listed: how many models each registry has, judged or not.
    """
    found = sorted(records, key=lambda r: (r["registry"], r["name"]))
    by_registry: dict[str, list[Record]] = defaultdict(list)
    for record in found:
        by_registry[record["registry"]].append(record)
    built = [r for r in found if r["outcome"] in BUILT]
    parts = [
        HEAD,
        versions(),
        revisions(found),
        "## By registry",
        _registries(by_registry, listed),
        "## By kind",
        _kinds(built),
        *_laws(built),
    ]
    parts += [
        "## Maps that models report",
        _agreement(built),
        "## Other implementations",
        _implementations(built),
    ]
    parts += ["## What does not hold, and why", _failures(built)]
    parts += ["## Models without attention", _without(built)]
    parts += ["## Not built", _not_built(found)]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def versions() -> str:
    known = []
    for package in PACKAGES:
        try:
            known.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return f"Measured with Python {platform.python_version()}, {', '.join(known)}, on the CPU in float32."


def revisions(records: Sequence[Record]) -> str:
    """Of which commits the records are, the most first."""
    counts = Counter(
        record.get("revision") or "earlier ones, from before records said which" for record in records
    )
    total = counts.total()
    if len(counts) == 1:
        return f"All {total} records are of one commit: {next(iter(counts))}."
    parts = ", ".join(f"{count} of {name}" for name, count in counts.most_common())
    return (
        f"The {total} records are of several commits, the latest of each model: {parts}. "
        "All were judged at one first; after changes those were judged again that had not been good, "
        "and as many others as there was time for."
    )


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows)])


def _cell(value: Any) -> str:
    return " ".join(str(value).replace("|", "\\|").split())


def _registries(by_registry: Mapping[str, Sequence[Record]], listed: Mapping[str, int]) -> str:
    rows = []
    for name, records in by_registry.items():
        counts = Counter(r["outcome"] for r in records)
        built = sum(counts[outcome] for outcome in BUILT)
        good = counts["passed"] + counts["no_attention"]
        share = f"{100 * good / built:.1f} %" if built else ""
        rows.append(
            [name, listed.get(name, len(records)), len(records), built, *(counts[o] for o in COLUMNS), share]
        )
    return table(["registry", "listed", "judged", "built", *COLUMNS.values(), "of those built, good"], rows)


def _laws(built: Sequence[Record]) -> list[str]:
    """A row for each registry, a column for each law: models where it holds, of those it was held against.

    Records from before there were laws have none.
    """
    found: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for record in built:
        for law, outcome in record.get("laws", {}).items():
            found[record["registry"]][law][outcome] += 1
    names = list(dict.fromkeys(law for by_law in found.values() for law in by_law))
    rows = [[registry, *(_held(by_law[law]) for law in names)] for registry, by_law in found.items()]
    return ["## Laws", table(["registry", *names], rows)] if rows else []


def _held(outcomes: Counter[str]) -> str:
    judged = outcomes.total() - outcomes["not applicable"]
    good = outcomes["ok"] + outcomes["set aside"]
    aside = f" ({outcomes['set aside']} with places set aside)" if outcomes["set aside"] else ""
    return f"{good} of {judged}{aside}"


def _kinds(built: Sequence[Record]) -> str:
    rows = []
    for field, what in (("attentions", "attention"), ("mixings", "mixing"), ("roles", "census")):
        models: Counter[str] = Counter()
        calls: Counter[str] = Counter()
        good: Counter[str] = Counter()
        for record in built:
            for name, count in record.get(field, {}).items():
                models[name] += 1
                calls[name] += count
                good[name] += record["outcome"] == "passed"
        rows += [[what, name, models[name], calls[name], good[name]] for name, _ in calls.most_common()]
    return table(["", "kind", "models", "calls", "models where all holds"], rows)


def _agreement(built: Sequence[Record]) -> str:
    models: Counter[str] = Counter()
    maps: Counter[str] = Counter()
    for record in built:
        for how, count in record.get("matched", {}).items():
            models[how] += 1
            maps[how] += count
    rows = [[how, AGREEMENT.get(how, how), models[how], maps[how]] for how, _ in maps.most_common()]
    more = [r for r in built if r.get("unreported")]
    note = (
        f"{len(more)} models report fewer maps than they have attentions"
        f" ({sum(r['unreported'] for r in more)} in all): they drop those of some towers, heads or stages."
    )
    return table(["agreement", "which means", "models", "maps"], rows) + "\n\n" + note


def _implementations(built: Sequence[Record]) -> str:
    counts: Counter[str] = Counter()
    largest = 0.0
    for record in built:
        for text in record.get("implementations", {}).values():
            if text.endswith("in float64"):
                counts["the same in float64, where float32 rounds too much"] += 1
            elif _is_number(text):
                counts["compared"] += 1
                if float(text) <= 1e-4:
                    largest = max(largest, float(text))
                else:
                    counts["differ by more than 1e-4"] += 1
            elif text.startswith("not built"):
                counts["the model has no other implementation"] += 1
            else:
                counts[text if len(text) < 40 else "refused, see below"] += 1
    note = f"Where the relevance is the same, the largest difference is {largest:.0e} of its largest entry."
    return table(["fused (SDPA) against eager", "models"], counts.most_common()) + "\n\n" + note


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _failures(built: Sequence[Record]) -> str:
    return table(["registry", "model", "outcome", "reason"], _failed(built))


def _failed(built: Sequence[Record]) -> Iterator[list[str]]:
    for record in built:
        if record["outcome"] in ("passed", "no_attention"):
            continue
        if record["outcome"] == "wrong":
            text = "; ".join(_first(line) for line in record["broken"][:3])
        else:
            text = _first(record.get("message") or record["reason"])
        yield [record["registry"], record["name"], COLUMNS[record["outcome"]], text]


def _first(text: str) -> str:
    """What went wrong, where and what was found, without the next steps."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [line for line in lines[1:] if line.startswith(("where:", "found:"))]
    return " ".join(lines[:1] + said)[:450]


def _without(built: Sequence[Record]) -> str:
    reasons: dict[str, list[str]] = defaultdict(list)
    for record in built:
        if record["outcome"] == "no_attention":
            roles = ", ".join(sorted(record.get("roles", {}))) or "nothing like a softmax"
            reasons[roles].append(record["name"])
    rows = [[roles, len(names), ", ".join(names)] for roles, names in reasons.items()]
    return table(["what the census has", "models", "which"], sorted(rows, key=lambda r: -r[1]))


def _not_built(found: Sequence[Record]) -> str:
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for record in found:
        if record["outcome"] == "not_built":
            reasons[record["registry"], record["reason"]].append(record["name"])
    rows = [[*key, len(names), ", ".join(names)] for key, names in reasons.items()]
    return table(["registry", "reason", "models", "which"], sorted(rows, key=lambda r: (r[0], -r[2])))
