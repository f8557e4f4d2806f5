"""One thread per test process: the models are tiny, and the processes share the cores."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """What a test draws without a seed of its own is the same in every run."""
    torch.manual_seed(0)
