"""Where tokens are born: embeddings of ids, and linear maps or convolutions of data without labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, fx

from fxplain.labels.call import Call, literal, op_name
from fxplain.labels.elements import Root
from fxplain.labels.labels import DORMANT, FAINT, STRONG, WEAK, Slot, align, codes_of, encode, samples_of
from fxplain.labels.value import Operand, Value
from fxplain.ops.table import transfer
from fxplain.recognise.around import made_by


def tokens_at(call: Call, operand: Operand, features: Iterable[int], heads: Iterable[int] = ()) -> Operand:
    """The operand with token labels: its own, or one token for each place but along features and heads."""
    if operand.value.labelled or operand.value.is_summary or not operand.tensor.is_floating_point():
        return operand
    dormant = operand.value.dormant or fresh(call, operand)
    features = list(features)
    dormant = replace(dormant, labels=_of_places(dormant.labels, features))
    labels = _all_numbered(call, operand, dormant.labels)
    labels = encode(_filled(samples_of(labels), features), codes_of(labels))
    leading = {axis: _leading(call, codes_of(labels), axis) for axis in features}
    codes = call.ledger.tokens.elements.without_features(codes_of(labels), features)
    labels = encode(samples_of(labels), codes)
    for axis in [*features, *(axis for axis in heads if not _samples_vary(labels, axis))]:
        # features of one token are of one sample; if they seem not to be, the batch lies on another axis
        call.ledger.crossing |= _samples_vary(labels, axis)
        labels = labels.narrow(axis, leading.get(axis, 0), min(1, labels.shape[axis]))
    assert operand.node is not None
    whole = _pieces(call, _all_numbered(call, operand, dormant.labels), labels)
    if whole is not None:
        call.ledger.tokens.of_elements(replace(dormant, labels=whole), operand.node)
    cut = _cut(call, _all_numbered(call, operand, dormant.labels), labels, operand.shape)
    slot = call.ledger.tokens.of_elements(
        replace(dormant, labels=labels), call.node if cut else operand.node, tag=cut
    )
    return operand.with_slots([slot])


def _cut(call: Call, elements: Tensor, labels: Tensor, shape: tuple[int, ...]) -> str:
    """A tag for tokens of an input that was cut into others before (patches of a series, and the whole)."""
    codes, names = codes_of(elements), codes_of(labels)
    roots = call.ledger.tokens.elements.by_root(torch.unique(names))
    gone = [axis for axis, size in enumerate(shape) if labels.shape[axis] == 1 and size > 1]
    if len(roots) != 1 or not all(r.is_input and r.strength == STRONG and not r.is_constant for r in roots):
        return ""
    whole = codes.expand([codes.shape[a] if a in gone else n for a, n in enumerate(names.shape)])
    rest = [axis for axis in range(len(shape)) if axis not in gone]
    rows = whole.permute([*rest, *gone]).reshape(names.numel(), -1)
    number = call.ledger.tokens.elements.cut(rows, names.permute([*rest, *gone]).reshape(-1))
    return f"cut {number}" if number else ""


def _taken_from(call: Call, node: fx.Node | None) -> Value | None:
    """The tensor of which one place was taken, as a loop over time does: its tokens are born together."""
    if node is None or op_name(node) not in ("aten::select", "aten::slice"):
        return None
    source, shape = node.args[0], call.ledger.shapes[node.name]
    axis = int(literal(node, "dim", 0))
    if op_name(node) == "aten::slice" and shape[axis] != 1:
        return None
    return call.values.get(source) if isinstance(source, fx.Node) else None


def _of_places(labels: Tensor, features: list[int]) -> Tensor:
    """Features that are constant at all places (a first state of zeros, beside a frame) are of the places'
    tokens."""
    places = [axis for axis in range(labels.ndim) if axis not in features]
    if not features or not places:
        return labels
    constant = (codes_of(labels) < 0).all(places[0], keepdim=True)
    for axis in places[1:]:
        constant = constant.all(axis, keepdim=True)
    return torch.where(constant, labels.amax(features, keepdim=True), labels)


def _filled(samples: Tensor, features: list[int]) -> Tensor:
    """Positions that stand among the features of a place are of the sample that the others are of."""
    known = samples.amax(features, keepdim=True) if features else samples
    return torch.where(samples < 0, known, samples)


def _leading(call: Call, codes: Tensor, axis: int) -> int:
    """The first place along the features at which most of an input stands: it names the token, no position
    does, nor the neighbour that comes before the first with padding."""
    others = [other for other in range(codes.ndim) if other != axis]
    roots = call.ledger.tokens.elements.by_root(codes)
    of_input = [inside for root, inside in roots.items() if root.is_input and not root.is_constant]
    if not of_input or len(roots) == 1:
        return 0
    stands = torch.stack(of_input).any(0).long()
    return int((stands.sum(others) if others else stands).reshape(-1).argmax())


def _pieces(call: Call, elements: Tensor, labels: Tensor) -> Tensor | None:
    """Where one place of an input is taken, as a loop over time or over columns does: all the places that are
    laid out like it, for they are tokens of one set. ``elements`` number the piece with its features."""
    codes = torch.unique(codes_of(labels))
    roots = call.ledger.tokens.elements.by_root(codes)
    if len(codes) != 1 or not all(root.is_input for root in roots) or not roots:
        return None
    start, shape = call.ledger.tokens.elements.around(int(codes))
    lines = [
        torch.unique(line) for line in torch.unravel_index(codes_of(elements).reshape(-1) - start, shape)
    ]
    taken = [size if len(line) == 1 else 1 for line, size in zip(lines, shape, strict=True)]
    if torch.Size(taken).numel() == 1:
        return None
    places = torch.arange(torch.Size(shape).numel()).view(shape)
    for axis, size in enumerate(taken):
        places = places.narrow(axis, 0, size)
    samples = samples_of(labels).reshape(-1, 1)
    return encode(samples, places.reshape(1, -1) + start)


def taken_place(call: Call, operand: Operand, feature: int) -> Slot | None:
    """The token of raw data that is one place of several of an input, as a loop over time takes them."""
    dormant = operand.value.dormant
    raw = call.ledger.tokens.is_raw(dormant) and operand.tensor.is_floating_point()
    if dormant is None or operand.value.labelled or not raw:
        return None
    if (
        _pieces(call, dormant.labels, dormant.labels.narrow(feature, 0, min(1, operand.shape[feature])))
        is None
    ):
        return None
    return tokens_at(call, operand, [feature]).value.slots[0]


def _samples_vary(labels: Tensor, axis: int) -> bool:
    """Whether the samples that are known along an axis are several; padding is nobody's."""
    samples = samples_of(labels)
    if samples.shape[axis] < 2:
        return False
    highest = samples.amax(axis, keepdim=True)
    return bool(((samples >= 0) & (samples != highest)).any())


