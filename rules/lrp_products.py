"""LRP through sums of products: linear maps, convolutions, and products of two activations.

A rule gets the operation as a function ``product(x, w)`` that is linear in both and has no bias. What it
answers adds up to the relevance it was given wherever the docstring says *conserves*: the relevance of an
output whose denominator is 0 is lost, for there is nothing to hand it to.

Sources: Bach et al., *On pixel-wise explanations for non-linear classifier decisions by layer-wise relevance
propagation*, PLoS ONE 2015 (ε, αβ); Montavon et al., *Explaining nonlinear classification decisions with deep
Taylor decomposition*, 2017 (z+, z^B); Chefer, Gur, Wolf, *Transformer interpretability beyond attention
visualization*, CVPR 2021; Achtibat et al., *AttnLRP*, ICML 2024.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Product = Callable[[Tensor, Tensor], Tensor]
"""An operation that is linear in both operands: ``x @ w``, a convolution of ``x`` by ``w``."""


class Linear:
    """``x wᵀ``, as :func:`torch.nn.functional.linear` takes them, with its transpose in closed form: what
    autograd would compute the product again for.

    Example:
        >>> x, w = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0]])
        >>> Linear()(x, w), transposed(Linear(), x, w, torch.tensor([[2.0]]))
        (tensor([[1.]]), tensor([[ 6., -2.]]))
    """

    def __call__(self, x: Tensor, w: Tensor) -> Tensor:
        """The product."""
        return torch.nn.functional.linear(x, w)

    def transpose(self, w: Tensor, relevance: Tensor) -> Tensor:
        """``relevance w``, conjugated where it is complex, as gradients are."""
        return relevance.to(w.dtype) @ w.conj()


def share(relevance: Tensor, output: Tensor, epsilon: float = 0.0) -> Tensor:
    """``relevance / (output + epsilon · sign(output))``; 0 where the output is 0 or not finite.

    Complex numbers are pairs of real ones.

    Example:
        >>> share(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([2.0, 0.0, -4.0]))
        tensor([ 0.5000,  0.0000, -0.2500])
    """
    if output.is_complex():
        pair = share(torch.view_as_real(relevance), torch.view_as_real(output), epsilon)
        return torch.view_as_complex(pair)
    stable = output if epsilon == 0 else output + torch.copysign(output.new_tensor(epsilon), output)
    return torch.where(output.abs() > torch.finfo(output.dtype).tiny, relevance / stable, 0.0)


def weighted(values: Tensor, weights: Tensor) -> Tensor:
    """``values · weights`` element by element, 0 where a weight is 0; complex ones as pairs."""
    if values.is_complex():
        return torch.view_as_complex(weighted(torch.view_as_real(values), torch.view_as_real(weights)))
    return torch.where(weights == 0, 0.0, values * weights)


def transposed(product: Product, x: Tensor, w: Tensor, relevance: Tensor) -> Tensor:
    """The transpose of ``x -> product(x, w)`` applied to a tensor of its output's shape."""
    if isinstance(product, Linear) and w.ndim == 2:
        return product.transpose(w, relevance)
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        output = product(leaf, w)
        (result,) = torch.autograd.grad(output, leaf, relevance.to(output.dtype))
    return result.detach()


def epsilon_rule(
    product: Product, x: Tensor, w: Tensor, output: Tensor, relevance: Tensor, epsilon: float
) -> Tensor:
    """LRP-ε: ``R_i = Σ_j x_i w_ij / (z_j + ε sign z_j) · R_j``, with z the output, its bias included.

    Conserves but for what bias and ε take.

    Example:
        >>> x, w = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [-1.0]])
        >>> epsilon_rule(torch.matmul, x, w, x @ w, torch.tensor([[1.0]]), 0.0)
        tensor([[ 3., -2.]])
    """
    return weighted(x, transposed(product, x, w, share(relevance, output, epsilon)))


