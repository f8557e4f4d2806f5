"""Masks that say no more than a flag of the kernel does: causal ones, and those that hide nothing.

Libraries write such masks out where what is in them depends on the input (padding, of which there is none).
With the flag in their place the kernel computes the same, and skips what nobody sees. Masks that are the same
for every input are gone from the graph already (``capture/passes/causal_masks.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from fxplain.capture.passes.causal_masks import is_causal
from fxplain.labels.call import literal, op_name
from fxplain.labels.flows import Site

KERNEL = "aten::scaled_dot_product_attention"


class PlainMasks:
    """The masks of one run, as they are met."""

    def __init__(self, sites: Iterable[Site]) -> None:
        parts = [part for site in sites for part in site.map.parts or (site,)]
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
            self._known[used] = is_causal(by_name["attn_mask"], by_name["query"].shape, by_name["key"].shape)
        causal = self._known[used]
        if causal is not None:
            self.causal[node.name] = causal
            by_name |= {"attn_mask": None, "is_causal": causal}
        return torch.nn.functional.scaled_dot_product_attention(**by_name)
