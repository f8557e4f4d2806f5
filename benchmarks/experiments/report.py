"""Writes docs/results.md from what the experiments left in ``results/``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from textwrap import fill
from typing import Any

from jobs import RESULTS, ROOT

PAGE = ROOT / "docs" / "results.md"
HEAD = """# Results

Do the explanations do what the papers say, on models and data that fit a laptop? Every number here was
measured by

```console
$ python benchmarks/experiments/run.py
```

which makes every table and writes this page (`benchmarks/experiments/`). Cells are a score with its 95 %
interval from 1000 bootstrap draws over the samples; the best method by the first column comes first, and
`random` is in every table. Published numbers are of other, larger models on other data: only the order can be
compared. How the scores are made: [evaluation](evaluation.md).

**A claim is checked by the difference of two methods on the same samples**, drawn alike: it *holds* if the
interval of the gain lies above 0, *does not hold* if it lies below, and is *not decided* if it holds 0.
"""


def write(names: Sequence[str]) -> None:
    """The page, with the experiments in this order; those without results are left out."""
    files = [RESULTS / f"{name}.json" for name in names]
    records = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]
    parts = [HEAD, *_overview(records)]
    missing = [name for name, file in zip(names, files, strict=True) if not file.exists()]
    if missing:
        parts.append(f"Not run yet: {', '.join(f'`{name}`' for name in missing)}.\n")
    model = ""
    for record in records:
        if record["model"] != model:
            model = record["model"]
            parts.append(f"## {model}\n{ABOUT[model]}\n")
        parts.append(_section(record))
    PAGE.write_text("\n".join(parts), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


ABOUT = {
    "ViT": """
The demo's model (`benchmarks/train_demo.py`): 4 layers, 4 heads, 64 patches, on canvases with two garments
of Fashion-MNIST's test split, which it never saw. It names both right on 97.8 % of 5000 canvases.""",
}


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


def _section(record: dict[str, Any]) -> str:
    lines = [f"### {record['name']}\n", fill(f"**{record['title']}.** {record['about']}", 118)]
    lines += [
        f"{record['samples']} samples; {record['cpu_seconds']} seconds of one core.\n",
        record["markdown"],
        "",
    ]
    if record["source"]:
        lines.append(f"Published: {record['source']}.\n")
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
    notes = NOTES.get(record["name"])
    if notes:
        lines.append(notes + "\n")
    lines.append(f"![{record['name']}](images/results-{record['name']}.png)\n")
    return "\n".join(lines)


NOTES: dict[str, str] = {}
"""What was found out about a table, by its name."""
