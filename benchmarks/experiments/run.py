"""Runs the experiments and writes docs/results.md.

    python benchmarks/experiments/run.py                # all of them, from scratch, and the page
    python benchmarks/experiments/run.py vit-asked      # one, and the page from what is there
    python benchmarks/experiments/run.py --page         # the page alone

Each takes some minutes of one core.
"""

from __future__ import annotations

import argparse
import importlib

import torch
from jobs import Job, run
from report import write

MODULES = ("vit",)


def jobs() -> dict[str, Job]:
    """All experiments by name."""
    return {job.name: job for module in MODULES for job in importlib.import_module(module).JOBS}


def main() -> None:
    known = jobs()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*known, []], help="by default all")
    parser.add_argument("--count", type=int, default=None, help="samples, instead of each experiment's own")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--page", action="store_true", help="only write the page anew")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    for name in () if chosen.page else chosen.names or known:
        print(run(known[name], chosen.count).text(), flush=True)
    write(list(known))


if __name__ == "__main__":
    main()
