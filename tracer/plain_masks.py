"""Masks that say no more than a flag of the kernel does: causal ones, and those that hide nothing.

Where a model is traced, libraries write such masks out, since what is in them may depend on the input. With
the flag in their place the kernel computes the same, and skips what nobody sees.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from fxplain.ledger import Site
from fxplain.ops.table import literal, op_name

KERNEL = "aten::scaled_dot_product_attention"


class PlainMasks:
    """The masks of one run, as they are met."""

    def __init__(self, sites: Iterable[Site]) -> None:
        parts = [part for site in sites for part in site.parts or (site,)]
        self.nodes = [
            part.node
            for part in parts
            if op_name(part.node) == KERNEL
            and isinstance(literal(part.node, "attn_mask"), fx.Node)
            and not literal(part.node, "is_causal")
        ]
        self.causal: dict[str, bool] = {}
        """Kernel -> whether its mask is causal; False where it hides nothing. Others are not here."""
        self._known: dict[fx.Node, bool | None] = {}

    def run(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The kernel's result."""
        by_name = dict(
            zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False)
        )
        by_name |= kwargs
        used = literal(node, "attn_mask")
        if used not in self._known:
            self._known[used] = is_causal(by_name["attn_mask"], by_name["query"], by_name["key"])
        causal = self._known[used]
        if causal is not None:
            self.causal[node.name] = causal
            by_name |= {"attn_mask": None, "is_causal": causal}
        return torch.nn.functional.scaled_dot_product_attention(**by_name)


def is_causal(mask: Tensor, query: Tensor, key: Tensor) -> bool | None:
    """True for a causal mask, False for one that hides nothing, None for any other.

    Example:
        >>> is_causal(torch.ones(3, 3).tril().bool(), torch.ones(3, 1), torch.ones(3, 1))
        True
    """
    if mask.dtype != torch.bool or any(
        size > 1 and stride for size, stride in zip(mask.shape[:-2], mask.stride()[:-2], strict=True)
    ):
        return None
    while mask.ndim > 2:
        mask = mask[0]
    if bool(mask.all()):
        return False
    if not mask.shape[-1] == query.shape[-2] == key.shape[-2] == mask.shape[0]:
        return None
    return True if torch.equal(mask, torch.ones_like(mask).tril()) else None
