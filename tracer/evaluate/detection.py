"""Masks from the relevance of a detector's queries, and their COCO scores.

Chefer, Gur, Wolf, ICCV 2021, section 5 and Table 1: a map per detected object, Otsu's threshold (Otsu, *A
Threshold Selection Method from Gray-Level Histograms*, 1979, by scikit-image) makes it a mask as large as the
picture, and masks are judged as COCO judges segmentations (Lin et al., *Microsoft COCO*, 2014, by
faster-coco-eval), with intersections over union from 0.2 on, because no mask was ever trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxplain.evaluate.localise import missing, to_pixels

IOUS = tuple(round(0.2 + 0.05 * k, 2) for k in range(16))
"""0.2, 0.25, ... 0.95, as in the ICCV paper."""
AREAS = {"all": (0.0, 1e10), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""COCO's areas in pixels; where pictures are smaller than COCO's, give others."""


def otsu_masks(relevance: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks [batch, H, W] bool: maps [batch, h, w] made as large as the picture, above Otsu's threshold.

    A constant map has no mask: all False.

    Raises:
        MethodError: scikit-image is not installed.
    """
    try:
        from skimage.filters import threshold_otsu
    except ImportError as error:
        raise missing("scikit-image") from error
    threshold: Any = threshold_otsu
    masks = []
    for values in to_pixels(relevance, size):
        constant = not bool(values.amax() > values.amin())
        masks.append(
            torch.zeros_like(values, dtype=torch.bool) if constant else values > threshold(values.numpy())
        )
    return torch.stack(masks)


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of one picture: masks [n, H, W] bool, classes [n], scores [n] (of detections alone)."""

    masks: Tensor
    classes: Tensor
    scores: Tensor | None = None


def coco_scores(
    truth: Sequence[Objects],
    found: Sequence[Objects],
    *,
    ious: Sequence[float] = IOUS,
    areas: Mapping[str, tuple[float, float]] = AREAS,
    resamples: int = 100,
    seed: int = 0,
) -> dict[str, Tensor]:
    """COCO's mean average precision and recall of masks, and those of draws of the pictures.

    Args:
        truth: per picture what is there.
        found: per picture what was detected, with scores.
        ious: intersections over union that count as found, over which the scores are averaged.
        areas: name -> least and largest area of an object in pixels.
        resamples: how often the pictures are drawn again; each time all is judged anew.
        seed: of the draws.

    Returns:
        ``AP all``, ``AR all``, ``AP medium``, ... -> [1 + resamples]: the score, then those of the draws, for
        ``Estimate.of``; areas in which there is no object are left out.

    Raises:
        MethodError: faster-coco-eval is not installed.
    """
    there = [_annotations(one) for one in truth]
    seen = [_annotations(one) for one in found]
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(truth), (resamples, len(truth)), generator=generator).tolist()
    value = _scores(there, seen, ious, areas)
    again = [_scores([there[i] for i in draw], [seen[i] for i in draw], ious, areas) for draw in draws]
    return {
        # a draw without an object of such an area says nothing: it counts as the score itself
        name: torch.tensor([score, *(scores.get(name, score) for scores in again)], dtype=torch.float64)
        for name, score in value.items()
    }


_Picture = tuple[tuple[int, int], list[dict[str, Any]]]


def _annotations(objects: Objects) -> _Picture:
    """One picture's height and width, and its objects as COCO's annotations, without ids."""
    try:
        from faster_coco_eval.core import mask as codec
    except ImportError as error:
        raise missing("faster-coco-eval") from error
    found = []
    for place, (mask, number) in enumerate(zip(objects.masks, objects.classes.tolist(), strict=True)):
        one: dict[str, Any] = {
            "segmentation": codec.encode(np.asfortranarray(mask.numpy().astype(np.uint8))),
            "category_id": int(number) + 1,
            "area": int(mask.sum()),
            "bbox": [0, 0, *mask.shape[::-1]],
            "iscrowd": 0,
        }
        if objects.scores is not None:
            one["score"] = float(objects.scores[place])
        found.append(one)
    height, width = objects.masks.shape[-2:]
    return (height, width), found


def _scores(
    truth: Sequence[_Picture],
    found: Sequence[_Picture],
    ious: Sequence[float],
    areas: Mapping[str, tuple[float, float]],
) -> dict[str, float]:
    from faster_coco_eval import COCO, COCOeval_faster

    classes = sorted({one["category_id"] for _, picture in (*truth, *found) for one in picture})
    about = {
        "images": [{"id": i + 1, "height": h, "width": w} for i, ((h, w), _) in enumerate(truth)],
        "categories": [{"id": number, "name": str(number)} for number in classes],
    }
    quiet = {"print_function": _nothing}
    both = [COCO({**about, "annotations": _numbered(part)}, **quiet) for part in (truth, found)]
    judge = COCOeval_faster(*both, iouType="segm", **quiet)
    judge.params.iouThrs = np.array(ious)
    judge.params.areaRng = [list(ends) for ends in areas.values()]
    judge.params.areaRngLbl = list(areas)
    judge.evaluate()
    judge.accumulate()
    scores = {}
    for place, name in enumerate(areas):
        # [iou, recall, class, area, most detections] and [iou, class, area, most detections]; -1: no object
        for kind, values in (("AP", judge.eval["precision"]), ("AR", judge.eval["recall"])):
            own = values[..., place, -1]
            if (own > -1).any():
                scores[f"{kind} {name}"] = float(own[own > -1].mean())
    return scores


def _numbered(pictures: Sequence[_Picture]) -> list[dict[str, Any]]:
    """All annotations with the number of their picture and one of their own."""
    flat = [(i + 1, one) for i, (_, picture) in enumerate(pictures) for one in picture]
    return [{**one, "image_id": picture, "id": k + 1} for k, (picture, one) in enumerate(flat)]


def _nothing(*_: object) -> None:
    pass
