"""An experiment: a table, what a paper found, and which of its claims are checked on it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from fxplain.attribution.table import METHODS
from fxplain.evaluate import Table

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = Path(__file__).parent / "results"
ROWS = "rows"
"""The folder in it with what each method scored on each sample."""
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
    "net_relevancy_uncentred",
    "legrad",
    "transformer_attribution",
    "attnlrp",
    "cp_lrp",
    "gradient_x_input+libra",
    "gamma_lrp",
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
        "claims": judged(checked(job.claims, table)),
        "against": dict(against(table)),
        "cpu_seconds": round(time.process_time() - start),
    }
    record["markdown"] = table.markdown(job.published)
    (folder / f"{job.name}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    keep_rows(folder / ROWS / f"{job.name}.npz", table)
    if images is not None:
        images.mkdir(exist_ok=True, parents=True)
        table.save(images / f"results-{job.name}.png")
    return table


def keep_rows(file: Path, table: Table) -> None:
    """Write what each method scored on each sample, and the unit that the sample is of; rows of methods that
    are there already stay, where they are of the same samples."""
    arrays = {
        f"{method} | {measure}": values.detach().cpu().numpy().astype(np.float32)
        for method, rows in table.rows.items()
        for measure, values in rows.items()
    }
    if file.exists():
        with np.load(file) as known:
            arrays = {name: known[name] for name in known if len(known[name]) == table.samples} | arrays
    units = np.arange(table.samples) if table.units is None else table.units.cpu().numpy()
    file.parent.mkdir(exist_ok=True, parents=True)
    np.savez_compressed(file, **{**arrays, "units": units.astype(np.int32)})


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
    known_claims = {(c["text"], c["measure"], c["than"]) for c in record["claims"]}
    fresh = [
        c for c in checked(job.claims, table) if (c["text"], c["measure"], c["than"]) not in known_claims
    ]
    record["claims"] = judged([*record["claims"], *fresh])
    keep_rows(folder / ROWS / f"{job.name}.npz", table)
    for side in ("positive", "negative") if "curves" in record else ():
        record["curves"][side] |= {k: v for k, v in new["curves"][side].items() if k not in known}
    file.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return table


LEVEL = 0.05
"""How likely any claim of a table is called decided by chance alone, at the most."""


def chance_of(gain: Sequence[float]) -> float:
    """How likely so large a gain is by chance, if there is none in truth: two-sided, of a normal distribution
    whose 95 % interval is as wide as the bootstrap's.

    Args:
        gain: value, and the ends of its interval.
    """
    value, low, high = gain
    spread = (high - low) / 2 / NormalDist().inv_cdf(0.975)
    if spread <= 0:
        return 0.0 if value else 1.0
    return 2 * (1 - NormalDist().cdf(abs(value) / spread))


def holm(chances: Sequence[float]) -> list[float]:
    """Chances as they are where so many are asked for together: Holm, *A Simple Sequentially Rejective
    Multiple Test Procedure*, Scandinavian Journal of Statistics 1979."""
    order = sorted(range(len(chances)), key=lambda i: chances[i])
    found, highest = [0.0] * len(chances), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(chances) - rank) * chances[i]))
        found[i] = highest
    return found


def decided(gains: Sequence[Sequence[float]]) -> list[int]:
    """For each gain of one table: 1 if it is surely above 0, -1 if below, 0 if that is not decided."""
    chances = holm([chance_of(gain) for gain in gains])
    return [
        0 if chance >= LEVEL or low <= 0 <= high else 1 if low > 0 else -1
        for chance, (_, low, high) in zip(chances, gains, strict=True)
    ]


SAID = {1: "holds", -1: "does not hold", 0: "not decided"}


def judged(claims: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """All claims of a table, each with what it comes to."""
    claims = list(claims)
    said = decided([claim["gain"] for claim in claims])
    return [claim | {"said": SAID[each]} for claim, each in zip(claims, said, strict=True)]


def checked(claims: Sequence[Claim], table: Table) -> Iterator[dict[str, Any]]:
    """Each claim against each method: the paired difference."""
    for claim in claims:
        sign = next(1 if m.higher_is_better else -1 for m in table.measures if m.name == claim.measure)
        for other in claim.worse:
            if other not in table.rows or claim.better not in table.rows:
                continue
            gap = table.difference(claim.measure, claim.better, other)
            low, high = sorted((sign * gap.low, sign * gap.high))
            gain = [sign * gap.value, low, high]
            yield {
                "text": claim.text,
                "measure": claim.measure,
                "better": claim.better,
                "than": other,
                "gain": gain,
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
