"""A small model, a dataset, and a job over it that engines start as a script: FOLDER SECONDS."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import fxplain


class Reader(nn.Module):
    """Two scores from the first token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 2)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(ids))[:, 0])  # type: ignore[no-any-return]


def reader() -> nn.Module:
    """The same one each time."""
    torch.manual_seed(0)
    return Reader().eval()


def dataset(count: int, lengths: Sequence[int] = (4, 5)) -> list[Tensor]:
    return [torch.arange(i, i + lengths[i % len(lengths)])[None] % 20 for i in range(count)]


class Slow(list[Tensor]):
    """Takes its time for every entry, so that there is time to interrupt."""

    seconds = 0.0

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        time.sleep(self.seconds)
        return super().__getitem__(index)


COUNT = 16


def main(folder: Path, seconds: float) -> None:
    """Explain the dataset, and tell beside the folder which process does which part."""
    torch.set_num_threads(1)
    pid = folder.parent / f"pid-{os.environ.get('RANK', '0')}"
    pid.write_text(str(os.getpid()))
    Slow.seconds = seconds
    fxplain.explain_dataset(reader(), Slow(dataset(COUNT, (4,))), folder, batch_size=1, per_file=2)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
