"""Pictures that a processor cuts into patches of its own order, several sizes in one tensor, put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxplain.adapters.show import Show
from fxplain.display import Laid

PATCHES, GRIDS = "pixel_values", "image_grid_thw"
"""The inputs: patches [patch, values], and of each picture its patches over time, down and across."""


def laid_out(processor: Any, tensors: Mapping[str, Tensor], show: Show) -> dict[str, Sequence[Laid]]:
    """Each picture with the token at each of its places, by the input's name; nothing where the inputs are
    not of this form, or their parts do not fit.

    Args:
        processor: of pictures; its ``patch_size``, ``merge_size`` and ``temporal_patch_size`` say how it
            cuts: patches that are merged later stand together.
        tensors: the model's inputs.
        show: how to undo the normalisation.
    """
    patches, grids = tensors.get(PATCHES), tensors.get(GRIDS)
    sizes = [getattr(processor, name, None) for name in ("patch_size", "merge_size", "temporal_patch_size")]
    if (
        patches is None
        or grids is None
        or patches.ndim != 2
        or not all(isinstance(one, int) for one in sizes)
    ):
        return {}
    side, merge, steps = (int(one) for one in sizes if one is not None)
    counts = [tuple(int(one) for one in row) for row in grids]
    fits = sum(t * h * w for t, h, w in counts) == len(patches) and patches.shape[1] == 3 * steps * side**2
    if not fits or any(t != 1 or h % merge or w % merge for t, h, w in counts):
        return {}
    found, first = [], 0
    for _, high, wide in counts:
        places = torch.arange(first, first + high * wide)
        own = places.view(high // merge, wide // merge, merge, merge).transpose(1, 2).reshape(high, wide)
        pixels = patches[own.flatten()].view(high, wide, 3, steps, side, side)[:, :, :, 0]
        whole = pixels.permute(2, 0, 3, 1, 4).reshape(1, 3, high * side, wide * side)
        found.append(Laid(np.asarray(show.pictures(whole)[0]), own.numpy()))
        first += high * wide
    return {PATCHES: found}
