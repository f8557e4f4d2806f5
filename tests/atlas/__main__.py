"""``python tests/atlas``: runs the atlas and writes its report. See ``--help``."""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from atlas.cases import REGISTRIES, registry
from atlas.report import report
from atlas.run import finished, run, tasks

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tests/atlas", description=__doc__)
    parser.add_argument("--registry", action="append", choices=list(REGISTRIES), help="default: all")
    parser.add_argument("--only", metavar="PATTERN", help="a regular expression that names must hold")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS", help="for each model")
    parser.add_argument("--resume", action="store_true", help="leave out what the results hold already")
    parser.add_argument(
        "--again", metavar="OUTCOMES", help="judge again what had one of these outcomes, by commas"
    )
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "atlas" / "results.jsonl")
    parser.add_argument("--report", action="store_true", help="run nothing, write the page from the results")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "atlas.md")
    options = parser.parse_args()
    if not options.report:
        _run(options)
    records = finished(options.results)
    judged = sorted({library for library, _ in records})
    listed = {library: len(registry(library).names()) for library in judged}
    options.page.write_text(report(records.values(), listed))


def _run(options: argparse.Namespace) -> None:
    todo = tasks(options.registry or list(REGISTRIES), options.only)
    known = finished(options.results)
    if options.again:
        outcomes = options.again.split(",")
        todo = [task for task in todo if task in known and known[task]["outcome"] in outcomes]
    elif options.resume:
        todo = [task for task in todo if task not in known]
    random.Random(0).shuffle(todo)  # so that the time left is told rightly
    run(todo, options.results, options.workers, options.timeout)


if __name__ == "__main__":
    main()
