"""Weights with which a wrong map would be seen."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def enliven(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw again what is constant or tiny, in evaluation mode: gates of zero, scales of 1e-5, residual
    branches that begin as nothing. With such weights relevance is all but zero, and a wrong one looks
    right."""
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like.dtype)

    with torch.no_grad():
        for weight in model.parameters():
            if not weight.is_floating_point() or not weight.numel():
                continue
            spread = float(weight.std()) if weight.numel() > 1 else 0.0
            if sum(size > 1 for size in weight.shape) > 1:
                wanted = weight[0].numel() ** -0.5
                if spread < 0.5 * wanted:
                    weight.copy_(noise(weight) * wanted)
            elif spread < 1e-3:
                one = abs(float(weight.float().mean()) - 1) < 0.1
                weight.copy_(1 + 0.1 * noise(weight) if one else 0.3 * noise(weight))
    return model.eval()
