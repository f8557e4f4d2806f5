"""An experiment: a table, what a paper found, and which of its claims are checked on it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fxplain.attribution.table import METHODS
from fxplain.evaluate import Table

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = Path(__file__).parent / "results"
IMAGES = ROOT / "docs" / "images"

# identical to relevancy where no attention runs between two streams
ACROSS = ("relevancy_no_normalisation", "relevancy_no_self_in_eq10")
LIBRA = ("relevancy+libra", "gradient_x_input+libra")
ONLY: list[str] = []
"""If there are any, the methods that tables are made of; to be filled before their modules are imported."""

TERMS = {
    "relevancy_no_normalisation": "The normalisation of eqs. 8 and 9 helps",
    "relevancy_no_self_in_eq10": "The self-attention terms of eq. 10 help",
    "relevancy_no_aggregation": "Adding increments up helps",
    "relevancy_no_gradient": "The gradient in eq. 5 helps",
    "relevancy_last_layer": "All layers are better than the last alone",
}
"""Ablation -> the claim that what it leaves out is worth something."""

VARIANTS = (
    "relevancy+libra",
    "net_relevancy",
    "net_relevancy_centred",
    "legrad",
    "transformer_attribution",
    "attnlrp",
    "cp_lrp",
    "gradient_x_input+libra",
    "reslrp",
)
"""Methods that might do better than relevancy everywhere."""


@dataclass(frozen=True)
class Claim:
    """That one method's score is better than each of some others'."""

    text: str
    measure: str
    better: str
    worse: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """One table of docs/results.md."""

    name: str
    model: str
    title: str
    """What it repeats, in a line."""
    about: str
    make: Callable[[int], Table]
    count: int
    """Samples."""
    claims: tuple[Claim, ...] = ()
    published: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Measure -> method -> the paper's number."""
    source: str = ""
    """Where the published numbers stand."""
    found: str = ""
    """What was found out about the numbers, for the page: Markdown."""


def run(job: Job, count: int | None = None, folder: Path = RESULTS, images: Path | None = IMAGES) -> Table:
    """Make the table; write its numbers, claims and picture."""
    start = time.process_time()
    table = job.make(count or job.count)
    folder.mkdir(exist_ok=True, parents=True)
    record = {
        **table.to_json(),
        "name": job.name,
        "model": job.model,
        "title": job.title,
        "claims": list(checked(job.claims, table)),
        "against": dict(against(table)),
        "cpu_seconds": round(time.process_time() - start),
    }
    record["markdown"] = table.markdown(job.published)
    (folder / f"{job.name}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    if images is not None:
        images.mkdir(exist_ok=True, parents=True)
        table.save(images / f"results-{job.name}.png")
    return table


def extend(job: Job, count: int | None = None, folder: Path = RESULTS) -> Table:
    """Add rows of methods (:data:`ONLY`) to a table that is there. One of its own rows must come out as it
    was, so that the samples are the same.

    Raises:
        ValueError: it does not.
    """
    file = folder / f"{job.name}.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    table = job.make(count or job.count)
    new = table.to_json()
    lead = table.measures[0].name
    known = [name for name in new["scores"] if name in record["scores"] and name != "random"]
    for name in known:
        old, found = (one["scores"][name][lead][0] for one in (record, new))
        if abs(old - found) > 1e-3 * max(abs(old), 1e-3):
            raise ValueError(f"{job.name}: {name} has {lead} {found:g}, where the table says {old:g}")
    if not known:
        raise ValueError(f"{job.name}: no method is in the table already")
    lines = {line.split("`")[1]: line for line in record["markdown"].split("\n")[2:]}
    lines |= {line.split("`")[1]: line for line in table.markdown(job.published).split("\n")[2:]}
    scores = record["scores"] | {name: row for name, row in new["scores"].items() if name not in known}
    sign = -1 if table.measures[0].higher_is_better else 1
    record["scores"] = dict(sorted(scores.items(), key=lambda pair: sign * pair[1][lead][0]))
    head = record["markdown"].split("\n")[:2]
    record["markdown"] = "\n".join([*head, *(lines[name] for name in record["scores"])])
    record["against"] |= {name: gap for name, gap in against(table) if name not in record["against"]}
    for side in ("positive", "negative") if "curves" in record else ():
        record["curves"][side] |= {k: v for k, v in new["curves"][side].items() if k not in known}
    file.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return table


def checked(claims: Sequence[Claim], table: Table) -> Iterator[dict[str, Any]]:
    """Each claim against each method: the paired difference, and what that says."""
    for claim in claims:
        sign = next(1 if m.higher_is_better else -1 for m in table.measures if m.name == claim.measure)
        for other in claim.worse:
            if other not in table.rows or claim.better not in table.rows:
                continue
            gap = table.difference(claim.measure, claim.better, other)
            low, high = sorted((sign * gap.low, sign * gap.high))
            said = "holds" if low > 0 else "does not hold" if high < 0 else "not decided"
            gain = [sign * gap.value, low, high]
            yield {
                "text": claim.text,
                "measure": claim.measure,
                "better": claim.better,
                "than": other,
                "gain": gain,
                "said": said,
            }


def against(table: Table) -> Iterator[tuple[str, list[float]]]:
    """Each variant's gain over relevancy by the first measure: the paired difference."""
    measure = table.measures[0].name
    for name in VARIANTS:
        if name in table.rows:
            gap = table.difference(measure, name, "relevancy")
            yield name, [gap.value, gap.low, gap.high]


def all_methods(across: bool) -> list[str]:
    """Every method that applies, ``across``: to attention between two streams."""
    left_out = () if across else ACROSS
    return [name for name in ONLY or (*METHODS, *LIBRA) if name not in left_out]
