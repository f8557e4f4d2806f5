"""Where pictures of explanations go while a model trains."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fxplain.display import Picture
from fxplain.errors import OutputError
from fxplain.files import write_whole
from fxplain.render.overlay import png


class Logger(Protocol):
    """What takes a picture of one input at one step."""

    def log(self, name: str, picture: Picture, caption: str, step: int) -> None:
        """Keep it.

        Args:
            name: of the input.
            picture: uint8 [H, W, 3].
            caption: what was explained.
            step: of the training.
        """
        ...


class Folder:
    """Pictures as files: ``NAME-STEP.png``.

    Args:
        path: a folder, made if it is not there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def log(self, name: str, picture: Picture, caption: str, step: int) -> None:
        """Write one file."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.path / f"{name}-{step:06d}.png", png(picture))


class TensorBoard:
    """Pictures on the page of TensorBoard.

    Args:
        writer: a ``SummaryWriter`` of torch, or the folder of one.

    Raises:
        OutputError: a folder is given, and tensorboard is not installed.
    """

    def __init__(self, writer: Any) -> None:
        if isinstance(writer, (str, os.PathLike)):
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise OutputError(
                    "tensorboard is not installed", hint="install it: pip install 'fxplain[logging]'"
                ) from error
            writer = SummaryWriter(os.fspath(writer))
        self.writer = writer

    def log(self, name: str, picture: Picture, caption: str, step: int) -> None:
        """Add one picture and its caption."""
        self.writer.add_image(f"explained/{name}", picture, step, dataformats="HWC")
        self.writer.add_text(f"explained/{name}", caption, step)
        self.writer.flush()


class WeightsAndBiases:
    """Pictures in a run of Weights & Biases.

    Args:
        run: what ``wandb.init`` gave; None for the run that is open.

    Raises:
        OutputError: wandb is not installed, or no run is open.
    """

    def __init__(self, run: Any = None) -> None:
        try:
            import wandb
        except ImportError as error:
            raise OutputError("wandb is not installed", hint="install it: pip install wandb") from error
        self.library, self.run = wandb, run if run is not None else wandb.run
        if self.run is None:
            raise OutputError("no run is open", expected="wandb.init(...) before", found="none")

    def log(self, name: str, picture: Picture, caption: str, step: int) -> None:
        """Add one picture with its caption."""
        drawn = self.library.Image(np.ascontiguousarray(picture), caption=caption)
        self.run.log({f"explained/{name}": drawn, "explained/step": step})
