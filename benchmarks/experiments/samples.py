"""Pictures of single samples for docs/results.md: the same input explained by several methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs import IMAGES
from torch import Tensor

METHODS = ("relevancy", "relevancy+libra", "legrad", "transformer_attribution", "rollout", "raw_attention")


def path_of(model: str) -> Path:
    """Where a model's sample lies."""
    return IMAGES / f"sample-{model.lower()}.png"


def draw_words(
    path: Path, texts: Sequence[Sequence[str]], marked: Tensor, found: Mapping[str, Tensor]
) -> None:
    """One block for each text, one line in it for each method; the marked words are underlined.

    Args:
        marked: [texts, words] bool.
        found: method -> [texts, words]; the colour is relevance over the text's largest.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    longest = max(sum(len(word) + 1 for word in text) for text in texts)
    lines = len(texts) * (len(found) + 1) - 1
    figure = Figure(figsize=(0.085 * (longest + 26), 0.25 * lines + 0.2))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, longest + 26)
    axes.set_ylim(-lines - 0.4, 0.4)
    axes.axis("off")
    for block, text in enumerate(texts):
        for place, (method, values) in enumerate(found.items()):
            y = -(block * (len(found) + 1) + place) - 0.5
            axes.text(0.5, y, method, family="monospace", fontsize=9, va="center", color="#555")
            _line(axes, 25, y, text, marked[block], values[block])
    figure.savefig(path, dpi=110)


def _line(axes: Any, x: float, y: float, text: Sequence[str], marked: Tensor, values: Tensor) -> None:
    from matplotlib.patches import Rectangle

    own = values[: len(text)].clamp_min(0)
    shades = own / own.max().clamp_min(1e-30)
    for word, mark, shade in zip(text, marked.tolist(), shades.tolist(), strict=False):
        box = Rectangle(
            (x - 0.3, y - 0.42), len(word) + 0.6, 0.84, color="#e33", alpha=0.85 * shade, linewidth=0
        )
        axes.add_patch(box)
        axes.text(x, y, word, family="monospace", fontsize=9, va="center")
        if mark:
            axes.plot([x, x + len(word)], [y - 0.36] * 2, color="#000", linewidth=1)
        x += len(word) + 1


def draw_maps(path: Path, pictures: Tensor, titles: Sequence[str], found: Mapping[str, Tensor]) -> None:
    """One row for each picture: itself, then its map by each method.

    Args:
        pictures: [pictures, H, W], grey, or [pictures, H, W, 3].
        titles: what is explained, by row.
        found: method -> [pictures, H, W].
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = len(found) + 1
    figure = Figure(figsize=(1.75 * columns, 1.7 * len(pictures) + 0.3))
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(pictures), columns, squeeze=False)
    for row, picture in enumerate(pictures):
        grid[row][0].imshow(picture.numpy(), cmap="gray")
        grid[row][0].set_ylabel(titles[row], fontsize=9)
        for place, (method, maps) in enumerate(found.items(), start=1):
            axes = grid[row][place]
            axes.imshow(picture.numpy(), cmap="gray", alpha=0.55)
            axes.imshow(maps[row].numpy(), cmap="inferno", alpha=0.65)
            if row == 0:
                axes.set_title(method, fontsize=8)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def chosen(texts: Sequence[Sequence[str]], right: Tensor, count: int, most: int = 14) -> list[int]:
    """The first of the texts that are short and that the model gets right."""
    short = [place for place, text in enumerate(texts) if 6 <= len(text) <= most and bool(right[place])]
    return short[:count]


def explained(traced: Any, inputs: Any, targets: Any, space: str) -> dict[str, Tensor]:
    """Method -> [samples, tokens]."""
    results = traced.compare(inputs, (*METHODS, "gradient_x_input+libra"), targets).results
    return {name: result.relevance[space].detach() for name, result in results.items()}