def fresh(call: Call, operand: Operand) -> Slot:
    """Number the places of a tensor whose elements nothing upstream has numbered."""
    ledger, shape = call.ledger, list(operand.shape)
    axis = ledger.batch_axis
    data = operand.value.from_input or operand.value.root is None  # and a first state of zeros
    batched = data and axis is not None and axis < len(shape) and shape[axis] == ledger.batch
    samples: Tensor | int = 0 if ledger.batch == 1 else -1
    if batched and axis is not None:
        samples = torch.arange(shape[axis]).view([-1 if a == axis else 1 for a in range(len(shape))])
        shape[axis] = 1
    return Slot(encode(samples, _numbers(call, operand, shape)), DORMANT)


def _numbers(call: Call, operand: Operand, shape: list[int], filled: bool = False) -> Tensor:
    value = operand.value
    name = value.root or made_by(call, operand.node or call.node).name
    strength = STRONG if value.from_input else FAINT if value.root is None else WEAK
    constant = filled or (not value.from_input and value.root is None)
    root = Root(name, value.from_input, strength, constant)
    # what is filled in one tensor is the same tokens for whatever makes tokens of it
    tensor = value.origin or (operand.node.name if operand.node else None)
    memo = (tensor, tuple(shape)) if filled and tensor else None
    start = call.ledger.tokens.elements.reserve(root, shape, memo)
    return torch.arange(torch.Size(shape).numel()).view(shape) + start


def _all_numbered(call: Call, operand: Operand, labels: Tensor) -> Tensor:
    """Places that constants fill (padding tokens, a class id, a first frame of zeros) are tokens too, where
    others beside them are: of a space of their own, for they are no places of the input."""
    missing = codes_of(labels) < 0
    if not bool(missing.any()):
        return labels
    samples = samples_of(labels)
    shape = list(labels.shape)
    for axis in range(labels.ndim):
        others = [other for other in range(labels.ndim) if other != axis]
        line = samples.amax(others, keepdim=True) if others else samples
        if bool(((line >= 0) & (line != line.max())).any()):  # what constants fill is of no known sample
            samples, shape[axis] = line, 1
    return torch.where(missing, encode(samples, _numbers(call, operand, shape, filled=True)), labels)


@transfer("aten::embedding")
def embedding(call: Call) -> Value:
    """One token for each id; ids that come from one node are one set of tokens.

    Ids that constants fill in beside those of an input (a class id before them) are tokens of their own. Ids
    that the graph makes out of nothing (all places of a table, padding) name tokens of the table.
    """
    index = call.operand("indices")
    table = call.operand("weight")
    assert index is not None
    assert table is not None
    dormant = index.value.dormant
    if dormant is None:
        dormant = fresh(call, index)
    dormant = replace(dormant, labels=_all_numbered(call, index, dormant.labels))
    tag = index.value.origin or (index.node.name if index.node else call.node.name)
    whole = _taken_from(call, index.node)
    if whole is not None and whole.dormant is not None and whole.origin is not None:
        tag = whole.origin
        call.ledger.tokens.of_elements(whole.dormant, call.node, tag=tag, table=table.value.root)
    slot = call.ledger.tokens.of_elements(dormant, call.node, tag=tag, table=table.value.root)
    return call.carry(index, table, slots=[replace(slot, labels=slot.labels.unsqueeze(-1))])


