"""A step that is run alone: from the tensors that its columns lie on to its output, all else held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from fxplain.labels.flows import Copied, Kernel, Product, Sampled, Site, WrittenOut
from fxplain.ops.kernels import compute


@dataclass(frozen=True)
class Alone:
    """The operations of one step."""

    site: Site
    sources: tuple[fx.Node, ...]
    """The tensors whose tokens are its columns."""
    region: tuple[fx.Node, ...]
    """The operations from these to the site's node, in order; none where they do not lead there."""
    weighing: tuple[fx.Node, ...] = ()
    """Those from the map that the graph holds, where they are others."""

    @property
    def beside(self) -> tuple[fx.Node, ...]:
        """What else they read."""
        own = (read_beside(self.region), read_beside(self.weighing))
        return tuple(dict.fromkeys(node for nodes in own for node in nodes))

    def run(self, kept: Mapping[str, Any], leaves: Mapping[fx.Node, Tensor] | None = None) -> Tensor:
        """The step's output, with some tensors in the place of those that were seen."""
        real: dict[fx.Node, Any] = {node: kept[node.name] for node in read_beside(self.region)}
        real |= leaves or {}
        for node in self.region:
            if node not in (leaves or {}):
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda used: real[used])
                real[node] = compute(node, args, kwargs)
        output = real[self.site.node]
        first: Tensor = output[0] if isinstance(output, tuple | list) else output
        return first

    def given(self, kept: Mapping[str, Any], cotangent: Tensor) -> list[Tensor]:
        """Each source times the step's vector-Jacobian product, element by element.

        A feature of the values that is 1 for every key, and so gives the rows' sums, is no token's.
        """
        pairs = self._products(self.sources, kept, cotangent)
        ones = isinstance(self.site.map, WrittenOut) and self.site.map.ones
        return [torch.where(leaf == 1, 0.0, leaf * local) if ones else leaf * local for leaf, local in pairs]

    def to_map(self, kept: Mapping[str, Any], cotangent: Tensor) -> Tensor:
        """The vector-Jacobian product with the map of an attention that the graph holds."""
        whole = replace(self, region=self.weighing or self.region)
        ((_, local),) = whole._products((self.site.tap,), kept, cotangent)
        return local

    def _products(
        self, nodes: tuple[fx.Node, ...], kept: Mapping[str, Any], cotangent: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        with torch.enable_grad():
            leaves = {node: kept[node.name].detach().clone().requires_grad_() for node in nodes}
            output = self.run(kept, leaves)
            if not output.requires_grad:  # something on the way has no derivative
                return [(leaf.detach(), torch.zeros_like(leaf)) for leaf in leaves.values()]
            found = torch.autograd.grad(
                output, list(leaves.values()), cotangent.to(output.dtype), allow_unused=True
            )
        pairs = zip(leaves.values(), found, strict=True)
        return [(leaf.detach(), torch.zeros_like(leaf) if own is None else own) for leaf, own in pairs]


def read_beside(region: tuple[fx.Node, ...]) -> list[fx.Node]:
    """What some operations read that none of them makes."""
    return [used for node in region for used in node.all_input_nodes if used not in region]


def alone(site: Site) -> Alone | None:
    """The step of a site; None where it is a copy, whatever it holds."""
    sources = _sources(site)
    if not sources:
        return None
    map = site.map
    region = (*map.operands, *map.path) if isinstance(map, Sampled) else map.path or (site.node,)
    if map.parts or not set(read_beside(region)).issuperset(sources):
        region = _between(sources, site)
    if site.node not in region or not set(read_beside(region)).issuperset(sources):
        return Alone(site, sources, ())
    direct = map.tapped is None or site.tap in read_beside(region)
    return Alone(site, sources, region, () if direct else _between((site.tap,), site))


def _sources(site: Site) -> tuple[fx.Node, ...]:
    """The tensors that hold what is mixed."""
    map = site.map
    if map.parts:
        return tuple(dict.fromkeys(node for part in map.parts for node in _sources(part)))
    if isinstance(map, Copied):
        return ()  # a copy is made of one token, whatever it holds
    if isinstance(map, Sampled):
        return tuple(dict.fromkeys(node.all_input_nodes[0] for node in map.operands))
    if isinstance(map, Kernel):
        return (map.value,)
    return (map.values,) if isinstance(map, Product) else map.operands or _operand(site)


def _operand(site: Site) -> tuple[fx.Node, ...]:
    operand = getattr(site.map, "operand", None)
    return (operand,) if operand is not None else ()


def _between(sources: tuple[fx.Node, ...], site: Site) -> tuple[fx.Node, ...]:
    """The operations between the sources and the site's node, but those that make weights."""
    held = {node for part in site.map.parts or (site,) for node in part.map.operands if node not in sources}
    nodes = list(site.node.graph.nodes)
    after = set(sources)
    for node in nodes:
        if node not in held and not after.isdisjoint(node.all_input_nodes):
            after.add(node)
    before = {site.node}
    for node in reversed(nodes):
        if node in before and node not in sources:
            before.update(used for used in node.all_input_nodes if used in after)
    return tuple(node for node in nodes if node in before & after and node not in sources)
