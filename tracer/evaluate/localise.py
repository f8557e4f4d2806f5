"""Does a map lie where it should? Against a mask or box of what was asked for.

Segmentation as in Chefer, Gur, Wolf, CVPR 2021, section 4: the map is made as large as the picture, scaled to
0..1, and what lies above its mean is object. Each score has one row per sample, so that
:func:`fxplain.evaluate.estimate` can draw samples anew.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fxplain.errors import MethodError


def to_pixels(relevance: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [batch, h, w] made as large as the picture, bilinearly, as the authors do: [batch, H, W]."""
    maps = relevance.detach().float()[:, None]
    return functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)[:, 0]


def scaled(maps: Tensor) -> Tensor:
    """Each map scaled to 0..1 by its least and largest value; a constant one is 0 everywhere.

    Example:
        >>> scaled(torch.tensor([[[1.0, 3.0]], [[2.0, 2.0]]]))
        tensor([[[0., 1.]],
        <BLANKLINE>
                [[0., 0.]]])
    """
    flat = maps.flatten(1)
    low, high = flat.amin(1), flat.amax(1)
    shape = (-1, *[1] * (maps.ndim - 1))
    width = (high - low).reshape(shape)
    return torch.where(
        width > 0, (maps - low.reshape(shape)) / width.clamp_min(1e-38), torch.zeros_like(maps)
    )


def above_mean(maps: Tensor) -> Tensor:
    """What is taken for the object: above the map's own mean (the same before and after scaling)."""
    return maps > maps.flatten(1).mean(1).reshape(-1, *[1] * (maps.ndim - 1))


def overlaps(found: Tensor, masks: Tensor) -> Tensor:
    """What pixel accuracy and mIoU are made of.

    Args:
        found, masks: [batch, H, W] bool: taken for the object, and the object.

    Returns:
        [batch, 6] float64, in pixels: right; of the object intersection and union; of the background
        intersection and union; all.
    """
    one, two = found.flatten(1), masks.flatten(1)
    columns = (one == two, one & two, one | two, ~one & ~two, ~one | ~two)
    counts = torch.stack([column.double().sum(1) for column in columns], 1)
    return torch.cat([counts, torch.full_like(counts[:, :1], one.shape[1])], 1)


def pixel_accuracy(means: Tensor) -> Tensor:
    """Part of all pixels that is told right: a statistic of :func:`overlaps`."""
    return means[:, 0] / means[:, 5]


def mean_iou(means: Tensor) -> Tensor:
    """Intersection over union, each summed over all samples, mean of object and background: a statistic of
    :func:`overlaps`."""
    return (means[:, 1] / means[:, 2] + means[:, 3] / means[:, 4]) / 2


def average_precision(scores: Tensor, wanted: Tensor) -> Tensor:
    """Average precision of each row, by scikit-learn: ``Σ (R_n - R_{n-1}) P_n`` over all thresholds.

    Args:
        scores: [batch, ...] soft maps or relevance of tokens.
        wanted: the same shape, bool; a row in which nothing is wanted gets NaN.

    Returns:
        [batch] float64.

    Raises:
        MethodError: scikit-learn is not installed.
    """
    try:
        from sklearn.metrics import average_precision_score
    except ImportError as error:
        raise missing("scikit-learn") from error
    rows = []
    for row, want in zip(scores.detach().double().flatten(1), wanted.flatten(1), strict=True):
        some = bool(want.any())
        rows.append(float(average_precision_score(want.numpy(), row.numpy())) if some else float("nan"))
    return torch.tensor(rows, dtype=torch.float64)


def share_inside(relevance: Tensor, inside: Tensor) -> Tensor:
    """The part of the positive relevance that lies inside a box or mask: [batch]; 0 where there is none.

    Kohlbrenner et al., *Towards Best Practice in Explaining Neural Network Decisions with LRP*, 2020: the
    attribution localisation (inside-total relevance ratio).

    Args:
        relevance: [batch, ...].
        inside: the same shape, bool.
    """
    positive = relevance.detach().double().clamp_min(0).flatten(1)
    total = positive.sum(1)
    part = (positive * inside.flatten(1)).sum(1)
    return torch.where(total > 0, part / total.clamp_min(1e-300), torch.zeros_like(total))


def points_inside(relevance: Tensor, inside: Tensor) -> Tensor:
    """The pointing game on masks: whether the largest value lies inside, [batch] bool.

    Zhang et al., *Top-down Neural Attention by Excitation Backprop*, IJCV 2018, section 5.1. A map that is
    constant or not finite points nowhere: a miss.

    Args:
        relevance: [batch, ...], of tokens or pixels.
        inside: the same shape, bool.

    Example:
        >>> points_inside(torch.tensor([[0.0, 2.0], [1.0, 1.0]]), torch.tensor([[False, True], [True, True]]))
        tensor([ True, False])
    """
    values, within = relevance.detach().flatten(1), inside.flatten(1)
    hit = within.gather(1, values.nan_to_num().argmax(1, keepdim=True))[:, 0]
    return hit & values.isfinite().all(1) & (values.amax(1) > values.amin(1))


def missing(package: str) -> MethodError:
    """That an optional package is needed."""
    return MethodError(
        f"this score needs {package}, which is not installed",
        expected="the packages of the extra 'evaluate'",
        hint="pip install 'fxplain[evaluate]'",
    )