@transfer("aten::embedding_bag", "aten::_embedding_bag", "aten::_embedding_bag_forward_only")
def embedding_bag(call: Call) -> Value | tuple[Value, ...]:
    """One token for each bag of ids; bags that data weigh stay of the tokens of these weights."""
    index = call.operand("indices")
    weights = call.operand("per_sample_weights")
    table = call.operand("weight")
    assert index is not None
    assert table is not None
    operands = [operand for operand in (index, table, weights) if operand is not None]
    if weights is not None and weights.value.labelled and weights.ndim == 2:
        kept = [slot for slot in weights.value.active if not slot.varies(1)]
        value = call.carry(*operands, slots=kept)
    elif index.value.labelled or not call.ledger.tokens.is_raw(index.value.dormant):
        value = call.carry(*operands)
    else:
        bags = _bags(call, index)
        tag = index.value.origin or call.node.name
        value = call.carry(*operands, slots=[call.ledger.tokens.of_elements(bags, call.node, tag=tag)])
    return (value,) * len(call.result) if isinstance(call.result, tuple | list) else value


def _bags(call: Call, index: Operand) -> Slot:
    """The labels of each bag: those of its ids but for their place in it, or of the first of them."""
    dormant = index.value.dormant
    assert dormant is not None
    if index.ndim == 2:
        codes = call.ledger.tokens.elements.without_features(codes_of(dormant.labels), [1])
        return replace(dormant, labels=encode(samples_of(dormant.labels), codes).narrow(1, 0, 1))
    starts = call.argument("offsets").cpu()
    offsets = call.operand("offsets")
    call.ledger.data_dependent |= offsets is not None and offsets.value.from_input
    if call.argument("include_last_offset", False):
        starts = starts[:-1]
    ends = torch.cat([starts[1:], starts.new_tensor([index.shape[0]])])
    firsts = dormant.expanded(index.shape)[starts.clamp_max(max(index.shape[0] - 1, 0))]
    return replace(dormant, labels=torch.where(ends > starts, firsts, 0)[:, None])  # 0: of no token


def places(old: Slot, axes: Iterable[int], shape: tuple[int, ...]) -> Slot:
    """Codes that number the places along some axes within a sample; the samples are those of ``old``.

    An axis along which the sample changes (the batch, or windows folded into it) counts the places that each
    sample has along it; those of the same tokens (heads) are the same.
    """
    samples = samples_of(old.labels)
    ndim = len(shape)
    codes = torch.zeros((1,) * ndim, dtype=torch.int64)
    batch = torch.full((1,) * ndim, -1, dtype=torch.int64)
    for axis in axes:
        line = _line(samples, axis) if axis < samples.ndim else None
        own = line is not None and len(line) == shape[axis] and len(torch.unique(line[line >= 0])) > 1
        number = _rank(line, old, axis) if own and line is not None else torch.arange(shape[axis])
        view = [1] * ndim
        view[axis] = shape[axis]
        codes = codes * (int(number.max()) + 1) + number.view(view)
        if own and line is not None:
            batch = line.view(view)
    if bool((batch < 0).all()):
        batch = samples.reshape(-1)[:1].view((1,) * ndim) if samples.numel() else batch
    return Slot(encode(batch, codes), old.strength, old.reads)


def _line(samples: Tensor, axis: int) -> Tensor:
    """The sample at each place along one axis; where some places are padding, the others tell."""
    others = [other for other in range(samples.ndim) if other != axis]
    return (samples.amax(others) if others else samples).reshape(-1)


def _rank(line: Tensor, old: Slot, axis: int) -> Tensor:
    """Which of its sample's places each one along an axis is."""
    slices = old.labels.movedim(axis, 0).reshape(len(line), -1)
    known = torch.unique(slices, dim=0, return_inverse=True)[1]
    seen: dict[int, dict[int, int]] = {}
    ranks = []
    for sample, content in zip(line.tolist(), known.tolist(), strict=True):
        own = seen.setdefault(sample, {})
        ranks.append(own.setdefault(content, len(own)))
    return torch.tensor(ranks)


def grid_birth(call: Call, operand: Operand, channel: int) -> Value:
    """Tokens on a grid: one for each place of a convolution's or pooling's output (all axes but channels)."""
    if operand.value.is_summary:
        return call.carry(operand)
    shape = tuple(call.result.shape)
    source = (
        operand.value.slots[0]
        if operand.value.slots
        else Slot(torch.zeros((1,) * len(shape), dtype=torch.int64), DORMANT)
    )
    source = align(source, len(shape))
    axes = [axis for axis in range(len(shape)) if axis != channel]
    # the values of one place are of one sample; if they seem not to be, the batch lies on another axis
    summed = [channel, *(axis for axis in axes if shape[axis] != operand.shape[axis])]
    call.ledger.crossing |= any(_samples_vary(source.labels, axis) for axis in summed)
    slot = replace(places(source, axes, shape), strength=STRONG if operand.value.from_input else WEAK)
    root = operand.value.root or call.node.name
    origin = operand.value.origin or (operand.node.name if operand.node else call.node.name)
    born = call.ledger.tokens.at_places(slot, call.node, root, "input", origin)
    return call.carry(operand, slots=[born])
