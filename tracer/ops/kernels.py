"""Attention in one kernel: scaled dot product attention and its variants."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from fxplain.labels.axes import kernel_axes
from fxplain.labels.call import Call, aten
from fxplain.labels.flows import Kernel
from fxplain.labels.labels import Slot, align, compact, reads_of
from fxplain.labels.merge import merge
from fxplain.labels.value import NOTHING, Operand, Value
from fxplain.ops.meeting.attending import Numbers, attend
from fxplain.ops.meeting.features import one_token_a_place
from fxplain.ops.meeting.sides import Side
from fxplain.ops.table import transfer
from fxplain.ops.tokens import tokens_at

KERNELS = """scaled_dot_product_attention _scaled_dot_product_flash_attention
_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention
_scaled_dot_product_cudnn_attention _scaled_dot_product_attention_math
_scaled_dot_product_fused_attention_overrideable"""


@transfer(*aten(KERNELS), "flex_attention")
def fused_attention(call: Call) -> Value | tuple[Value, ...]:
    """Rows are the queries' labels, columns the keys'; the output carries the rows."""
    query, key, value = (one_token_a_place(call, _awake(call, operand)) for operand in call.operands()[:3])
    if not (query.value.active and key.value.active):
        out = call.carry(query, key, value, samples=frozenset())
        call.ledger.remarks.losses.setdefault(call.node.name, call.node)
        return _with_sums(call, replace(out, lost=out.lost | {call.node.name}))
    if all(_along_features(operand) for operand in (query, key, value)):
        call.ledger.remarks.softmaxes[call.node.name] = (call.node, "channels")
        slots = [
            replace(value.value.active[0], reads=reads_of([query.value.active[0], value.value.active[0]]))
        ]
        return _with_sums(call, call.carry(query, key, value, slots=slots, samples=frozenset()))
    if _of_versions(key) and _of_versions(value):
        call.ledger.remarks.softmaxes[call.node.name] = (call.node, "versions")
        return _with_sums(call, _mixed_versions(call, query, key, value))
    call.ledger.remarks.softmaxes[call.node.name] = (call.node, "tokens")
    weights, values = _sides(call, query, key, value)
    ndim = weights.operand.ndim
    kernel = Kernel(*[operand.node for operand in (query, key, value) if operand.node is not None])
    numbers = Numbers(lambda axes: kernel, torch.ones((1,) * ndim), True, partial(_by_group, call))
    met = attend(call, weights, values, numbers)
    return _with_sums(call, call.made(query, key, value, slots=met.slots).having(partial=met.partial))


def _sides(call: Call, query: Operand, key: Operand, value: Operand) -> tuple[Side, Side]:
    """Weights and values, as if the kernel were written out; of the weights only the labels are there."""
    result = call.result[0] if isinstance(call.result, tuple | list) else call.result
    axes, heads = kernel_axes(result.ndim), query.shape[-3] if query.ndim > 2 else 1
    rows, cols = (_of_places(operand.value.active[0]) for operand in (query, key))
    key = _for_heads(key.with_slots([cols]), heads)
    value = _for_heads(value if value.value.active else value.with_slots([cols]), heads)
    cols = replace(cols, labels=key.value.active[0].labels.transpose(-1, -2))
    held = Value(
        slots=(align(rows, result.ndim), align(cols, result.ndim)),
        from_input=query.value.from_input or key.value.from_input,
        softmaxes=frozenset({call.node.name}),
    )
    map = Operand(None, torch.empty((*result.shape[:-1], key.shape[-2]), device="meta"), held)
    return Side(map, axes.map, axes.output), Side(value, axes.values[-value.ndim :], axes.output)


def _of_places(slot: Slot) -> Slot:
    return replace(slot, labels=compact(slot.labels.narrow(-1, 0, 1)))


def _for_heads(operand: Operand, heads: int) -> Operand:
    """Keys or values, repeated for the heads of the queries where labels tell their grouped heads apart."""
    axis = operand.ndim - 3
    if axis < 0 or operand.shape[axis] == heads or not any(s.varies(axis) for s in operand.value.slots):
        return operand
    times = heads // operand.shape[axis]
    slots = [
        replace(slot, labels=slot.labels.repeat_interleave(times, axis)) if slot.varies(axis) else slot
        for slot in operand.value.slots
    ]
    return replace(operand, tensor=operand.tensor.repeat_interleave(times, axis)).with_slots(slots)


def _by_group(call: Call, groups: Tensor) -> Tensor:
    """What every row weighs the keys of each key's group together: [..., query, key].

    The kernel itself tells, by values that are 1 for one group and else 0; 1 where it cannot be asked.
    """
    total = torch.zeros(())
    for group in torch.unique(groups[groups > 0]).tolist():
        total = total + _weight_of(call, groups == group) * (groups == group)
    return total


def _weight_of(call: Call, keys: Tensor) -> Tensor:
    """What every row weighs some keys [..., 1, key] together: [..., query, 1]."""
    places = [place for place, argument in enumerate(call.args) if isinstance(argument, Tensor)]
    if len(places) < 3:
        return torch.ones(())
    args, value = list(call.args), call.args[places[2]]
    chosen = keys.mT.reshape(keys.mT.shape[-value.ndim :])
    if chosen.ndim > 2 and chosen.shape[-3] not in (1, value.shape[-3]):
        chosen = chosen[..., :: chosen.shape[-3] // value.shape[-3], :, :]  # each was repeated
    args[places[2]] = chosen.to(value).expand_as(value).contiguous()
    result = compute(call.node, args, call.kwargs)
    output: Tensor = result[0] if isinstance(result, tuple | list) else result
    return output[..., :1].cpu()


def _along_features(operand: Operand) -> bool:
    """Whether tokens lie on the last axis, which the kernel sums over: channels attend to channels."""
    return any({operand.ndim - 1} == slot.token_axes for slot in operand.value.active[:1])


def _of_versions(operand: Operand) -> bool:
    """Whether all places that the kernel sums over are of one token: its states in several layers, say."""
    places = operand.ndim - 2
    slots = operand.value.active
    return (
        operand.shape[places] > 1
        and any(slot.token_axes for slot in slots)
        and not any(slot.varies(places) for slot in slots)
    )


def _mixed_versions(call: Call, query: Operand, key: Operand, value: Operand) -> Value:
    """What comes of mixing versions of the same token is that token still, whoever asks for it."""
    asking = query.value.active if query.value.from_input else ()
    slots = merge([value.value.active, key.value.active, asking])
    return call.carry(value, key, query, slots=slots, softmaxes=frozenset(), samples=frozenset())


def _with_sums(call: Call, out: Value) -> Value | tuple[Value, ...]:
    """The output's value, and those of what some kernels give besides: sums of rows, the state of dropout."""
    if not isinstance(call.result, tuple | list):
        return out
    sums = replace(out, slots=tuple(replace(s, labels=s.labels.squeeze(-1)) for s in out.slots))
    first, *others = call.result
    of_rows = [isinstance(part, Tensor) and part.shape == first.shape[:-1] for part in others]
    return (out, *[sums if of_row else NOTHING for of_row in of_rows])


