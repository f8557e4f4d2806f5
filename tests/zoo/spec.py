"""What a test knows of a model before fxplain has seen it: its attentions in order, and the tokens read.

A *space* is named by what a reader of the model's code would say: the input the tokens come from
(``input_ids``, ``pixel_values``) or the last name of the parameter (``cls_token``). Spaces that the model
makes by pooling or convolving other tokens go by the input that they come from in the end.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Inputs = dict[str, Any]
Maps = Callable[[nn.Module, Inputs], "list[tuple[int, Tensor]]"]
"""Runs the model with its own means of reporting: pairs (index of site, map [batch, head, query, key])."""

EVERY = None
"""In a readout: every token of the space."""


@dataclass(frozen=True)
class Site:
    """One expected attention call: streams as tuples of space names, tokens per map, a pattern that the path
    holds."""

    kind: str
    queries: tuple[str, ...]
    keys: tuple[str, ...]
    heads: int
    nq: int
    nk: int
    module: str
    optional: bool = False
    """True for a call that nothing in the output depends on, which a capture may drop as dead code."""


@dataclass(frozen=True)
class Expected:
    sites: tuple[Site, ...]
    target: Any = 1
    output: str | None = None
    readout: tuple[Mapping[str, tuple[int, ...] | None], ...] = ()
    """Per sample: space -> positions in that space whose rows carry the score (``EVERY``: all of them)."""
    padded: Mapping[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    """Space -> per sample the padded positions, whose relevance must be zero."""
    not_attention: Mapping[str, int] = field(default_factory=dict)
    """Role in the census -> how many softmax-like operations play it."""
    maps: Maps | None = None
    same_fused: bool = True
    """False where the model itself computes something else under SDPA (a dropped softcap, say)."""
    separable: bool = True
    """False where samples of a batch see one another (a contrastive loss over the batch)."""
    batch_axis: Mapping[str, int] = field(default_factory=dict)
    """Input -> its batch axis, where that is not 0; -1 for an input without one."""
    marks: tuple[str, ...] = ()
    """What is special: ``shared`` modules, ``pooled`` readout, ``random`` order of tokens."""


Case = tuple[nn.Module, Inputs, Expected]
Builder = Callable[[], Case]


def selves(
    space: str | tuple[str, ...], heads: int, size: int, modules: str, layers: int, start: int = 0
) -> tuple[Site, ...]:
    """``layers`` self-attentions over one stream; ``{}`` in ``modules`` is the layer's number."""
    spaces = (space,) if isinstance(space, str) else space
    return tuple(
        Site("self", spaces, spaces, heads, size, size, modules.format(index))
        for index in range(start, start + layers)
    )


def ids(batch: int = 2, length: int = 7, vocabulary: int = 99, seed: int = 1) -> Tensor:
    """Token ids [batch, length], none of them among the special ids 0 to 4."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, vocabulary, (batch, length), generator=generator)


def mask(batch: int = 2, length: int = 7, padded: int = 2) -> Tensor:
    """An attention mask [batch, length] whose last sample ends in ``padded`` padded positions."""
    result = torch.ones(batch, length, dtype=torch.long)
    if batch > 1 and padded:
        result[-1, -padded:] = 0
    return result


def floats(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows(*positions: tuple[str, tuple[int, ...] | None], batch: int = 2) -> tuple[dict[str, Any], ...]:
    """The same readout for every sample of the batch."""
    return tuple(dict(positions) for _ in range(batch))


def make(build: Callable[[], nn.Module], seed: int = 0, spread: float = 3.0) -> nn.Module:
    """Builds a model with seeded weights, in eval mode and without touching the global generator.

    Fresh transformers weights are tiny (std 0.02), which makes attention all but uniform and gradients all
    but zero; matrices are spread so that mistakes are seen.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice of the constructors on speed
        torch.manual_seed(seed)
        model = build().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1 and parameter.numel() > 1 and parameter.std() < 0.1:
                    parameter.copy_(torch.randn_like(parameter) * 0.05 * spread)
                elif parameter.dim() == 1 and parameter.numel() > 1 and parameter.std() == 0:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def run_with_maps(model: nn.Module, inputs: Inputs, name: str = "self_attn") -> tuple[Any, list[Tensor]]:
    """The output, and the maps that modules of this name return in eager attention, in call order.

    Of models that do not hand on in every supported version what their parts report.
    """
    maps: list[Tensor] = []

    def seen(module: nn.Module, args: Any, out: Any) -> None:
        maps.append(out[1])

    parts = [module for path, module in model.named_modules() if path.rpartition(".")[2] == name]
    handles = [module.register_forward_hook(seen) for module in parts]
    try:
        return model(**inputs), maps
    finally:
        for handle in handles:
            handle.remove()


def slice_batch(case: Case, index: int) -> Inputs:
    """The inputs of one sample, as a batch of one."""
    _, inputs, expected = case

    def cut(name: str, value: Any) -> Any:
        axis = expected.batch_axis.get(name, 0)
        return value.narrow(axis, index, 1) if isinstance(value, Tensor) and axis >= 0 else value

    return {name: cut(name, value) for name, value in inputs.items()}
