"""How long an explanation takes, and what it holds, beside one forward and one backward pass: the floor.

    python benchmarks/speed.py --large --ways rows,targets  # the bars, on one idle CPU core: 20 minutes
    python benchmarks/speed.py --large                    # everything: hours
    python benchmarks/speed.py --large "vit-b 224"        # one case
    python benchmarks/speed.py --large --ways rows,hooks  # some ways
    python benchmarks/speed.py                            # small models, minutes
    python benchmarks/speed.py --large --device cuda --dtype bfloat16

Prints for each case, from one run, time and peak memory of each way over the floor's (medians, the ways taken
in turn; integrated gradients and several targets are timed once):

    rows        fxplain, the rows that are read       hooks    the paper's method by hooks on eager attention
    checkpoint  the same, the graph run in slices     ig       integrated gradients, 50 steps (captum)
    matrix      fxplain, all of R                     lxt, autolrp   LRP by these packages, where they run
    targets     fxplain, several targets at once

On the CPU times are processor times of one thread, and peaks those of live tensors as the dispatcher sees
them; on CUDA the clock's, and the allocator's. The model and its inputs are not counted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import transformers
from speed_cases import GROWTH, LARGE, MIDDLE, SMALL, Case, moved
from speed_meters import peak_bytes, seconds
from speed_ways import ways_of
from torch import nn

import fxplain

WAYS = ("rows", "checkpoint", "matrix", "targets", "attnlrp", "hooks", "ig", "lxt", "autolrp")
LONG, FEW = 10, 3
"""Of cases whose floor takes more seconds than that, and how many rounds are enough."""
Measured = dict[str, tuple[float, int] | str]
"""Way -> seconds and bytes, or why it was not measured."""


def measure(case: Case, options: argparse.Namespace) -> Measured:
    """All ways of one case, in turn; the first turn is for the peaks, the others for the times."""

    @cache
    def model(attention: str) -> nn.Module:
        made = case.build(attention).eval().requires_grad_(False).to(options.device, options.dtype)
        for name in case.learned:
            made.get_parameter(name).requires_grad_()
        return made

    size = torch.empty((), dtype=options.dtype).element_size()
    needs = {"hooks": 2 * case.maps * size / 1e9, "matrix": 12 * case.largest / 1e9}
    found: Measured = {
        way: f"needs {needed:.0f} GB"
        for way, needed in needs.items()
        if way in options.ways and needed > options.memory
    }
    ways = ways_of(case, model, [way for way in options.ways if way not in found])
    models = ("sdpa", "eager")[: 1 + ("hooks" in ways)]
    owned = [*(t for name in models for t in model(name).state_dict().values()), *case.inputs.values()]
    times: dict[str, list[float]] = {way: [] for way in ways}
    peaks: dict[str, int] = {}
    for turn in range(options.rounds + 1):
        if turn > FEW and max(times["floor"]) > LONG:
            break
        for way, run in ways.items():
            if way in found or (turn > 1 and way in ("ig", "targets")):
                continue
            try:
                if turn:
                    times[way].append(seconds(run, options.device))
                else:  # warms up, too
                    peaks[way] = peak_bytes(run, options.device, owned)
            except Exception as error:  # other packages do not run everything
                if way in ("floor", "rows", "checkpoint", "matrix", "targets"):
                    raise
                found[way] = type(error).__name__
    return found | {way: (statistics.median(times[way]), peak) for way, peak in peaks.items() if times[way]}


def line(name: str, case: Case, found: Measured, ways: Sequence[str]) -> str:
    """A row of the table: the floor as it is, the other ways as multiples of it."""
    floor = found["floor"]
    assert not isinstance(floor, str)
    cells = [name, f"{1e3 * floor[0]:.0f} ms, {floor[1] / 1e6:.0f} MB"]
    for way in ways:
        one = found.get(way, "")
        cell = one if isinstance(one, str) else f"{one[0] / floor[0]:.2f}, {one[1] / floor[1]:.2f}"
        bar = f" (<= {case.bar[0]}, {case.bar[1]})" if way == "rows" and case.bar else ""
        cells.append(cell + bar)
    return f"| {' | '.join(cells)} |"


def several(name: str, case: Case, found: Measured) -> str:
    """What many targets in one run cost, beside as many explanations of one."""
    together, alone = found.get("targets", ""), found.get("rows", "")
    if isinstance(together, str) or isinstance(alone, str):
        return ""
    count = len(case.targets)
    return (
        f"{name}: {count} targets together take {together[0] / (count * alone[0]):.2f} of the time of "
        f"{count} explanations of one, and {together[1] / alone[1]:.2f} of the peak of one."
    )


def growth(found: dict[str, Measured]) -> str:
    """How much the ratios grow from the shorter input to the longer."""
    short, long, bar = GROWTH
    if short not in found or long not in found:
        return ""
    ratios = []
    for part in (0, 1):
        over = []
        for case in (long, short):
            rows, floor = found[case]["rows"], found[case]["floor"]
            assert not isinstance(rows, str)
            assert not isinstance(floor, str)
            over.append(rows[part] / floor[part])
        ratios.append(over[0] / over[1])
    return (
        f"The ratio of {long} over that of {short}: time {ratios[0]:.2f} (<= {bar[0]}), "
        f"peak {ratios[1]:.2f} (<= {bar[1]})."
    )


def again(options: argparse.Namespace) -> str:
    """A toy model: the first explanation, with capture and labels, over the second."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval().to(options.device)
    x = torch.randn(1, 8, 16, device=options.device)
    made: list[Any] = []
    first = seconds(
        lambda: made.append(fxplain.trace(model, x)) or made[0].explain(x, (0, 3)), options.device
    )
    second = statistics.median(
        seconds(lambda: made[0].explain(x, (0, 3)), options.device) for _ in range(options.rounds)
    )
    return f"A toy model: the second explanation is {first / second:.0f} times faster than the first (>= 5)."


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cases", nargs="*", help=", ".join([*SMALL, *MIDDLE, *LARGE]))
    parser.add_argument("--large", action="store_true", help="the sizes of real models")
    parser.add_argument("--ways", default=",".join(WAYS), help=f"of {', '.join(WAYS)}; the floor always")
    parser.add_argument("--rounds", type=int, default=5, help="of long cases 3 at most")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--memory", type=float, default=8, help="gigabytes that maps may take")
    options = parser.parse_args()
    options.ways = [way for way in WAYS if way in options.ways.split(",")]
    options.dtype = getattr(torch, options.dtype)
    return options


def main() -> None:
    options = arguments()
    if options.device == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    device = "CPU" if options.device == "cpu" else torch.cuda.get_device_name()
    begun = time.monotonic()
    rounds = f"{options.rounds} ({min(FEW, options.rounds)} where the floor takes over {LONG} s)"
    print(f"{device}, {options.dtype}, torch {torch.__version__}, medians of {rounds}\n")
    print(f"| case | floor: time, peak | {' | '.join(options.ways)} |")
    print("|---" * (2 + len(options.ways)) + "|")
    found, notes = {}, []
    for name in options.cases or (LARGE if options.large else SMALL):
        case = moved((SMALL | MIDDLE | LARGE)[name](), options.device, options.dtype)
        found[name] = measure(case, options)
        print(line(name, case, found[name], options.ways), flush=True)
        notes.append(several(name, case, found[name]))
    for note in filter(None, [*notes, growth(found), again(options)]):
        print(f"\n{note}")
    print(f"\nAll this took {(time.monotonic() - begun) / 60:.1f} min.")


if __name__ == "__main__":
    main()
