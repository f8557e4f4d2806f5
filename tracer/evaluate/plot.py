"""A table as a picture: both perturbation curves of every method, or bars with their intervals."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from fxplain.evaluate.estimate import Estimate, means_of_draws

if TYPE_CHECKING:
    from fxplain.evaluate.measures import Curves, Measure

_LEAD, _FLOOR = "relevancy", "random"


class Drawn(Protocol):
    """What is drawn of a table; :class:`~fxplain.evaluate.Table` says what each part is."""

    @property
    def measures(self) -> Sequence[Measure]: ...

    @property
    def rows(self) -> Mapping[str, Mapping[str, Tensor]]: ...

    @property
    def curves(self) -> Curves | None: ...

    @property
    def seed(self) -> int: ...

    @property
    def order(self) -> Sequence[str]: ...

    @property
    def cells(self) -> Mapping[str, Mapping[str, Estimate]]: ...


def picture(table: Drawn) -> bytes:
    """A PNG of the table's curves, else of its first measure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = table.curves
    count = len(table.rows)  # all names must find room
    taken = _f1(table)
    two = curves is not None or len(taken) > 1
    figure = Figure(figsize=(11, max(4.2, 0.6 + 0.2 * count)) if two else (7, 0.6 + 0.32 * count))
    FigureCanvasAgg(figure)
    if curves is not None:
        _draw_curves(figure, table, curves)
    elif two:
        _draw_f1(figure, table, taken)
    else:
        _draw_bars(figure.subplots(), table)
    figure.tight_layout()
    stream = io.BytesIO()
    figure.savefig(stream, dpi=110)
    return stream.getvalue()


def _draw_curves(figure: Any, table: Drawn, curves: Curves) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    sides = (
        (left, curves.positive, "most relevant removed first (low is good)"),
        (right, curves.negative, "least relevant removed first (high is good)"),
    )
    styles = _styles(list(table.order))
    for axes, values, title in sides:
        for method in table.order:
            _draw_curve(axes, curves.steps, values[method], method, styles[method], table.seed)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("part removed")
        axes.grid(alpha=0.25)
    left.set_ylabel(curves.what)
    # beside the curves, best first
    right.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)


def _draw_curve(
    axes: Any, steps: tuple[float, ...], rows: Tensor, name: str, style: dict[str, Any], seed: int
) -> None:
    rows = rows.double()
    mean = rows.mean(0)
    low, high = torch.quantile(
        means_of_draws(rows, seed, 300), torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0
    )
    axes.plot(steps, mean, label=name, **style)
    if name in (_LEAD, _FLOOR):
        axes.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)


def _f1(table: Drawn) -> dict[int, str]:
    """Number of tokens taken -> the measure that is of it."""
    names = [measure.name for measure in table.measures]
    return {int(name.removeprefix("F1@")): name for name in names if name.startswith("F1@")}


def _draw_f1(figure: Any, table: Drawn, taken: dict[int, str]) -> None:
    """The first measure as bars, and F1 over the number of tokens that are taken (CVPR paper, Figure 4)."""
    left, right = figure.subplots(1, 2)
    _draw_bars(left, table)
    styles = _styles(list(table.order))
    for method in table.order:
        values = [table.cells[method][name].value for name in taken.values()]
        right.plot(list(taken), values, label=method, **styles[method])
        if method in (_LEAD, _FLOOR):
            cells = [table.cells[method][name] for name in taken.values()]
            low, high = [cell.low for cell in cells], [cell.high for cell in cells]
            right.fill_between(list(taken), low, high, color=styles[method]["color"], alpha=0.15, linewidth=0)
    right.set_xticks(list(taken))
    right.set_xlabel("tokens taken")
    right.set_ylabel("F1")
    right.grid(alpha=0.25)
    right.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)


def _draw_bars(axes: Any, table: Drawn) -> None:
    measure, order = table.measures[0], list(table.order)[::-1]
    cells = [table.cells[method][measure.name] for method in order]
    values = [cell.value for cell in cells]
    spread = [[c.value - c.low for c in cells], [c.high - c.value for c in cells]]
    colours = ["#c23" if name == _LEAD else "#999" if name == _FLOOR else "#58a" for name in order]
    axes.barh(order, values, xerr=spread, color=colours, height=0.7, error_kw={"elinewidth": 1})
    axes.set_xlabel(f"{measure.name} ({'higher' if measure.higher_is_better else 'lower'} is better)")
    axes.tick_params(labelsize=8)
    axes.margins(y=0.01)


def _styles(methods: list[str]) -> dict[str, dict[str, Any]]:
    """Colours and dashes that tell up to thirty methods apart; relevancy is thick, chance dotted."""
    from matplotlib import colormaps

    colours = colormaps["tab10"](range(10))
    # red and grey are taken
    palette = [colour for place, colour in enumerate(colours) if place not in (3, 7)]
    dashes = ("-", "--", "-.", (0, (1, 1)))
    styles = {}
    for place, name in enumerate(sorted(methods)):
        colour, dash = palette[place % 8], dashes[place // 8 % 4]
        styles[name] = {"color": colour, "linestyle": dash, "linewidth": 1.3}
    styles |= {
        name: {"color": "#c00", "linestyle": "-", "linewidth": 3.0} for name in methods if name == _LEAD
    }
    return styles | {
        name: {"color": "#777", "linestyle": ":", "linewidth": 2.0} for name in methods if name == _FLOOR
    }
