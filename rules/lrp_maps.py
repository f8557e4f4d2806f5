"""LRP through softmax and normalisation, and what transformer attribution makes of an attention's relevance.

Sources: Chefer, Gur, Wolf, CVPR 2021, eqs. 13 and 14; Achtibat et al., *AttnLRP*, ICML 2024, props. 3.1 and
3.4.
"""

from __future__ import annotations

import torch
from torch import Tensor


def softmax_taylor(scores: Tensor, weights: Tensor, relevance: Tensor, dim: int) -> Tensor:
    """AttnLRP, prop. 3.1: ``R_i = x_i (R_i - s_i Σ_j R_j)``, the first order of softmax at the scores x.

    What is missing to conservation is the share of the expansion's constant term. Scores that are not finite
    (masked ones) get 0.

    Example:
        >>> x = torch.tensor([0.0, 2.0])
        >>> softmax_taylor(x, torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]), -1)
        tensor([-0., 1.])
    """
    change = relevance - weights * relevance.sum(dim, keepdim=True)
    return torch.where(torch.isfinite(scores), scores, 0.0) * change


def centred(x: Tensor, axes: list[int], eps: float, shift: bool = True) -> Tensor:
    """``(x - mean) / std`` over some axes with the std held constant under derivatives (AttnLRP, prop. 3.4).

    Example:
        >>> x = torch.tensor([1.0, 3.0], requires_grad=True)
        >>> torch.autograd.grad(centred(x, [0], 0.0).sum(), x)[0]
        tensor([0., 0.])
    """
    middle = x - x.mean(axes, keepdim=True) if shift else x
    return middle / middle.detach().square().mean(axes, keepdim=True).add(eps).sqrt()


def positive_head_mean(relevance: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Partial LRP: the mean over heads of an attention map's relevance, negative entries set to 0 before.

    Voita et al., ACL 2019, as the baseline of Chefer et al., CVPR 2021.

    Example:
        >>> positive_head_mean(torch.tensor([[[0.5, -0.5]], [[0.25, 0.75]]]), dim=0)
        tensor([[0.3750, 0.3750]])
    """
    dtype = torch.promote_types(relevance.dtype, torch.float32)
    return relevance.to(dtype).clamp(min=0).mean(dim)
