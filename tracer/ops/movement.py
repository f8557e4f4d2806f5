"""Layout operations move elements: the same operation, run on the labels, moves the labels alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fxplain.labels.call import Call, aten
from fxplain.labels.labels import Slot, align, compact, reads_of
from fxplain.labels.value import NOTHING, Operand, Value
from fxplain.ops.catenation import side_by_side, unsqueezed
from fxplain.ops.elementwise import pointwise
from fxplain.ops.meeting.features import laid_apart
from fxplain.ops.sequences import taken_for_data
from fxplain.ops.table import transfer
from fxplain.recognise.edge_list import note_taken

UNARY = """view reshape _unsafe_view _reshape_alias view_copy permute transpose t numpy_T movedim moveaxis
swapaxes swapdims adjoint unsqueeze squeeze expand broadcast_to repeat tile repeat_interleave slice
select narrow roll flip fliplr flipud rot90 unfold unfold_copy im2col as_strided diagonal flatten
unflatten pixel_shuffle pixel_unshuffle channel_shuffle split split_with_sizes chunk unbind
tensor_split hsplit vsplit take_along_dim index_select gather index masked_select take
view_as expand_as reshape_as upsample_nearest1d upsample_nearest2d upsample_nearest3d reflection_pad1d
reflection_pad2d replication_pad1d replication_pad2d mT mH permute_copy transpose_copy expand_copy
slice_copy select_copy squeeze_copy unsqueeze_copy _unsafe_index replication_pad3d _mkldnn_reshape"""

WHOLE = aten("view reshape expand _unsafe_view slice")
"""Operations that hold the very numbers of their operand where they keep its shape."""
FOLDING = aten("view reshape _unsafe_view flatten unflatten squeeze unsqueeze")
GATHERING = aten("gather index_select index")
STRIDED = ("aten::as_strided", "aten::as_strided_copy")

IDENTITY = """clone contiguous detach alias to _to_copy lift_fresh lift_fresh_copy dropout feature_dropout
alpha_dropout native_dropout type_as _autocast_to_reduced_precision _autocast_to_full_precision
view_as_real_copy positive conj resolve_conj resolve_neg detach_ float double half bfloat16
requires_grad_ fill_diagonal tril triu _conj alias_copy"""


@transfer(*aten(IDENTITY))
def identity(call: Call) -> Value | tuple[Value, ...]:
    """The same numbers in the same shape: the labels, and the identity of the tensor, stay."""
    operand = call.operands()[0]
    first = call.result[0] if isinstance(call.result, tuple) else call.result
    same = isinstance(first, Tensor) and first.shape == operand.shape
    value = operand.value.having(origin=_origin(operand) if same else None, partial=None)
    return (value, NOTHING) if isinstance(call.result, tuple) else value


def _origin(operand: Operand) -> str | None:
    return operand.value.origin or (operand.node.name if operand.node else None)


@transfer(*aten(UNARY))
def unary(call: Call) -> Value | tuple[Value, ...]:
    """Run the operation itself on every slot's labels, with the real indices."""
    operand = call.operands()[0]
    lookup = _lookup(call, operand)
    if lookup is not None:
        return lookup
    moved = [_move(call, slot, operand.shape) for slot in operand.value.slots]
    if isinstance(call.result, list | tuple):
        slots = [[part[place] for part in moved] for place in range(len(call.result))]
        return tuple(call.carry(operand, slots=part) for part in slots)
    value = call.carry(operand, slots=[part[0] for part in moved])
    coarser = operand.value.gave_way.coarser
    if coarser is not None:
        apart = laid_apart(coarser)  # pairs that lay apart before have labels of their own
        coarser = coarser.moved(lambda slot: _move(call, slot, operand.shape)[0])
        sides = [] if apart else laid_apart(coarser)
        value = value.having(coarser=coarser, slots=tuple(sides) or value.slots)
    same = isinstance(call.result, Tensor) and call.result.shape == operand.shape
    reshaping = call.op in WHOLE
    if call.op in GATHERING:
        note_taken(call, operand)
    if call.op in FOLDING:  # heads side by side, which are summed along edges later on
        value = value.having(product=operand.value.unsummed.product)
    ids = call.op in FOLDING and not operand.tensor.is_floating_point()  # the same ids, laid out otherwise
    return replace(value, origin=_origin(operand)) if (same and reshaping) or ids else value


def _move(call: Call, slot: Slot, shape: Sequence[int]) -> list[Slot]:
    def operation(labels: Tensor) -> Any:
        return rerun(call, {0: labels})

    labels = slot.expanded(shape)
    if call.op in STRIDED:
        labels = laid_out_as(call.operands()[0].tensor, labels)
    try:
        moved = operation(labels)
    except (RuntimeError, NotImplementedError):
        moved = operation(labels.double())
    parts = moved if isinstance(moved, list | tuple) else [moved]
    return [
        replace(slot, labels=compact(part.round().long() if part.is_floating_point() else part))
        for part in parts
    ]


def laid_out_as(tensor: Tensor, other: Tensor) -> Tensor:
    """Another tensor, such as labels, in memory as the tensor is, for operations that count in memory."""
    strides = tensor.stride()
    return torch.empty_strided(other.shape, strides, dtype=other.dtype, device=other.device).copy_(other)


def rerun(call: Call, changed: dict[int, Any]) -> Any:
    """Call the operation again with some positional arguments changed and all tensors on the CPU."""
    args = [on_cpu(changed.get(place, argument)) for place, argument in enumerate(call.args)]
    kwargs = {name: on_cpu(argument) for name, argument in call.kwargs.items() if name != "memory_format"}
    return call.node.target(*args, **kwargs)  # type: ignore[operator]


