"""LeGrad: Bousselham et al., *LeGrad: An Explainability Method for Vision Transformers via Feature Formation
Sensitivity*, ICCV 2025.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxplain.rules.rows import divide_rows


def sensitivity(gradients: Tensor, queries: Tensor) -> Tensor:
    """The relevance of one layer: ``mean over heads and queries of (∂s/∂A)⁺``, for every key.

    Args:
        gradients: ``[batch, head, query, key]``, of the layer's own score s to its map A.
        queries: ``[batch, query]``, bool: the queries there are (windows and padding leave others out).

    Returns:
        ``[batch, key]``, in float32 or better.

    Example:
        >>> gradients = torch.tensor([[[[1.0, -1.0], [3.0, 0.0]]]])
        >>> sensitivity(gradients, torch.tensor([[True, True]]))
        tensor([[2., 0.]])
    """
    wide = gradients.to(torch.promote_types(gradients.dtype, torch.float32)).clamp(min=0)
    summed = wide.mean(1).masked_fill(~queries.unsqueeze(-1), 0.0).sum(1)
    return divide_rows(summed, queries.sum(-1, keepdim=True).to(summed.dtype))
