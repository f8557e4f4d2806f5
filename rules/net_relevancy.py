"""Net relevancy: eqs. 5 to 11 of Chefer et al. (ICCV 2021) with the weights of token pairs, not of heads.

What token j gives to token i in one attention is the sum of what its heads hand over,
``c_ij = Σ_h A^h_ij W^h v^h_j``. With g_i, the gradient of the score to what attention adds to token i,
gradient times contribution is

    ⟨g_i, c_ij⟩ = Σ_h ∇A^h_ij A^h_ij,

a sum over heads. Eq. 5 clamps each term at zero and then adds up, so heads that cancel count as if they all
spoke for the score. They do on an attention sink, the token that heads attend to when they have nothing to
say. Here the clamp comes after the sum, and the gradients are the balanced ones of
:mod:`fxplain.rules.libra`, with which gradients times contributions are shares of the score.

A causal self-attention has a sink by need: its first queries see few tokens, and every row must sum to 1.
What all that a row attends to has in common, ⟨A, ∇A⟩, says nothing about *where* it should look. There the
gradient is taken beside it (:func:`centred_gradients`). In other attentions it is not: a query that attends
to one key alone would lose it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def signed_head_mean(maps: Tensor, gradients: Tensor | None, dim: int | tuple[int, ...]) -> Tensor:
    """``mean over heads of ∇A ⊙ A``, with its sign.

    Args:
        maps: attention maps A, any number of axes.
        gradients: gradient of the score to ``maps``, of one shape with it; None where the score does not
            depend on them.
        dim: the axis, or axes, of the heads.

    Returns:
        ``maps``' shape without ``dim``, in float32 or better. Where the gradient is 0 the result is 0, even
        if the map is NaN (a fully masked row).

    Example:
        >>> maps = torch.tensor([[[0.5, 0.5]], [[0.25, 0.75]]])  # [head, query, key]
        >>> gradients = torch.tensor([[[1.0, -1.0]], [[-4.0, 4.0]]])
        >>> signed_head_mean(maps, gradients, dim=0)
        tensor([[-0.2500,  1.2500]])
    """
    dtype = torch.promote_types(maps.dtype, torch.float32)
    if gradients is None:
        return torch.zeros_like(maps, dtype=dtype).mean(dim)
    gradients = gradients.to(dtype)
    mean = (maps.to(dtype) * gradients).mean(dim)
    if not bool(mean.isnan().any()):
        return mean
    return (maps.to(dtype) * gradients).masked_fill_(gradients == 0, 0.0).mean(dim)


def net(weights: Tensor) -> Tensor:
    """``Ā = (mean over heads of ∇A ⊙ A)⁺`` from the signed mean of all heads of a step.

    Example:
        >>> net(torch.tensor([[-0.25, 1.25]]))
        tensor([[0.0000, 1.2500]])
    """
    return weights.clamp(min=0)


def centred_gradients(maps: Tensor, gradients: Tensor, columns: int | tuple[int, ...]) -> Tensor:
    """``∇A - ⟨A, ∇A⟩ / Σ A`` row by row: what attending there says beyond what the row attends to anyway.

    Times A it is the gradient of the score to the scores before the softmax. It does not change when the same
    vector is added to all values: that shifts ∇A by one number in every row. A row without weights stays.

    Args:
        maps: attention maps A, any number of axes.
        gradients: gradient of the score to ``maps``, of one shape with it.
        columns: the axis, or axes, of the keys.

    Returns:
        ``maps``' shape, in float32 or better.

    Example:
        >>> maps, gradients = torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 3.0]])
        >>> centred_gradients(maps, gradients, -1), centred_gradients(maps, gradients + 7, -1)
        (tensor([[-1.,  1.]]), tensor([[-1.,  1.]]))
    """
    dtype = torch.promote_types(maps.dtype, torch.float32)
    maps, gradients = maps.to(dtype).nan_to_num(nan=0.0), gradients.to(dtype)
    sums = maps.sum(columns, keepdim=True)
    means = (maps * gradients).sum(columns, keepdim=True) / sums.masked_fill(sums == 0, 1.0)
    return gradients - means
