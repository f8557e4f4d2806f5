"""What each old token contributes to each new one in a linear mixing, weighed by the score's gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fxplain.labels.flows import Site
from fxplain.labels.labels import codes_of
from fxplain.maps.paths import along, through_path
from fxplain.ops.windows import tap_terms, tap_views
from fxplain.run.replay import Replay


def contributions(site: Site, replay: Replay, gradient: Tensor) -> Tensor:
    """⟨∂y/∂o, contribution⟩ for every element of the site's map, signed, float32 or better."""
    forms = {
        "pooled": _pooled,
        "weights": _weights,
        "taps": _taps,
        "joined": _joined,
        "gathered": _gathered,
        "copied": _copied,
        "operator": _operator,
    }
    return forms[site.form](site, replay, _wide(gradient))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def _pooled(site: Site, replay: Replay, gradient: Tensor) -> Tensor:
    """Each element goes into one new token: input times the local gradient of this operation alone."""
    operand = replay.kept[site.operands[0].name].detach()
    with torch.enable_grad():
        leaf = operand.clone().requires_grad_()
        result = _again(site.node, replay, site.operands[0], leaf)
        (local,) = torch.autograd.grad(result, leaf, gradient.to(result.dtype))
    return _wide(operand) * _wide(local)


def _joined(site: Site, replay: Replay, gradient: Tensor) -> Tensor:
    """Each element meets one of another token: input times local gradient, at every place of the result."""
    operand = replay.kept[site.operands[0].name].detach()
    with torch.enable_grad():
        leaf = operand.expand(site.shape).clone().requires_grad_()
        result = _again(site.node, replay, site.operands[0], leaf)
        (local,) = torch.autograd.grad(result, leaf, gradient.to(result.dtype))
    return _wide(leaf) * _wide(local)


def _gathered(site: Site, replay: Replay, gradient: Tensor) -> Tensor:
    """Every element times the gradient that reaches it through the operations of this step."""
    pairs = zip(*through_path(site, replay, gradient), strict=True)
    return torch.cat([(_wide(leaf) * _wide(grown)).reshape(-1) for leaf, grown in pairs])


def _copied(site: Site, replay: Replay, gradient: Tensor) -> Tensor:
    """All that a copy is comes of one token, whatever the gradient."""
    return torch.ones(site.shape, device=gradient.device)


def _operator(site: Site, replay: Replay, gradient: Tensor) -> Tensor:
    """Every element of the operand times the gradient that each token of the output alone sends to it."""
    (leaf,), output = along(site, replay)
    labels, others = site.rows.labels, site.shape[gradient.ndim :]
    codes = codes_of(labels).reshape(site.shape[: gradient.ndim]).to(gradient.device)
    found = torch.zeros(*codes.shape, *others, dtype=gradient.dtype, device=gradient.device)
    for code in torch.unique(codes[codes >= 0]).tolist():
        alone = torch.where(codes == code, gradient, 0.0).to(output.dtype)
        (grown,) = torch.autograd.grad(output, leaf, alone, retain_graph=True)
        given = (_wide(leaf).conj() * _wide(grown)).real.sum_to_size(others)
        found += (codes == code).view(*codes.shape, *[1] * len(others)) * given
    return found


def _again(node: fx.Node, replay: Replay, changed: fx.Node, leaf: Tensor) -> Tensor:
    """The operation once more, with one operand replaced and the others as they were."""

    def value(used: fx.Node) -> Any:
        kept = replay.kept[used.name]
        return leaf if used is changed else kept.detach() if isinstance(kept, Tensor) else kept

    args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
    result = node.target(*args, **kwargs)  # type: ignore[operator]
    first: Tensor = result[0] if isinstance(result, tuple | list) else result
    return first


def _weights(site: Site, replay: Replay, gradient: Tensor) -> Tensor:
    """A matrix over the token axis: its entries times ⟨gradient, data⟩."""
    spec, letters = site.axes.split("|")
    inputs, output = spec.split("->")
    weight, data = (_wide(replay.kept[node.name]) for node in site.operands)
    return torch.einsum(f"{inputs},{output}->{letters}", weight, data, gradient)


def _taps(site: Site, replay: Replay, gradient: Tensor) -> Tensor:
    """A window over a grid: for each place of the window, what the element there contributes."""
    assert site.window is not None
    operand, window = _wide(replay.kept[site.operands[0].name]), site.window
    contribute = tap_terms(site.node, replay.kept, window)
    views = tap_views(operand, site.node, window.shape, window.kernel, window.channel)
    terms = [
        (contribute(view, place) * gradient).sum(window.channel, keepdim=True)
        for place, view in enumerate(views)
    ]
    return torch.stack(terms, -1)
