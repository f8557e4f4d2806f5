"""Which part of a dataset is this process's, where an engine has started several."""

from __future__ import annotations

import os


def part_of_environment() -> tuple[int, int]:
    """(number of this process, how many there are), as ``torchrun`` and ``accelerate launch`` tell it; (0, 1)
    where nobody does."""
    try:
        number, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return 0, 1
    return (number, count) if 0 <= number < count else (0, 1)
