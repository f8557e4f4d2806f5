"""What methods other than a mean over heads make of an attention's map and gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from fxplain.attention.plan import Plan
from fxplain.attribution.prediction import Prediction
from fxplain.errors import MethodError
from fxplain.maps.attentions import map_of
from fxplain.maps.weights import attention_weights, dense
from fxplain.rules.gradcam import head_weighted
from fxplain.rules.transformer_attribution import gradient_head_mean
from fxplain.where import place_of


def gradcam(prediction: Prediction, plan: Plan, gradient: Tensor | None) -> Tensor:
    """Grad-CAM with a head's gradient averaged over its whole map (Chefer et al., ICCV 2021)."""
    return _gradcam(prediction, plan, gradient, _present(plan))


def gradcam_of_rows(prediction: Prediction, plan: Plan, gradient: Tensor | None) -> Tensor:
    """Grad-CAM with a head's gradient averaged over the rows that are read, without their own entries.

    For a ViT this is the row of the class token (Chefer et al., CVPR 2021).
    """
    own = plan.queries[:, None] == plan.keys[None]
    return _gradcam(prediction, plan, gradient, _present(plan) & rows_read(prediction, plan) & ~own)


def gradient_alone(prediction: Prediction, plan: Plan, gradient: Tensor | None) -> Tensor:
    """Transformer attribution without relevance: the head mean of a map's positive gradient."""
    _check_has_map(plan, "transformer attribution without relevance")
    return attention_weights(plan, prediction.run, gradient, gradient_head_mean)


def _check_has_map(plan: Plan, what: str) -> None:
    if plan.site.role == "mixing":
        raise MethodError(
            f"{what} needs a map with a gradient of its own, and a sampling at points has none",
            where=place_of(plan.site.node),
            expected="attention by a map from queries to keys",
            found="a sampling whose weights differ from feature to feature",
            hint="use relevancy, which takes gradient times contribution there",
        )


def _gradcam(prediction: Prediction, plan: Plan, gradient: Tensor | None, counted: Tensor) -> Tensor:
    _check_has_map(plan, "Grad-CAM")
    maps, gradient = map_of(plan.site, prediction.run, gradient)
    gradients = None if gradient is None else dense(plan, gradient)
    found = dense(plan, maps)
    # the gradient to a masked pair says nothing: the pair has no weight however large it is
    return head_weighted(found, gradients, counted.to(maps.device) & (found != 0).any(1))


def _present(plan: Plan) -> Tensor:
    """[batch, query, key]: the pairs that the map has entries for; windows leave others out."""
    return plan.scatter(torch.ones(plan.shape), divide=False) > 0


def rows_read(prediction: Prediction, plan: Plan) -> Tensor:
    """[batch, query, 1], bool: queries whose rows carry the score, or are pooled into one that does."""
    classified = prediction.labelled.classified
    found = torch.zeros(plan.batch, classified.tokens, dtype=torch.bool)
    for pairs in prediction.readout:
        for sample, token in pairs:
            found[min(sample, plan.batch - 1), token] = True
    for site in reversed(classified.sites):
        if not site.attends:
            mixing = prediction.labelled.plans[site.index]
            taken = found[:, mixing.queries].any(1)
            found[:, mixing.keys] |= taken[:, None]
    return found[:, plan.queries].unsqueeze(-1)