def _awake(call: Call, operand: Operand) -> Operand:
    """Raw queries and keys: a token for each place of the second to last axis; heads share them."""
    heads = [1] if operand.ndim == 4 else []
    return tokens_at(call, operand, [operand.ndim - 1], heads)


NAME = "flex_attention"


def is_flex(node: fx.Node) -> bool:
    """Whether a node calls flex attention."""
    return str(node.target) == NAME  # an operation of higher order has no schema


def compute(node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """A node's result, by operations that have a derivative."""
    function: Callable[..., Any] = flex_attention if is_flex(node) else node.target  # type: ignore[assignment]
    return function(*args, **kwargs)


def flex_scores(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Callable[..., Tensor],
    block_mask: tuple[Any, ...],
    scale: float,
    kernel_options: Mapping[str, Any] | None = None,
    score_mod_other_buffers: tuple[Any, ...] = (),
    mask_mod_other_buffers: tuple[Any, ...] = (),
    where: tuple[slice, ...] | None = None,
) -> Tensor:
    """The scores [batch, head, query, key] that the softmax gets, in float32 or better; -inf where masked.

    ``where``: the block of them that is wanted.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    batch, head, rows, columns = where or (slice(None),) * 4
    query, key = query[batch, head, rows], key[batch if len(key) > 1 else slice(None), head, columns]
    scores = query.to(dtype) @ key.to(dtype).transpose(-1, -2) * scale
    starts = [0 if part.start is None else part.start for part in (batch, head, rows, columns)]
    places = [
        torch.arange(start, start + size, device=scores.device)
        for start, size in zip(starts, scores.shape, strict=True)
    ]
    changed = _everywhere(score_mod, (0,), len(score_mod_other_buffers))
    visible = _everywhere(block_mask[-1], (), len(mask_mod_other_buffers))
    allowed = visible(*places, *mask_mod_other_buffers)
    return changed(scores, *places, *score_mod_other_buffers).to(dtype).masked_fill(~allowed, -torch.inf)


def _everywhere(
    function: Callable[..., Tensor], scores: tuple[int, ...], buffers: int
) -> Callable[..., Tensor]:
    """A function of one element and its four indices, for all elements at once."""
    for axis in (3, 2, 1, 0):  # the outermost map is that over the batch
        indices = [0 if place == axis else None for place in range(4)]
        function = torch.vmap(function, in_dims=(*scores, *indices, *[None] * buffers))
    return function


def masked_softmax(scores: Tensor) -> Tensor:
    """The softmax of scores; a row that may attend to nothing is 0."""
    dead = scores.detach().amax(-1, keepdim=True) == -torch.inf
    if not bool(dead.any()):
        return torch.softmax(scores, -1)
    return torch.softmax(scores.masked_fill(dead, 0.0), -1).masked_fill(dead, 0.0)  # no NaN, nor in gradients


def flex_attention(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The output [batch, head, query, dim], and of every row log2 of the sum and the largest of its scores.

    The last two are what ``return_lse`` and ``return_aux`` are made of: the kernels work with powers of two.
    """
    scores = flex_scores(query, key, value, *rest)
    value = value.repeat_interleave(query.shape[1] // value.shape[1], 1)
    output = masked_softmax(scores).to(query.dtype) @ value.to(query.dtype)
    return output, scores.logsumexp(-1) / math.log(2), scores.amax(-1) / math.log(2)
