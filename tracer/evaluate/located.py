"""Explanations against what is known: masks in pictures, marked words or regions among tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fxplain.errors import UnknownNameError
from fxplain.evaluate import localise
from fxplain.evaluate.batches import Explained, on_cpu, with_floor
from fxplain.evaluate.estimate import RESAMPLES
from fxplain.evaluate.measures import Measure
from fxplain.evaluate.perturb import METHODS
from fxplain.evaluate.rationales import ERASER_K, token_f1
from fxplain.evaluate.removal import named
from fxplain.evaluate.table import Table
from fxplain.traced import Traced

PICTURE_MEASURES = (
    Measure("pointing game"),
    Measure("share inside"),
    Measure("pixel accuracy", statistic=localise.pixel_accuracy),
    Measure("AP"),
    Measure("mIoU", statistic=localise.mean_iou),
)


def localisation(
    traced: Traced,
    inputs: Any,
    masks: Tensor,
    targets: Any = None,
    methods: Sequence[str] = METHODS,
    *,
    space: str = "pixel_values",
    output: str | None = None,
    batch: int = 50,
    seed: int = 0,
    resamples: int = RESAMPLES,
    progress: bool = True,
) -> Table:
    """Maps of a picture's patches against the mask of what was asked for.

    Maps are made as large as the masks, bilinearly; pixel accuracy, AP and mIoU as in the CVPR paper's Table
    2 (the map's mean is the threshold). Beside them the share of relevance inside the mask, and the pointing
    game, whose points are patches: a hit if the most relevant one holds a pixel of the mask.

    Args:
        traced, inputs, targets, methods, output, batch, seed, resamples, progress: see :func:`perturbation`.
        masks: [samples, H, W] bool, some pixel in each.
        space: the patches' token space.

    Raises:
        MethodError: scikit-learn, which computes AP, is not installed.
        FxplainError: as :meth:`Traced.compare`.
    """
    size = (int(masks.shape[-2]), int(masks.shape[-1]))
    names = with_floor(methods)
    run = Explained(traced, named(inputs), names, targets, batch, output, progress)
    found: dict[str, list[dict[str, Tensor]]] = {name: [] for name in names}
    for part in run:
        for name, result in part.results.items():
            found[name].append(_against(result.grid(space).cpu(), masks[part.samples].cpu(), size))
    return _table(f"localisation on {space}", PICTURE_MEASURES, found, run, seed, resamples)


def _against(cells: Tensor, masks: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
    maps = localise.to_pixels(cells, size)
    touched = functional.adaptive_max_pool2d(masks.double()[:, None], cells.shape[-2:])[:, 0] > 0
    counts = localise.overlaps(localise.above_mean(maps), masks)
    return {
        "pointing game": localise.points_inside(cells, touched),
        "share inside": localise.share_inside(maps, masks),
        "pixel accuracy": counts,
        "AP": localise.average_precision(maps, masks),
        "mIoU": counts,
    }


def rationales(
    traced: Traced,
    inputs: Any,
    marked: Tensor,
    targets: Any = None,
    methods: Sequence[str] = METHODS,
    *,
    space: str = "input_ids",
    counted: Tensor | None = None,
    k: Sequence[int] = ERASER_K,
    output: str | None = None,
    batch: int = 50,
    seed: int = 0,
    resamples: int = RESAMPLES,
    progress: bool = True,
) -> Table:
    """Relevance of tokens (words, regions) against those that are marked.

    Token F1 of the k most relevant and AP as in ERASER (DeYoung et al., ACL 2020; CVPR paper, Figure 4), and
    whether the most relevant token is a marked one.

    Args:
        traced, inputs, targets, methods, output, batch, seed, resamples, progress: see :func:`perturbation`.
        marked: [samples, tokens] bool; samples without a marked token do not count.
        space: the token space.
        counted: [samples, tokens] bool: tokens that may be taken (no padding, no [CLS]); None: all.
        k: numbers of tokens for F1.

    Raises:
        MethodError: scikit-learn, which computes AP, is not installed.
        FxplainError: as :meth:`Traced.compare`.
    """
    names = with_floor(methods)
    run = Explained(traced, named(inputs), names, targets, batch, output, progress)
    may = torch.ones_like(marked) if counted is None else counted
    found: dict[str, list[dict[str, Tensor]]] = {name: [] for name in names}
    for part in run:
        wanted, taken = marked[part.samples] & may[part.samples], may[part.samples]
        some = wanted.any(1)
        for name, result in part.results.items():
            relevance = on_cpu(result.relevance[space])
            found[name].append(_words(relevance[some], wanted[some], taken[some], k))
    measures = (Measure("AP"), Measure("top token"), *(Measure(f"F1@{number}") for number in k))
    return _table(f"rationales in {space}", measures, found, run, seed, resamples)


def alignment(
    traced: Traced,
    inputs: Any,
    sources: Tensor,
    targets: Any = None,
    methods: Sequence[str] = METHODS,
    *,
    space: str,
    counted: Tensor | None = None,
    output: str | None = None,
    batch: int = 50,
    seed: int = 0,
    resamples: int = RESAMPLES,
    progress: bool = True,
) -> Table:
    """Whether the most relevant token is the one that the explained output was made from.

    Of words translated, tokens copied, points matched: whatever has one true source. Beside the share of
    targets that point at theirs stands AP, here one over the rank of the true source.

    Args:
        traced, inputs, targets, methods, output, batch, seed, resamples, progress: see :func:`perturbation`.
        sources: [samples] int64: the place of the true source in ``space``.
        space: the token space of the sources.
        counted: [samples, tokens] bool: tokens that may be a source; None: all.

    Raises:
        MethodError: scikit-learn, which computes AP, is not installed.
        FxplainError: as :meth:`Traced.compare`.
    """
    size = next((one.size for one in traced.spaces if one.name == space), None)
    if size is None:
        names = " or ".join(one.name for one in traced.spaces)
        raise UnknownNameError(f"there is no token space {space!r}", expected=names, found=space)
    width = size if counted is None else counted.shape[1]
    marked = functional.one_hot(sources, width).bool()
    table = rationales(
        traced,
        inputs,
        marked,
        targets,
        methods,
        space=space,
        counted=counted,
        k=(1,),
        output=output,
        batch=batch,
        seed=seed,
        resamples=resamples,
        progress=progress,
    )
    rows = {name: {"alignment share": row["top token"], "AP": row["AP"]} for name, row in table.rows.items()}
    measures = (Measure("alignment share"), Measure("AP"))
    return replace(table, title=f"alignment with {space}", measures=measures, rows=rows)


def _words(relevance: Tensor, marked: Tensor, counted: Tensor, k: Sequence[int]) -> dict[str, Tensor]:
    # tokens that may not be taken stand below all others
    floor = relevance.amin(1, keepdim=True) - 1.0 if len(relevance) else relevance
    values = torch.where(counted, relevance, floor)
    precision = [
        localise.average_precision(row[may][None], want[may][None])
        for row, want, may in zip(relevance, marked, counted, strict=True)
    ]
    scores = token_f1(relevance, marked, k, counted)
    return {
        "AP": torch.cat(precision) if precision else torch.zeros(0, dtype=torch.float64),
        "top token": localise.points_inside(values, marked),
        **{f"F1@{number}": scores[:, place] for place, number in enumerate(k)},
    }


def _table(
    title: str,
    measures: tuple[Measure, ...],
    found: dict[str, list[dict[str, Tensor]]],
    run: Explained,
    seed: int,
    resamples: int,
) -> Table:
    """Of what was found batch by batch."""
    rows = {
        name: {measure: torch.cat([part[measure] for part in parts]) for measure in parts[0]}
        for name, parts in found.items()
        if name not in run.refused
    }
    return Table(title, measures, rows, run.refused, tuple(run.notes), seed=seed, resamples=resamples)
