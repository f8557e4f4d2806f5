"""Runs the experiments and writes docs/results.md.

    python benchmarks/experiments/run.py                # all of them, from scratch, and the page
    python benchmarks/experiments/run.py vit-asked      # one, and the page from what is there
    python benchmarks/experiments/run.py --samples      # the pictures of single samples alone
    python benchmarks/experiments/run.py --page         # the page alone

Each takes some minutes of one core. Every module beside this one that has JOBS is run; its ABOUT says what
the page tells of its models, its SAMPLES, if it has any, draw a picture of a model's samples.
"""

from __future__ import annotations

import argparse
import importlib
import re
from pathlib import Path
from types import ModuleType

import torch
from jobs import Job, run
from report import ordered, write
from samples import path_of


def modules() -> list[ModuleType]:
    """Those beside this one that have experiments, and no others: scripts that train are not imported."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    having = [file for file in files if re.search(r"^JOBS\b", file.read_text(encoding="utf-8"), re.MULTILINE)]
    return [importlib.import_module(file.stem) for file in having]


def jobs() -> dict[str, Job]:
    """All experiments by name, in the order of the page."""
    return {job.name: job for job in ordered([job for module in modules() for job in module.JOBS])}


def about() -> dict[str, str]:
    """What the page says of each model."""
    return {model: text for module in modules() for model, text in module.ABOUT.items()}


def draw_samples() -> None:
    """A picture of single samples for each model that has one."""
    for module in modules():
        for model, draw in getattr(module, "SAMPLES", {}).items():
            draw(path_of(model))


def main() -> None:
    known = jobs()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*known, []], help="by default all")
    parser.add_argument("--count", type=int, default=None, help="samples, instead of each experiment's own")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", action="store_true", help="only draw the samples anew")
    parser.add_argument("--page", action="store_true", help="only write the page anew")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    only = chosen.page or chosen.samples
    for name in () if only else chosen.names or known:
        print(run(known[name], chosen.count).text(), flush=True)
    if chosen.samples or not (only or chosen.names):
        draw_samples()
    write(known, about())


if __name__ == "__main__":
    main()
