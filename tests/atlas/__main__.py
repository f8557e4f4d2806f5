"""``python tests/atlas``: runs the atlas and writes its report. See ``--help``."""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from atlas import every_method
from atlas.cases import REGISTRIES, registry
from atlas.judge import judge
from atlas.method_report import method_report
from atlas.report import report
from atlas.run import Task, finished, run, tasks

ROOT = Path(__file__).resolve().parents[2]
BUILD, DOCS = ROOT / "build" / "atlas", ROOT / "docs"


def main() -> None:
    options = _options()
    results = options.results or BUILD / ("methods.jsonl" if options.methods else "results.jsonl")
    if not options.report:
        todo = _todo(options, results)
        run(todo, results, options.workers, options.timeout, every_method.judge if options.methods else judge)
    records = finished(results)
    if options.methods:
        page, text = DOCS / "atlas-methods.md", method_report(records.values())
    else:
        judged = sorted({library for library, _ in records})
        listed = {library: len(registry(library).names()) for library in judged}
        page, text = DOCS / "atlas.md", report(records.values(), listed)
    (options.page or page).write_text(text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python tests/atlas", description=__doc__)
    parser.add_argument("--registry", action="append", choices=list(REGISTRIES), help="default: all")
    parser.add_argument("--only", metavar="PATTERN", help="a regular expression that names must hold")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--timeout", type=float, default=120.0, metavar="SECONDS", help="of computing, for each model"
    )
    parser.add_argument("--resume", action="store_true", help="leave out what the results hold already")
    parser.add_argument(
        "--again", metavar="OUTCOMES", help="judge again what had one of these outcomes, by commas"
    )
    parser.add_argument("--results", type=Path, help="default: build/atlas/results.jsonl, or methods.jsonl")
    parser.add_argument("--report", action="store_true", help="run nothing, write the page from the results")
    parser.add_argument("--page", type=Path, help="default: docs/atlas.md, or docs/atlas-methods.md")
    parser.add_argument(
        "--methods", action="store_true", help="run every method on the models that passed, by --passed"
    )
    parser.add_argument(
        "--passed", type=Path, action="append", metavar="RESULTS", help="default: build/atlas/results.jsonl"
    )
    parser.add_argument("--sample", type=int, metavar="MODELS", help="no more than so many, drawn at random")
    return parser.parse_args()


def _todo(options: argparse.Namespace, results: Path) -> list[Task]:
    """The models to judge, in an order that tells the time left rightly."""
    todo = tasks(options.registry or list(REGISTRIES), options.only)
    if options.methods:
        explained = [finished(path) for path in options.passed or [BUILD / "results.jsonl"]]
        passed = {
            task for found in explained for task, record in found.items() if record["outcome"] == "passed"
        }
        todo = [task for task in todo if task in passed]
    random.Random(0).shuffle(todo)
    if options.sample is not None:
        todo = todo[: options.sample]
    known = finished(results)
    if options.again:
        outcomes = options.again.split(",")
        todo = [task for task in todo if task in known and known[task]["outcome"] in outcomes]
    elif options.resume:
        todo = [task for task in todo if task not in known]
    return todo


if __name__ == "__main__":
    main()
