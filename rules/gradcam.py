"""Grad-CAM on attention: heads weighed by their mean gradient, as a baseline of Chefer et al. (CVPR 2021 and
ICCV 2021), after Selvaraju et al., *Grad-CAM*, ICCV 2017.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxplain.rules.rows import divide_rows


def head_weighted(maps: Tensor, gradients: Tensor | None, counted: Tensor) -> Tensor:
    """``(mean over heads of w_h A_h)⁺`` with ``w_h`` the mean of ∇A_h over the entries that are counted.

    Args:
        maps: ``[batch, head, query, key]``, A.
        gradients: gradient of the score to ``maps``, of one shape with it; None where the score does not
            depend on them.
        counted: ``[batch, query, key]``, bool: the entries whose gradient is averaged: those of the whole
            map, or of one row without its own entry.

    Returns:
        ``[batch, query, key]``, in float32 or better. NaN in a map (a fully masked row) counts as 0.

    Example:
        >>> maps = torch.tensor([[[[0.5, 0.5]], [[0.25, 0.75]]]])
        >>> gradients = torch.tensor([[[[1.0, 3.0]], [[-1.0, 0.0]]]])
        >>> head_weighted(maps, gradients, torch.ones(1, 1, 2, dtype=torch.bool))
        tensor([[[0.4375, 0.3125]]])
    """
    dtype = torch.promote_types(maps.dtype, torch.float32)
    maps = maps.to(dtype).nan_to_num(nan=0.0)
    if gradients is None:
        return torch.zeros_like(maps).mean(1)
    picked = gradients.to(dtype).masked_fill(~counted.unsqueeze(1), 0.0).sum((-1, -2))
    weights = divide_rows(picked, counted.sum((-1, -2)).unsqueeze(1).to(dtype))
    return (maps * weights[..., None, None]).mean(1).clamp(min=0)
