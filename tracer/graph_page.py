"""The page of a model's attention graph, with one input in it or none."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fxplain.attention.census import census
from fxplain.attention.graph import attention_graph
from fxplain.attention.labelled import Labelled
from fxplain.attention.records import Attention, CensusEntry, Mixing
from fxplain.attribution.prediction import Prediction
from fxplain.attribution.table import Method
from fxplain.display import Display
from fxplain.errors import FxplainError, OutputError
from fxplain.files import check_folder, path_of, write_whole
from fxplain.maps.weights import per_head, weighed_per_head
from fxplain.render.graph.look import Look
from fxplain.render.graph.packed import Packed, packed, side_for
from fxplain.render.graph.page import graph_html
from fxplain.render.pages import page
from fxplain.run.replay import Replay, replay
from fxplain.walk import Walk, predicted, walked

if TYPE_CHECKING:
    import networkx as nx

MOST = 1 << 27
"""Weights of one attention, all heads together; of a larger one the page has no maps."""


@dataclass(frozen=True, eq=False)
class GraphPage:
    """The attention graph to look at, in one HTML file that loads nothing. Made by
    :meth:`fxplain.Traced.page` and :meth:`fxplain.Explainer.page`; in a notebook it shows itself.

    Example:
        >>> import fxplain, torch
        >>> model = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> page = fxplain.trace(model, torch.randn(1, 5, 8)).page(title="one layer")
        >>> "<h1>one layer</h1>" in page.html
        True
    """

    graph: nx.MultiDiGraph[str] = field(repr=False)
    title: str
    entries: tuple[CensusEntry, ...] = field(repr=False)
    """The census."""
    look: Look | None = field(default=None, repr=False)
    """What is shown of one input."""

    @cached_property
    def html(self) -> str:
        """The whole page."""
        return graph_html(self.graph, self.title, self.entries, self.look)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page, whole or not at all.

        Raises:
            OutputError: the name does not end in ``.html``, there is no such folder, or the disk refuses.
        """
        path = path_of(path)
        if path.suffix.lower() not in (".html", ".htm"):
            raise OutputError(
                f"the page of a graph cannot be saved as {path.name!r}",
                expected="a name that ends in .html",
                found=path.suffix or "no suffix",
                hint="fxplain inspect writes graphs as .json, .dot and .graphml",
            )
        check_folder(path)
        write_whole(path, self.html)

    def _repr_html_(self) -> str:
        return page("frame.html.j2", content=self.html, title=self.title)


@dataclass(frozen=True, eq=False)
class Asked:
    """What is to be seen of one input."""

    target: Any
    method: Method
    output: str | None
    display: Display
    sample: int


def graph_and_census(
    labelled: Labelled, title: str
) -> tuple[nx.MultiDiGraph[str], str, tuple[CensusEntry, ...]]:
    """The first parts of the page of one layout of inputs."""
    classified = labelled.classified
    graph = attention_graph(classified, labelled.captured.outputs)
    return graph, title, census(labelled.findings, classified.sites)


def looked(labelled: Labelled, bound: Mapping[str, Tensor], verified: float, asked: Asked) -> Look:
    """The maps on one input, and the way of the relevance; without a target, whatever of it can be had.

    Raises:
        FxplainError: a target is given, and cannot be explained.
    """
    try:
        prediction = predicted(labelled, bound, asked.target, asked.method, asked.output)
        look = look_at(labelled, asked.display, prediction.run, asked.sample, prediction)
        return with_walk(look, walked(prediction, asked.method, verified))
    except FxplainError as error:
        if asked.target is not None:
            raise
        run = replay(labelled.captured, bound, labelled.classified.sites, gradients=False)
        look = look_at(labelled, asked.display, run, asked.sample)
        return replace(look, notes=(f"Not explained: {str(error).splitlines()[0]}",))


def look_at(
    labelled: Labelled, display: Display, run: Replay, sample: int, prediction: Prediction | None = None
) -> Look:
    """The heads' maps of one sample, ready for the page; with a prediction also times its gradients."""
    classified = labelled.classified
    gradients = None
    if prediction is not None and prediction.run.tapped and any(p.requires_grad for p in prediction.passes):
        passes = prediction.gradients
        gradients = passes[sample if len(passes) > 1 else 0]
    sites = [
        (site, step) for site, step in zip(classified.sites, classified.steps, strict=True) if site.attends
    ]
    sizes = [
        (step.heads, step.queries.size, step.keys.size)
        for _, step in sites
        if isinstance(step, Attention) and _fits(step)
    ]
    side = side_for(sizes, 1 if gradients is None else 2)
    maps: dict[str, Packed] = {}
    left_out: dict[str, str] = {}
    for site, step in sites:
        if not isinstance(step, Attention):
            left_out[node_name(step)] = "It samples its keys at points: there is no map of heads."
        elif not _fits(step):
            left_out[node_name(step)] = (
                f"Its maps are too large for a page: {step.heads} heads of {_size(step)}."
            )
        else:
            plan = labelled.plans[site.index]
            weights = per_head(plan, run, step)
            weighed = None
            if gradients is not None:
                weighed = weighed_per_head(plan, run, step, gradients.get(site.tap.name))
            own, more = (_of(given, sample) for given in (weights, weighed))
            assert own is not None
            maps[node_name(step)] = packed(own, more, side)
    return Look(classified.spaces, classified.streams, display, maps, left_out, sample=sample)


def with_walk(look: Look, walk: Walk) -> Look:
    """The same, with an explanation and its walk."""
    names = [node_name(step) for step in walk.steps]
    own: Mapping[str, Tensor] = {
        name: passed[look.sample] for name, passed in zip(names, walk.passed, strict=True)
    }
    return replace(look, result=walk.result, passed=own, notes=(*look.notes, *walk.result.notes))


def node_name(step: Attention | Mixing) -> str:
    """How the attention graph calls a step."""
    return f"{'attention' if isinstance(step, Attention) else 'mixing'}:{step.index}"


def _of(weights: Tensor | None, sample: int) -> Tensor | None:
    return None if weights is None else weights[min(sample, len(weights) - 1)]


def _fits(step: Attention) -> bool:
    return step.heads * step.queries.size * step.keys.size <= MOST


def _size(step: Attention) -> str:
    return f"{step.queries.size} x {step.keys.size}"
