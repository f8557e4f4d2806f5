"""Softmax and normalisation layers, fused or not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxplain.attribution.lrp.table import Call, Shares, relevance_rule
from fxplain.labels.call import aten
from fxplain.rules.lrp_maps import centred
from fxplain.rules.lrp_products import share, weighted


@relevance_rule(*aten("softmax _softmax _safe_softmax"))
def softmax(call: Call) -> Shares:
    ((node, scores),) = call.carriers
    if call.rules.softmax is None:
        return [(node, call.relevance)]
    return [(node, call.rules.softmax(scores, call.result, call.relevance, int(call.argument("dim"))))]


@relevance_rule(*aten("logsumexp"))
def log_sum_exp(call: Call) -> Shares:
    """Elements share the relevance by their softmax, the derivative."""
    return call.transposed()


@relevance_rule(*aten("rms_norm _fused_rms_norm local_response_norm"))
def scaling_norm(call: Call) -> Shares:
    """Division by a statistic, which is held constant: the identity (AttnLRP, prop. 3.4)."""
    return [(call.carriers[0][0], call.relevance)]


@relevance_rule(
    *aten(
        "layer_norm native_layer_norm group_norm native_group_norm instance_norm batch_norm "
        "_native_batch_norm_legit _native_batch_norm_legit_no_training native_batch_norm cudnn_batch_norm "
        "_batch_norm_impl_index"
    )
)
def centring_norm(call: Call) -> Shares:
    """Chefer et al.: the identity. AttnLRP: the mean and the bias are linear, the statistic is constant."""
    node, x = call.carriers[0]
    if not call.rules.centring:
        return [(node, call.relevance)]
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        made = _normed(call, leaf)
        shares = share(call.relevance, made.detach(), call.rules.epsilon)
        (part,) = torch.autograd.grad(made, leaf, shares)
    return [(node, weighted(x, part))]


def _normed(call: Call, x: Tensor) -> Tensor:
    """The norm of x with its statistic held constant."""
    weight, bias = (_factor(call, name) for name in ("weight", "bias"))
    eps = float(call.argument("eps", 1e-5))
    if "layer_norm" in call.op:
        axes = list(range(x.ndim - len(call.argument("normalized_shape")), x.ndim))
        return _affine(centred(x, axes, eps), weight, bias)
    shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
    weight, bias = (None if p is None else p.view(shape) for p in (weight, bias))
    mean, var = (_factor(call, name) for name in ("running_mean", "running_var"))
    if "batch_norm" in call.op and mean is not None and var is not None:
        return _affine((x - mean.view(shape)) / (var.view(shape) + eps).sqrt(), weight, bias)
    groups = int(call.argument("num_groups", call.argument("group", x.shape[1])))
    grouped = x.reshape(x.shape[0], groups, -1)
    return _affine(centred(grouped, [2], eps).reshape(x.shape), weight, bias)


def _factor(call: Call, name: str) -> Tensor | None:
    found: Any = call.argument(name)
    return found if isinstance(found, Tensor) else None


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    scaled = x if weight is None else x * weight
    return scaled if bias is None else scaled + bias
