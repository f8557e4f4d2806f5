"""Recurrences: cells that make a new state out of an input and an old one, and whole layers of them.

A state is a token of its own, made of the tokens of input and old state, weighed by the score's gradient. Of
a whole layer, the place t of the output stands for token t, for there is no map between its places; its last
state is a token that is made of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx

from fxplain.labels.call import Call, aten
from fxplain.labels.flows import Gathered
from fxplain.labels.labels import Slot, codes_of, compact, encode, samples_of
from fxplain.labels.merge import merge
from fxplain.labels.value import NOTHING, Operand, Value
from fxplain.ops.meeting.features import features_pooled
from fxplain.ops.reading import reduced
from fxplain.ops.table import transfer
from fxplain.ops.tokens import tokens_at
from fxplain.recognise.around import calls_alike, used_parts

CELLS = "gru_cell lstm_cell rnn_tanh_cell rnn_relu_cell"
RECURRENCE = "recurrence", "mixes tokens along time, one after the other: there is no token-to-token map"
LAYERS = "lstm gru rnn_tanh rnn_relu"


@transfer(*aten(CELLS))
def cell(call: Call) -> Value | tuple[Value, ...]:
    """A new state, one token a sample; where a sample has several, a gated update of each of them."""
    count = 3 if call.op == "aten::lstm_cell" else 2
    data = [_awake(call, operand) for operand in call.operands()[:count]]
    known = [operand for operand in data if operand.value.labelled]
    if not _updates_each(known):
        call.ledger.remarks.unfollowed[call.node] = RECURRENCE
    if not known:
        value = call.carry(*data)
    elif several := [o for o in reversed(known) if 0 in o.value.active[0].token_axes and o.ndim > 1]:
        slots = merge([o.value.active for o in several])
        value = call.made(*data, slots=slots)
    else:
        last = data[0].ndim - 1
        samples = torch.stack([_samples(o, [last]) for o in known]).amax(0)
        slot = _state(call, call.node, known, samples, (call.node,))
        value = call.made(*data, slots=[slot])
    return (value,) * len(call.result) if isinstance(call.result, tuple) else value


def _updates_each(known: Sequence[Operand]) -> bool:
    """Whether input and states are of the same tokens, row by row: a gate, and no step along time."""
    rows = [operand.value.active[0].expanded(operand.shape)[..., 0] for operand in known]
    varied = all(0 in operand.value.active[0].token_axes for operand in known)
    return bool(known) and varied and all(torch.equal(codes_of(rows[0]), codes_of(row)) for row in rows)


def _awake(call: Call, operand: Operand) -> Operand:
    raw = operand.value.from_input and not operand.value.labelled
    return (
        tokens_at(call, operand, [operand.ndim - 1]) if raw and operand.value.dormant is not None else operand
    )


def _samples(operand: Operand, gone: Sequence[int]) -> Tensor:
    """The sample at each place of the axes that are not gone; these get size 1."""
    return samples_of(operand.value.active[0].expanded(operand.shape)).amax(tuple(gone), keepdim=True)


def _state(
    call: Call, node: fx.Node, operands: Sequence[Operand], samples: Tensor, path: tuple[fx.Node, ...]
) -> Slot:
    """One new token a sample, laid out as ``samples``, made of all elements of the operands."""
    ledger = call.ledger
    cols = torch.cat([o.value.active[0].expanded(o.shape).reshape(-1) for o in operands])
    reads = frozenset().union(*(o.value.active[0].reads for o in operands))
    strength = max(o.value.active[0].strength for o in operands)
    source = next((o.value.root for o in operands if o.value.root is not None), call.node.name)
    alike = calls_alike(call.node)
    line = Slot(encode(0, torch.arange(len(alike))), strength)
    line = ledger.tokens.at_places(
        line, call.node, source, "mixing", ("states", alike[0].name, node is call.node)
    )
    code = int(codes_of(line.labels).reshape(-1)[alike.index(call.node)])
    born = Slot(encode(samples, torch.full_like(samples, code)), strength)
    owners = samples_of(cols)
    rows = Slot(encode(owners, torch.full_like(owners, code)), strength, reads)
    site = ledger.add_site(
        node=node,
        map=Gathered(tuple(o.node for o in operands if o.node is not None), path),
        shape=tuple(cols.shape),
        rows=rows,
        cols=Slot(cols, strength, reads),
        new_rows=True,
    )
    return replace(born, labels=compact(born.labels), reads=reads | {site.index})


@transfer(*aten(LAYERS))
def layer(call: Call) -> tuple[Value, ...]:
    """Places of the output are the tokens at their time; the last states are one token of all of them."""
    call.ledger.remarks.unfollowed[call.node] = RECURRENCE
    operand = call.operands()[0]
    operand = features_pooled(call, tokens_at(call, operand, [operand.ndim - 1]), operand.ndim - 1)
    step = _step(call, operand)
    if step is not None:
        return step
    slots = reduced(operand.ndim, [operand.ndim - 1], keep=True).survivors(operand.value.active)
    if operand.value.labelled and not slots:
        raise ValueError("a recurrence over places whose features belong to several tokens")
    # features of several directions lie side by side; all are of the place's token
    value = call.made(operand, slots=slots[:1])
    states = [_last(call, operand.with_slots(slots), place) for place in range(1, len(call.result))]
    return (value, *states)


def _step(call: Call, operand: Operand) -> tuple[Value, ...] | None:
    """A layer that is called for one place of time, as a decoder does: a cell. None where it is none."""
    given = call.operands()[1 : 3 if call.op == "aten::lstm" else 2]
    known = [o for o in (operand, *(_awake(call, o) for o in given)) if o.value.labelled]
    packed = "data" in [argument.name for argument in call.schema.arguments]
    time = 1 if bool(call.argument("batch_first", False)) and operand.ndim == 3 else 0
    alone = len(known) < 2 and len(calls_alike(call.node)) < 2
    if packed or operand.shape[time] != 1 or alone or not operand.value.labelled:
        return None
    samples = _samples(operand, [time, operand.ndim - 1])
    born = _state(call, call.node, known, samples, (call.node,))
    final = born.labels.reshape((1, -1, 1)[: operand.ndim])  # of the states: [layer, batch, feature]
    value = call.made(operand, *given, slots=[born])
    return (value, *[replace(value, slots=(replace(born, labels=final),))] * (len(call.result) - 1))


def _last(call: Call, operand: Operand, place: int) -> Value:
    """The last states [layer, batch, feature], if they are used."""
    taken = used_parts(call.node, place)
    if not taken or not operand.value.labelled:
        return call.carry(operand)
    packed = "data" in [argument.name for argument in call.schema.arguments]
    batch = call.result[place].shape[1] if call.result[place].ndim == 3 else 1
    if packed:
        samples = _samples(operand, [operand.ndim - 1])[:batch].reshape(1, batch, 1)
    else:
        time = 1 if bool(call.argument("batch_first", False)) and operand.ndim == 3 else 0
        samples = _samples(operand, [time, operand.ndim - 1])
        samples = samples.reshape((1, batch, 1) if operand.ndim == 3 else (1, 1))
    slot = _state(call, taken[0], [operand], samples, (call.node, taken[0]))
    return call.made(operand, slots=[slot])


@transfer("aten::_pack_padded_sequence")
def packing(call: Call) -> tuple[Value, ...]:
    """Tokens of padded sequences laid out time by time, without the padding."""
    operand, (lengths, first) = call.operands()[0], call.args[1:3]

    def pack(labels: Tensor) -> Tensor:
        return torch._VF._pack_padded_sequence(labels.double(), lengths.cpu(), first)[0].round().long()

    packed = call.carry(operand, slots=[slot.run(pack, operand.shape) for slot in operand.value.slots])
    return packed, NOTHING


@transfer("aten::_pad_packed_sequence")
def padding(call: Call) -> tuple[Value, ...]:
    """Back to padded sequences; padding has no label."""
    operand, (sizes, first, _, *total) = call.operands()[0], call.args[1:]
    length = total[0] if total else -1

    def pad(labels: Tensor) -> Tensor:
        wide = torch._VF._pad_packed_sequence(labels.double(), sizes.cpu(), first, 0.0, length)[0]
        return wide.round().long()

    padded = call.carry(operand, slots=[slot.run(pad, operand.shape) for slot in operand.value.slots])
    return padded, NOTHING
