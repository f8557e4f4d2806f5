"""LibraGrad: gradients that are balanced, after Mehri et al., *LibraGrad: Balancing Gradient Flow for
Universally Better Vision Transformer Attributions*, CVPR 2025.

A gradient times input (or times the map that it belongs to) adds up to the score only where the function is
homogeneous of degree 1. Three kinds of operation are not, and get another derivative here, with the value as
it is: weights made by a softmax and statistics of a norm are constants, the gate of ``x g(x)`` is one too,
and a product of two things that depend on the input hands half the gradient to each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _Through(torch.autograd.Function):
    """One tensor's value with another's gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, through: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient


def with_gradient_of(value: Tensor, through: Tensor) -> Tensor:
    """The numbers of ``value``, and the derivative of ``through``, which has its shape.

    Example:
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> y = with_gradient_of(x.detach() ** 2, 5 * x)
        >>> y.item(), torch.autograd.grad(y, x)[0].item()
        (9.0, 5.0)
    """
    result: Tensor = _Through.apply(value.detach(), through)
    return result


def halved(product: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor) -> Tensor:
    """A product of two tensors that hands half of the gradient to each factor.

    Example:
        >>> x, y = (torch.tensor(v, requires_grad=True) for v in (3.0, 5.0))
        >>> z = halved(torch.mul, x, y)
        >>> z.item(), [g.item() for g in torch.autograd.grad(z, (x, y))]
        (15.0, [2.5, 1.5])
    """
    own = left.detach(), right.detach()
    value = product(*own)
    return with_gradient_of(value, (product(left, own[1]) + product(own[0], right)) / 2)


def gated(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``f(x) = x g(x)`` with its gate ``g(x) = f(x) / x`` taken for a constant (``f'(0)`` where x is 0).

    Example:
        >>> x = torch.tensor([2.0], requires_grad=True)
        >>> y = gated(torch.nn.functional.silu, x)
        >>> bool(torch.autograd.grad(y, x)[0] * x == y)
        True
    """
    with torch.no_grad():
        value = function(x)
        small = x.abs() < 1e-6
        near = torch.where(small, torch.full_like(x, 1e-6), x)
        gate = function(near) / near
    return with_gradient_of(value, gate * x)


def layer_norm(value: Tensor, x: Tensor, axes: tuple[int, ...], weight: Tensor | None, eps: float) -> Tensor:
    """A layer norm's own ``value`` with the gradient of ``(x - mean) / s · weight``: s is a
    constant."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean(axes, keepdim=True)
    deviation = (centred.detach() ** 2).mean(axes, keepdim=True).add(eps).sqrt()
    return with_gradient_of(value, _scaled(centred / deviation, weight, x))


def rms_norm(value: Tensor, x: Tensor, axes: tuple[int, ...], weight: Tensor | None, eps: float) -> Tensor:
    """An RMS norm's own ``value`` with the gradient of ``x / rms · weight``, rms a constant."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    size = (wide.detach() ** 2).mean(axes, keepdim=True).add(eps).sqrt()
    return with_gradient_of(value, _scaled(wide / size, weight, x))


def group_norm(value: Tensor, x: Tensor, groups: int, weight: Tensor | None, eps: float) -> Tensor:
    """A group norm's own ``value`` with s a constant; ``x`` is ``[batch, channel, ...]``."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    parts = wide.reshape(x.shape[0], groups, -1)
    centred = parts - parts.mean(-1, keepdim=True)
    deviation = (centred.detach() ** 2).mean(-1, keepdim=True).add(eps).sqrt()
    normed = (centred / deviation).reshape(x.shape)
    shaped = None if weight is None else weight.reshape(1, -1, *[1] * (x.ndim - 2))
    return with_gradient_of(value, _scaled(normed, shaped, x))


def _scaled(normed: Tensor, weight: Tensor | None, like: Tensor) -> Tensor:
    return (normed if weight is None else normed * weight.to(normed.dtype)).to(like.dtype)
