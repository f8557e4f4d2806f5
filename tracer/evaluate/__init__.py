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
from fxplain.evaluate.located import alignment, localisation, rationales
from fxplain.evaluate.measures import Curves, Measure
from fxplain.evaluate.perturb import perturbation
from fxplain.evaluate.quantus import ExplainFunc
from fxplain.evaluate.rationales import ERASER_K, alignment_share, token_f1
from fxplain.evaluate.removal import Delete, Pixels, Removal, Replace
from fxplain.evaluate.sanity import class_sensitivity, randomisation, rank_correlation
from fxplain.evaluate.table import Table

__all__ = [
    "ERASER_K",
    "PROTOCOLS",
    "Curves",
    "Delete",
    "Estimate",
    "ExplainFunc",
    "Measure",
    "Objects",
    "Pixels",
    "Protocol",
    "Removal",
    "Replace",
    "Table",
    "above_mean",
    "alignment",
    "alignment_share",
    "auc",
    "average_precision",
    "class_sensitivity",
    "coco_scores",
    "estimate",
    "kept",
    "localisation",
    "mean_iou",
    "otsu_masks",
    "overlaps",
    "perturbation",
    "pixel_accuracy",
    "points_inside",
    "randomisation",
    "rank_correlation",
    "rationales",
    "scaled",
    "share_inside",
    "srg",
    "to_pixels",
    "token_f1",
]
