"""Are the explanations right? Scores with confidence intervals, for any traced model and any method."""

from fxplain.evaluate.curves import PROTOCOLS, Protocol, auc, kept, srg
from fxplain.evaluate.detection import Objects, coco_scores, otsu_masks
from fxplain.evaluate.estimate import Estimate, estimate
from fxplain.evaluate.localise import (
    above_mean,
    average_precision,
    mean_iou,
    overlaps,
    pixel_accuracy,
    points_inside,
    scaled,
    share_inside,
    to_pixels,
)
from fxplain.evaluate.rationales import ERASER_K, alignment_share, token_f1

__all__ = [
    "ERASER_K",
    "PROTOCOLS",
    "Estimate",
    "Objects",
    "Protocol",
    "above_mean",
    "alignment_share",
    "auc",
    "average_precision",
    "coco_scores",
    "estimate",
    "kept",
    "mean_iou",
    "otsu_masks",
    "overlaps",
    "pixel_accuracy",
    "points_inside",
    "scaled",
    "share_inside",
    "srg",
    "to_pixels",
    "token_f1",
]
