"""`python tests/random_models --count 2000 --seed 0`: every disagreement, shrunk, and a summary."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from random_models.compare import disagreement, shrunk
from random_models.plan import draw


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/random_models", description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="how many models")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first; the others follow")
    parser.add_argument("--mode", default="matrix", choices=("matrix", "rows"))
    parser.add_argument("--no-shrink", action="store_true", help="print disagreements as they were drawn")
    parser.add_argument("--batch", type=int, help="of how many samples, for all models")
    given = parser.parse_args()
    wrong = refused = 0
    for seed in range(given.seed, given.seed + given.count):
        plan = draw(seed) if given.batch is None else replace(draw(seed), batch=given.batch)
        found = disagreement(plan, given.mode)
        if found is None:
            continue
        refused += found.startswith("refused")
        wrong += not found.startswith("refused")
        print(f"seed {seed}: {found}\n  {plan}", flush=True)
        if not given.no_shrink:
            print(f"  shrunk: {shrunk(plan)}", flush=True)
    print(f"{given.count} models: {given.count - wrong - refused} agree, {refused} refused, {wrong} wrong")
    return int(wrong + refused > 0)


if __name__ == "__main__":
    sys.exit(main())