def on_cpu(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.cpu()
    if isinstance(argument, list | tuple):
        return type(argument)(on_cpu(item) for item in argument)
    return argument


def _lookup(call: Call, table: Operand) -> Value | None:
    """Indexing by data: rows of a parameter picked by input ids are an embedding, else note the
    dependence."""
    indices = [o for o in call.operands()[1:] if not o.tensor.is_floating_point() and o.value.from_input]
    if not indices:
        return None
    if table.is_parameter and call.op in ("aten::index", "aten::index_select", "aten::_unsafe_index"):
        index = indices[0]
        if index.tensor.dtype != torch.bool and index.value.dormant is not None:
            slot = align(index.value.dormant, index.ndim)
            missing = call.result.ndim - index.ndim
            place = 0 if call.op != "aten::index_select" else int(call.argument("dim", 0))
            named = call.ledger.tokens.of_elements(slot, call.node, tag=_origin(index) or call.node.name)
            labels = named.labels.reshape((1,) * place + named.labels.shape + (1,) * (missing - place))
            return call.carry(index, table, slots=[replace(named, labels=labels)])
    if table.value.labelled:
        call.ledger.data_dependent = True
    return None


@transfer("aten::diag")
def diag(call: Call) -> Value | tuple[Value, ...]:
    """The diagonal of a matrix is taken as by ``diagonal``; a matrix made of tokens' numbers is not known."""
    if call.operands()[0].ndim == 1 and call.operands()[0].value.labelled:
        raise ValueError("a diagonal matrix of tokens has no transfer function")
    return unary(call)


@transfer("aten::view_as_complex", "aten::view_as_real", "aten::real", "aten::imag")
def complex_pairs(call: Call) -> Value:
    """Complex numbers are pairs of features: the last axis goes, or comes."""
    operand = call.operands()[0]
    if call.op in ("aten::real", "aten::imag"):
        return taken_for_data(call, call.carry(operand, slots=operand.value.slots))
    change = {"aten::view_as_complex": _last_gone, "aten::view_as_real": _last_added}.get(call.op)
    slots = operand.value.slots
    return call.carry(operand, slots=[replace(s, labels=change(s.labels)) if change else s for s in slots])


def _last_gone(labels: Tensor) -> Tensor:
    return labels.select(-1, 0)


def _last_added(labels: Tensor) -> Tensor:
    return labels.unsqueeze(-1)


@transfer("aten::broadcast_tensors")
def broadcast_tensors(call: Call) -> tuple[Value, ...]:
    """Each operand grows leading axes; labels need no more."""
    return tuple(
        call.carry(operand, slots=[align(slot, result.ndim) for slot in operand.value.slots])
        for operand, result in zip(call.operands(), call.result, strict=True)
    )


@transfer("aten::where")
def where(call: Call) -> Value:
    """A choice between two labelled tensors is a choice between their labels."""
    if len(call.operands()) < 3:
        return pointwise(call, call.operands()[1:] or call.operands())
    condition, one, other = call.operands()[:3]
    if (
        len(one.value.active) == len(other.value.active) == 1
        and one.value.active[0].strength == other.value.active[0].strength
    ):
        first, second = (align(o.value.active[0], call.result.ndim) for o in (one, other))
        if first.token_axes == second.token_axes:
            labels = torch.where(condition.tensor.cpu(), first.labels, second.labels)
            call.ledger.data_dependent |= condition.value.from_input
            return call.carry(
                one, other, slots=[Slot(compact(labels), first.strength, reads_of([first, second]))]
            )
    return pointwise(call, [one, other])


@transfer("aten::sort", "aten::topk", "aten::argsort", "aten::kthvalue", "aten::msort")
def ordering(call: Call) -> Value | tuple[Value, ...]:
    """Sorted values keep the labels of the elements that were picked."""
    operand = call.operands()[0]
    call.ledger.data_dependent |= operand.value.from_input and operand.value.labelled
    if not isinstance(call.result, tuple):
        return call.carry(operand)
    axis = int(call.argument("dim", -1)) % max(operand.ndim, 1)
    index = call.result[1].cpu()
    slots = [
        slot.run(lambda labels: labels.gather(axis, index), operand.shape) for slot in operand.value.slots
    ]
    return call.carry(operand, slots=slots), call.carry(operand, slots=slots)


@transfer("aten::constant_pad_nd", "aten::pad")
def pad(call: Call) -> Value:
    """Padding has no label: pad the labels with zeros, whatever the data are padded with."""
    operand = call.operands()[0]
    mode = call.argument("mode", "constant")
    padding = list(call.argument("pad"))

    def operation(labels: Tensor) -> Tensor:
        if mode == "constant":
            return torch.nn.functional.pad(labels, padding)
        return torch.nn.functional.pad(labels.double(), padding, mode=mode).round().long()

    return call.carry(operand, slots=[slot.run(operation, operand.shape) for slot in operand.value.slots])


@transfer("aten::pad_sequence")
def pad_sequence(call: Call) -> Value:
    """Sequences of several lengths, one for each sample: padded, then stacked."""
    operands = call.operands()
    longest = max(operand.shape[0] for operand in operands)
    before = call.argument("padding_side", "right") == "left"
    axis = 0 if call.argument("batch_first", False) else 1
    return side_by_side(call, [unsqueezed(_filled(o, longest, before), axis) for o in operands], axis)


def _filled(operand: Operand, length: int, before: bool) -> Operand:
    """The operand with so many places along its first axis."""
    missing = length - operand.shape[0]
    sides = (missing, 0) if before else (0, missing)

    def padded(tensor: Tensor) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, 0) * (tensor.ndim - 1) + sides)

    slots = (
        [slot.run(padded, operand.shape) for slot in operand.value.slots] if missing else operand.value.slots
    )
    return replace(operand.with_slots(slots), tensor=padded(operand.tensor))
