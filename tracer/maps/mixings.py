"""What each old token contributes to each new one in a linear mixing, weighed by the score's gradient."""

from __future__ import annotations

from functools import singledispatch

import torch
from torch import Tensor

from fxplain.labels.flows import Copied, Elementwise, Gathered, Map, Matrix, Operator, Site, Window
from fxplain.labels.labels import codes_of
from fxplain.maps.paths import along, through_path
from fxplain.ops.taps import tap_terms, tap_views
from fxplain.run.replay import Replay


def contributions(site: Site, replay: Replay, gradient: Tensor) -> Tensor:
    """⟨∂y/∂o, contribution⟩ for every element of the site's map, signed, float32 or better."""
    return contributions_of(site.map, site, replay, _wide(gradient))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


@singledispatch
def contributions_of(map: Map, site: Site, replay: Replay, gradient: Tensor) -> Tensor:
    """What a kind of map gives for :func:`contributions`, from a gradient in float32 or better."""
    raise NotImplementedError(type(map).__name__)


@contributions_of.register
def _elementwise(map: Elementwise, site: Site, replay: Replay, gradient: Tensor) -> Tensor:
    """Each element, at every place of the map: input times the local gradient of this operation alone."""
    (leaf,), (grown,) = through_path(map.operands, [site.node], replay, gradient, site.shape)
    return _wide(leaf) * _wide(grown)


@contributions_of.register
def _gathered(map: Gathered, site: Site, replay: Replay, gradient: Tensor) -> Tensor:
    """Every element times the gradient that reaches it through the operations of this step."""
    pairs = zip(*through_path(map.operands, map.path, replay, gradient), strict=True)
    return torch.cat([(_wide(leaf) * _wide(grown)).reshape(-1) for leaf, grown in pairs])


@contributions_of.register
def _copied(map: Copied, site: Site, replay: Replay, gradient: Tensor) -> Tensor:
    """All that a copy is comes of one token, whatever the gradient."""
    return torch.ones(site.shape, device=gradient.device)


@contributions_of.register
def _operator(map: Operator, site: Site, replay: Replay, gradient: Tensor) -> Tensor:
    """Every element of the operand times the gradient that each token of the output alone sends to it."""
    (leaf,), output = along(map.operands, map.path, replay)
    labels, others = site.rows.labels, site.shape[gradient.ndim :]
    codes = codes_of(labels).reshape(site.shape[: gradient.ndim]).to(gradient.device)
    found = torch.zeros(*codes.shape, *others, dtype=gradient.dtype, device=gradient.device)
    for code in torch.unique(codes[codes >= 0]).tolist():
        alone = torch.where(codes == code, gradient, 0.0).to(output.dtype)
        (grown,) = torch.autograd.grad(output, leaf, alone, retain_graph=True)
        given = (_wide(leaf).conj() * _wide(grown)).real.sum_to_size(others)
        found += (codes == code).view(*codes.shape, *[1] * len(others)) * given
    return found


@contributions_of.register
def _matrix(map: Matrix, site: Site, replay: Replay, gradient: Tensor) -> Tensor:
    """A matrix over the token axis: its entries times ⟨gradient, data⟩."""
    weights, values = (_wide(replay.kept[node.name]) for node in map.operands)
    axes = map.layout
    spec = f"{axes.weights},{axes.values},{axes.output}->{axes.map}"
    return torch.einsum(spec, weights, values, gradient)


@contributions_of.register
def _window(map: Window, site: Site, replay: Replay, gradient: Tensor) -> Tensor:
    """A window over a grid: for each place of the window, what the element there contributes."""
    contribute = tap_terms(site.node, replay.kept, map)
    views = tap_views(_wide(replay.kept[map.operand.name]), site.node, map.shape, map.kernel, map.channel)
    terms = [
        (contribute(view, place) * gradient).sum(map.channel, keepdim=True)
        for place, view in enumerate(views)
    ]
    return torch.stack(terms, -1)
