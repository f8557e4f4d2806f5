"""The map of an attention: the value of a node, or rebuilt from operands where the graph does not hold it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from fxplain.labels.call import literal
from fxplain.labels.flows import Site
from fxplain.maps.samplings import sampled_map
from fxplain.ops.kernels import flex_scores, is_flex, masked_softmax
from fxplain.recognise.divided_late import layout_of
from fxplain.run.replay import Replay


def map_of(site: Site, replay: Replay, gradient: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The map A of an attention, and ∇A from the gradient of the tensor that is tapped for it."""
    if site.form == "fused":
        return fused_map(site, replay, gradient)
    if site.form == "sampled":
        return sampled_map(site, replay, gradient)
    if site.parts:
        return summed_map(site, replay, gradient)
    if site.by_output:
        return unnormalised_map(site, replay, gradient)
    return replay.kept[site.operands[0].name].detach(), gradient


def unnormalised_map(site: Site, replay: Replay, gradient: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """A = E and ∇A = dO valueᵀ from the gradient dO of the output O = E value.

    Where sum(E) divides the output later on, A = E / sum(E) and ∇A = sum(E) dO valueᵀ: the gradient of
    (E / sum(E)) value to its map. The gradient to E itself would pass the sum as well.
    """
    inputs, output = site.axes.split("->")
    letters, of_value = inputs.split(",")
    weights, value = (replay.kept[node.name].detach() for node in site.operands)
    weights = weights.expand(site.shape) if site.tied else weights
    dtype = torch.promote_types(weights.dtype, torch.float32)
    columns = [axis for axis, letter in enumerate(letters) if letter not in output]
    sums = weights.to(dtype).sum(columns, keepdim=True) if site.divided else weights.new_ones(())
    sums = torch.where(sums == 0, 1.0, sums)
    if gradient is not None:
        if site.ones:
            keys = [axis for axis, letter in enumerate(of_value) if letter not in output]
            value = torch.where((value == 1).all(keys, keepdim=True), 0.0, value)
        sides = [*zip(letters, weights.shape, strict=True), *zip(of_value, value.shape, strict=True)]
        sizes = {letter: max(n for c, n in sides if c == letter) for letter, _ in sides}
        gradient = gradient.to(dtype).reshape([sizes[letter] for letter in output])
        known = "".join(c for c in letters if c in output + of_value)  # one key may have no axis in its value
        gradient = torch.einsum(f"{output},{of_value}->{known}", gradient, value.to(dtype))
        gradient = gradient.reshape([gradient.shape[known.index(c)] if c in known else 1 for c in letters])
        gradient = (gradient * sums).sum_to_size(weights.shape)
    return weights / sums, gradient


def summed_map(site: Site, replay: Replay, gradient: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The map of an attention whose output is a sum of others': one on the other, or side by side.

    O = sum of f E value over the parts, so A = f E and ∇A = dO valueᵀ, both with the columns last.
    """
    maps, gradients = [], []
    for part, scale in zip(site.parts, site.scales, strict=True):
        own = replace(part, normaliser="none") if part.form == "weights" else part
        weights, found = map_of(own, replay, gradient)
        letters, target, _ = layout_of(part)
        order = [letters.index(letter) for letter in target]
        shape = (*site.shape[:-1], weights.shape[order[-1]])
        maps.append((weights.permute(order) * scale.to(weights)).expand(shape))
        gradients.append(None if found is None else found.permute(order).expand(shape))
    over = sum(part.shape[-1] for part in maps) > site.shape[-1]
    first = gradients[0]
    if over:
        return torch.stack(maps).sum(0), first
    known = [part for part in gradients if part is not None]
    return torch.cat(maps, -1), torch.cat(known, -1) if known else None


def grouped(tensor: Tensor, like: Tensor) -> Tensor:
    """Keys or values [..., head, key, dim] of grouped heads, repeated for the heads of ``like``."""
    if tensor.ndim > 2 and tensor.shape[-3] not in (1, like.shape[-3]):
        tensor = tensor.repeat_interleave(like.shape[-3] // tensor.shape[-3], -3)
    return tensor


def fused_map(site: Site, replay: Replay, gradient: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """A = softmax(query keyᵀ · scale + mask), and ∇A = dO valueᵀ from the gradient dO of the output.

    Returns both as [..., head, query, key] in float32 or better. Rows that may attend to nothing are 0, as in
    the kernel.
    """
    query, key, value = (replay.kept[node.name].detach() for node in site.operands)
    dtype = torch.promote_types(query.dtype, torch.float32)
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    key, value = grouped(key, query), grouped(value, query)
    maps = masked_softmax(_scores(query, key, site.node, replay))
    return maps, None if gradient is None else gradient.to(dtype) @ value.transpose(-1, -2)


def _scores(query: Tensor, key: Tensor, node: fx.Node, replay: Replay) -> Tensor:
    if is_flex(node):
        args, kwargs = _arguments(node, replay)
        return flex_scores(*args, **kwargs).detach()
    scale = argument(node, replay, "scale", None)
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    return _masked((query * scale) @ key.transpose(-1, -2), node, replay)


def flex_block(node: fx.Node, replay: Replay, where: tuple[slice, ...]) -> Tensor:
    """The scores of flex attention for a block of its map."""
    args, kwargs = _arguments(node, replay)
    return partial(flex_scores, where=where)(*args, **kwargs).detach()


def own_output(site: Site, replay: Replay) -> Tensor:
    """What the kernel itself gives for the operands of the replay."""
    if not is_flex(site.node):
        whole = replay.kept[site.node.name]
        first: Tensor = whole[0] if isinstance(whole, tuple | list) else whole
        return first.detach()
    args, kwargs = _arguments(site.node, replay)
    with torch.no_grad():
        output: Tensor = site.node.target(*args, **kwargs)[0]  # type: ignore[operator]
    return output


def _masked(scores: Tensor, node: fx.Node, replay: Replay) -> Tensor:
    if argument(node, replay, "is_causal", False):
        rows, cols = scores.shape[-2:]
        allowed = torch.ones(rows, cols, dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, -torch.inf)
    for name in ("attn_mask", "attn_bias"):
        mask = argument(node, replay, name, None)
        if isinstance(mask, Tensor):
            mask = mask.detach()
            scores = (
                scores.masked_fill(~mask, -torch.inf)
                if mask.dtype == torch.bool
                else scores + mask.to(scores.dtype)
            )
    return scores


def _arguments(node: fx.Node, replay: Replay) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return fx.node.map_arg((node.args, node.kwargs), lambda used: replay.kept[used.name])


def argument(node: fx.Node, replay: Replay, name: str, default: Any) -> Any:
    """An argument of the fused call by its name in the schema, nodes replaced by their values."""
    found = literal(node, name)
    if isinstance(found, fx.Node):
        return replay.kept[found.name]
    return default if found is None else found