def alpha_beta_rule(product: Product, x: Tensor, w: Tensor, relevance: Tensor, alpha: float) -> Tensor:
    """LRP-alpha-beta, biases ignored: ``R_i = Σ_j (a z⁺_ij / Σ_i z⁺_ij - b z⁻_ij / Σ_i z⁻_ij) R_j``.

    a is alpha, b is alpha - 1; ``z⁺ = w⁺ x⁺ + w⁻ x⁻`` with one denominator for both, ``z⁻`` the rest. With
    alpha 1 this is the z⁺ rule of Chefer et al. (CVPR 2021), and what has no z⁺ is lost; else it conserves:
    where one of the two parts is empty, the other takes all.

    Example:
        >>> x, w = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [-1.0]])
        >>> alpha_beta_rule(torch.matmul, x, w, torch.tensor([[1.0]]), alpha=1)
        tensor([[1., 0.]])
        >>> alpha_beta_rule(torch.matmul, x, w, torch.tensor([[1.0]]), alpha=2)
        tensor([[ 2., -1.]])
    """
    positive, negative = (x.clamp(min=0), x.clamp(max=0)), (w.clamp(min=0), w.clamp(max=0))
    agree = product(positive[0], negative[0]) + product(positive[1], negative[1])
    if alpha == 1:
        return _part(product, positive, negative, share(relevance, agree))
    differ = product(positive[0], negative[1]) + product(positive[1], negative[0])
    to_agree = torch.where(differ == 0, 1.0, torch.where(agree == 0, 0.0, alpha))
    first = _part(product, positive, negative, share(relevance * to_agree, agree))
    return first + _part(product, positive, negative[::-1], share(relevance * (1 - to_agree), differ))


def _part(product: Product, x: tuple[Tensor, Tensor], w: tuple[Tensor, Tensor], shares: Tensor) -> Tensor:
    parts = (weighted(one, transposed(product, one, two, shares)) for one, two in zip(x, w, strict=True))
    return sum(parts, torch.zeros_like(x[0]))


def z_box_rule(product: Product, x: Tensor, w: Tensor, relevance: Tensor) -> Tensor:
    """The z^B rule for a first layer on bounded input, with each sample's own bounds l and h.

    ``R_i = Σ_j (x_i w_ij - l w⁺_ij - h w⁻_ij) / Σ_i(...) · R_j``. Axis 0 of ``x`` holds the samples.
    Conserves.

    Example:
        >>> x, w = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [-1.0]])
        >>> z_box_rule(torch.matmul, x, w, torch.tensor([[1.0]]))  # l = 1, h = 2
        tensor([[0., 0.]])
    """
    axes = list(range(1, x.ndim))
    low, high = x.amin(axes, keepdim=True).expand_as(x), x.amax(axes, keepdim=True).expand_as(x)
    terms = ((x, w), (-low, w.clamp(min=0)), (-high, w.clamp(max=0)))
    output = sum((product(one, two) for one, two in terms), torch.zeros((), dtype=x.dtype, device=x.device))
    shares = share(relevance, output)
    return sum((one * transposed(product, one, two, shares) for one, two in terms), torch.zeros_like(x))


def bilinear_rule(
    product: Product, a: Tensor, b: Tensor, relevance: Tensor, epsilon: float = 0.0
) -> tuple[Tensor, Tensor]:
    """A product of two activations: ``X ⊙ ∂Z/∂X · (R / Z)`` to each operand, both halved.

    Chefer et al. (CVPR 2021, eqs. 10 to 12 for a matrix product); AttnLRP (prop. 3.3) is the same with ε.
    Conserves but for ε.

    Example:
        >>> a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [-1.0]])
        >>> bilinear_rule(torch.matmul, a, b, torch.tensor([[1.0]]))
        (tensor([[ 1.5000, -1.0000]]), tensor([[ 1.5000],
                [-1.0000]]))
    """
    shares = share(relevance, product(a, b), epsilon) / 2
    swapped = lambda one, other: product(other, one)  # noqa: E731
    return weighted(a, transposed(product, a, b, shares)), weighted(b, transposed(swapped, b, a, shares))
