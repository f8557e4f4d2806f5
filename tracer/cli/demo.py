"""What ``fxplain demo`` does: one canvas, two questions, two answers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from fxplain.demo.assets import SPACE, Canvas, load_demo, picture_size
from fxplain.demo.pointing import peak, pointing_game
from fxplain.errors import OutputError

if TYPE_CHECKING:
    from torch import Tensor

    from fxplain.display import Display
    from fxplain.result import Result
    from fxplain.traced import Traced


def run_demo(out_dir: str | Path) -> tuple[Path, ...]:
    """Explain both objects on one canvas; write a picture, a report and the attention graph; print the rest.

    Args:
        out_dir: folder for the files; made if it is not there, files of the same names are replaced.

    Returns:
        The files written: ``demo.png``, ``demo.html`` and ``attention-graph.html``.

    Raises:
        OutputError: the folder or a file in it cannot be written.
    """
    import typer

    import fxplain
    from fxplain.cli.inspect import overview
    from fxplain.cli.options import working

    folder = _made(Path(out_dir))
    with working("loading the demo's model"):
        demo = load_demo()
    canvas = demo.canvases[0]
    # one sample per question: a batch explains each for itself
    inputs, display = demo.prepare(*[canvas] * len(canvas.things))
    with working("capturing the model and finding its attentions"):
        traced = fxplain.trace(demo.model, inputs)
    with working("explaining both objects"):
        result = traced.explain(inputs, target=_targets(canvas))
    typer.echo(overview(demo.loaded.name, traced, demo.loaded.notes) + "\n")
    names = " and ".join(thing.label for thing in canvas.things)
    typer.echo("\n".join(_answers(canvas, result)) + "\n")
    captions = [f"Where is the {thing.label}?" for thing in canvas.things]
    display = dataclasses.replace(display, captions=captions, title=f"fxplain demo: {names}")
    with working("drawing"):
        files = _write(folder, traced, result, display)
    for path in files:
        typer.echo(f"wrote {path}")
    return files


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"the folder {str(folder)!r} cannot be made",
            expected="a folder, or a place where one can be made",
            found=error.strerror or str(error),
            hint="name another with --out",
        ) from error
    return folder


def _targets(canvas: Canvas) -> Tensor:
    import torch

    return torch.tensor([thing.target for thing in canvas.things])


def _answers(canvas: Canvas, result: Result) -> list[str]:
    """For each question the model's own score and where the explanation points."""
    import torch

    from fxplain.cli.inspect import table

    maps, size = result.grid(SPACE), picture_size(canvas)
    hits = pointing_game(maps, torch.tensor([thing.box for thing in canvas.things]), size)
    rows = []
    for i, (thing, cell) in enumerate(zip(canvas.things, peak(maps, size).tolist(), strict=True)):
        left, top, right, bottom = (round(edge) for edge in cell)
        where = f"columns {left} to {right}, rows {top} to {bottom}"
        found = "on it" if bool(hits[i]) else "elsewhere"
        rows.append((thing.label, f"{float(result.score[i]):.2f}", where, found))
    return ["Most relevant patch", *table(("asked for", "logit", "patch, in pixels", "lies"), rows)]


def _write(folder: Path, traced: Traced, result: Result, display: Display) -> tuple[Path, ...]:
    picture, report, graph = (folder / name for name in ("demo.png", "demo.html", "attention-graph.html"))
    result.save(picture, display)
    result.save(report, display)
    traced.page(title="Attention graph of the demo's model").save(graph)
    return picture, report, graph
