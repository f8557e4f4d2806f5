"""What some tests need of torch and transformers, where the oldest supported versions lack it."""

from __future__ import annotations

import pytest
import torch
import transformers


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


TORCH, TRANSFORMERS = _version(torch.__version__), _version(transformers.__version__)

higher_order = pytest.mark.skipif(
    TORCH < (2, 14),
    reason="older torch runs loops, branches and flex attention on the CPU only compiled",
)
newest_names = pytest.mark.skipif(
    TRANSFORMERS < (5, 12),
    reason="weights and recorded models are of a newer transformers",
)
