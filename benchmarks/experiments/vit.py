"""The demo's ViT on canvases with two garments: CVPR paper, Tables 1 and 2; ICCV paper, Table 2."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import samples
import torch
from jobs import ROOT, Claim, Job, all_methods
from torch import Tensor

import fxplain
from fxplain import evaluate
from fxplain.demo import load_demo
from fxplain.demo.held_out import BLACK, Questions, questions

BATCH = 50
METHODS = all_methods(across=False)
_WEAKER = ("rollout", "raw_attention", "attention_gradcam_row", "partial_lrp", "lrp", "random")
_CVPR = "CVPR paper, Table 1 and ICCV paper, Table 2: ViT-B on ImageNet, areas in percent"
_MAPS = "CVPR paper, Table 2: ViT-B on ImageNet-Segmentation, in percent"


ABOUT = {
    "ViT": """
The demo's model (`benchmarks/train_demo.py`): 4 layers, 4 heads, 64 patches, on canvases with two garments
of Fashion-MNIST's test split, which it never saw. It names both right on 97.8 % of 5000 canvases.""",
}


def _asked(count: int) -> Questions:
    return questions(count, ROOT / "tests" / "data" / "demo_canvases.npz")


def _traced(asked: Questions) -> fxplain.Traced:
    return fxplain.trace(load_demo().model, {"pixel_values": asked.pixel_values[:BATCH]})


def by_canvas(table: evaluate.Table) -> evaluate.Table:
    """Intervals draw canvases again, each with its two questions."""
    return replace(table, units=torch.arange(table.samples) // 2)


def perturbation_asked(count: int) -> evaluate.Table:
    """The class that is asked for is explained; whether the model still sees it counts."""
    asked = _asked(count)
    traced = _traced(asked)

    def still_seen(output: Any, part: slice) -> Tensor:
        return asked.named_right(output.logits, part)

    table = evaluate.perturbation(
        traced,
        {"pixel_values": asked.pixel_values},
        asked.targets,
        METHODS,
        removal=evaluate.Pixels(value=BLACK),
        steps="pixels",
        score=still_seen,
        batch=BATCH,
    )
    return by_canvas(table)


def perturbation_predicted(count: int) -> evaluate.Table:
    """The largest logit is explained; whether it stays the largest counts."""
    asked = _asked(2 * count)
    traced = _traced(asked)
    canvases = {"pixel_values": asked.pixel_values[::2]}

    removal = evaluate.Pixels(value=BLACK)
    return evaluate.perturbation(
        traced, canvases, None, METHODS, removal=removal, steps="pixels", batch=BATCH
    )


def segmentation(count: int) -> evaluate.Table:
    """The map of the class that is asked for against the pixels of that object."""
    asked = _asked(count)
    traced = _traced(asked)

    inputs = {"pixel_values": asked.pixel_values}
    return by_canvas(evaluate.localisation(traced, inputs, asked.masks, asked.targets, METHODS, batch=BATCH))


def sensitivity(count: int) -> evaluate.Table:
    """Rank correlation between the maps for the two objects on a canvas."""
    asked = _asked(count)
    traced = _traced(asked)

    table = evaluate.class_sensitivity(
        traced,
        {"pixel_values": asked.pixel_values},
        asked.targets,
        asked.others,
        METHODS,
        space="pixel_values",
        batch=BATCH,
    )
    return by_canvas(table)


def sample(path: Path) -> None:
    """Two canvases, each asked for both of its garments."""
    asked = _asked(4)
    traced = _traced(asked)
    size = (asked.pixel_values.shape[-2], asked.pixel_values.shape[-1])
    results = traced.compare({"pixel_values": asked.pixel_values}, samples.METHODS, asked.targets).results
    maps = {name: evaluate.to_pixels(result.grid("pixel_values"), size) for name, result in results.items()}
    names = traced.model.config.id2label
    titles = [names[int(target)] for target in asked.targets]
    samples.draw_maps(path, asked.pixel_values[:, 0], titles, maps)


SAMPLES = {"ViT": sample}
_LEADS = "Relevancy leads rollout, raw attention, Grad-CAM, partial LRP and LRP"
_GRADIENT = "The gradient in eq. 5 helps"
JOBS = (
    Job(
        "vit-asked",
        "ViT",
        "CVPR Table 1 and ICCV Table 2, target class: perturbation",
        "Each canvas has two garments and each is asked for: the class is explained, pixels turn black, and "
        "what counts is whether the model still sees that class (its probability is over a half).",
        perturbation_asked,
        60,
        (
            Claim(_LEADS, "SRG", "relevancy", _WEAKER),
            Claim("Transformer attribution leads them too", "SRG", "transformer_attribution", _WEAKER),
            Claim(_GRADIENT, "SRG", "relevancy", ("relevancy_no_gradient",)),
            Claim("All layers are better than the last alone", "SRG", "relevancy", ("relevancy_last_layer",)),
        ),
        {
            "positive AUC": {
                "relevancy": "16.72",
                "transformer_attribution": "16.04",
                "attention_gradcam_row": "33.56",
            },
            "negative AUC": {
                "relevancy": "55.67",
                "transformer_attribution": "55.04",
                "attention_gradcam_row": "42.02",
            },
        },
        _CVPR,
    ),
    Job(
        "vit-predicted",
        "ViT",
        "CVPR Table 1 and ICCV Table 2, predicted class: perturbation",
        "The class with the largest logit is explained, and what counts is whether it stays the largest.",
        perturbation_predicted,
        40,
        (
            Claim(_LEADS, "SRG", "relevancy", _WEAKER),
            Claim("Transformer attribution leads them too", "SRG", "transformer_attribution", _WEAKER),
        ),
        {
            "positive AUC": {
                "relevancy": "17.32",
                "transformer_attribution": "17.03",
                "rollout": "20.05",
                "raw_attention": "23.99",
                "attention_gradcam_row": "34.06",
                "lrp": "41.94",
                "partial_lrp": "19.64",
            },
            "negative AUC": {
                "relevancy": "54.61",
                "transformer_attribution": "54.16",
                "rollout": "53.1",
                "raw_attention": "45.55",
                "attention_gradcam_row": "41.52",
                "lrp": "43.49",
                "partial_lrp": "50.49",
            },
        },
        _CVPR,
    ),
    Job(
        "vit-segmentation",
        "ViT",
        "CVPR Table 2: the map against the object's pixels",
        "The map of the class that is asked for, as large as the canvas, against the pixels of that garment. "
        "The other garment on the canvas is as wrong as the background.",
        segmentation,
        40,
        (
            Claim(_LEADS, "mIoU", "relevancy", _WEAKER),
            Claim(_LEADS, "AP", "relevancy", _WEAKER),
            Claim(_GRADIENT, "mIoU", "relevancy", ("relevancy_no_gradient",)),
        ),
        {
            "pixel accuracy": {"rollout": "73.54", "transformer_attribution": "79.70"},
            "AP": {"rollout": "84.76", "transformer_attribution": "86.03"},
            "mIoU": {"rollout": "55.42", "transformer_attribution": "61.95"},
        },
        _MAPS,
    ),
    Job(
        "vit-sensitivity",
        "ViT",
        "Does the map depend on the class? (class-specific methods, CVPR section 4)",
        "Rank correlation between the maps for the two garments on a canvas. 1: the method does not hear the "
        "question.",
        sensitivity,
        20,
    ),
)
