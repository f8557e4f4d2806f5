"""Pointwise operations, normalisations, reductions and softmax."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fxplain.labels.call import Call, aten
from fxplain.labels.labels import DORMANT, Slot
from fxplain.labels.value import NOTHING, Multiplied, Operand, Value
from fxplain.ops.elementwise import pointwise
from fxplain.ops.meeting.contraction import summed_product
from fxplain.ops.meeting.mixing import pooled_along
from fxplain.ops.meeting.sides import Met
from fxplain.ops.reading import reduced
from fxplain.ops.sampling import sum_up
from fxplain.ops.sequences import follow_operator
from fxplain.ops.table import transfer
from fxplain.recognise.around import is_score
from fxplain.recognise.key_by_key import weighed_key
from fxplain.recognise.late_interaction import features_of_rows, normalises
from fxplain.recognise.normaliser import is_positive
from fxplain.recognise.shared_map import shared_sum

NORMALISATIONS = """layer_norm native_layer_norm group_norm native_group_norm batch_norm native_batch_norm
_native_batch_norm_legit _native_batch_norm_legit_no_training _native_batch_norm_legit_functional
instance_norm rms_norm _fused_rms_norm cudnn_batch_norm miopen_batch_norm _batch_norm_impl_index
local_response_norm renorm _batch_norm_no_update"""

REDUCTIONS = """mean sum amax amin max min logsumexp var std prod norm linalg_vector_norm var_mean std_mean
median nanmean nansum aminmax mode count_nonzero"""

UNTAGGED = """log_sigmoid log_sigmoid_forward rrelu rrelu_with_noise prelu _prelu_kernel hardswish hardsigmoid
hardtanh mish softplus softshrink hardshrink threshold leaky_relu elu celu gelu selu relu relu6 silu
floor_divide remainder rsub arccosh arcsin arcsinh arctan arctanh complex polar isnan isinf isclose
greater_equal less_equal fix"""

LOSSES = """mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy binary_cross_entropy_with_logits
kl_div soft_margin_loss poisson_nll_loss"""
CLASS_LOSSES = "nll_loss nll_loss2d nll_loss_nd nll_loss_forward cross_entropy_loss multi_margin_loss"

SUMS = ("sum", "mean", "nansum", "nanmean")

SOFTMAXES = "softmax _softmax _safe_softmax"
OTHER_NORMALISERS = "log_softmax _log_softmax"


@transfer(*aten(NORMALISATIONS))
def normalise(call: Call) -> Value | tuple[Value, ...]:
    """Statistics are no tokens: the labels of the data stay. One that spans tokens, or samples, is written
    down."""
    operand = call.operands()[0]
    along = _statistics_along(call, operand.ndim)
    if operand.tensor.is_floating_point() and any(slot.axes & along for slot in operand.value.active):
        call.ledger.remarks.statistics.append(call.node)
    value = call.carry(operand, slots=operand.value.slots, coarser=operand.value.gave_way.coarser)
    if isinstance(call.result, tuple | list):
        return (value, *([NOTHING] * (len(call.result) - 1)))
    return value


def _statistics_along(call: Call, ndim: int) -> frozenset[int]:
    """The axes that a normalisation takes its statistics along."""
    name = call.op.removeprefix("aten::")
    if "layer_norm" in name or "rms_norm" in name:
        return frozenset(range(ndim - len(call.argument("normalized_shape", ())), ndim))
    if "group_norm" in name:
        return frozenset(range(1, ndim))
    if name == "instance_norm" and call.argument("use_input_stats", True):
        return frozenset(range(2, ndim))
    if name == "renorm":  # of each slice along one axis, in all samples
        return frozenset(range(ndim)) - {int(call.argument("dim")) % ndim}
    learns = call.argument("training", call.argument("train", False)) is True
    return frozenset({0, *range(2, ndim)}) if "batch_norm" in name and learns else frozenset()


@transfer("aten::cumsum", "aten::cumprod", "aten::logcumsumexp", "aten::cummax", "aten::cummin")
def scan(call: Call) -> Value | tuple[Value, ...]:
    """Running sums keep the labels: along tokens, each place stands for the token that comes in there."""
    operand = call.operands()[0]
    axis = int(call.argument("dim")) % max(operand.ndim, 1)
    slots = operand.value.slots
    if operand.tensor.is_floating_point() and any(slot.varies(axis) for slot in operand.value.active):
        # sums along the rows of a map are of that row, as its maximum is
        slots = tuple(slot for slot in operand.value.active if not slot.varies(axis)) or slots
        if any(slot.varies(axis) for slot in slots):
            call.ledger.remarks.unfollowed[call.node] = "running sum", "sums up tokens one after the other"
            assert operand.node is not None
            slots = tuple(follow_operator(call, operand.node, slot, slot) or slot for slot in slots)
    value = call.carry(operand, slots=slots)
    return (value,) * len(call.result) if isinstance(call.result, tuple) else value


@transfer(*aten(SOFTMAXES))
def softmax(call: Call) -> Value:
    """Note a softmax and what its normalised axis holds; its labels are its scores'."""
    operand = call.operands()[0]
    axis = int(call.argument("dim", -1)) % max(operand.ndim, 1)
    over_tokens = any(slot.varies(axis) for slot in operand.value.active)
    single = operand.shape[axis] == 1 if operand.ndim else True
    what = "tokens" if over_tokens or (single and len(operand.value.active) > 1) else "features"
    call.ledger.remarks.softmaxes[call.node.name] = (call.node, what)
    value = call.carry(operand, slots=operand.value.slots, coarser=operand.value.gave_way.coarser)
    return value.having(softmaxes=value.softmaxes | {call.node.name}, summaries=frozenset())


@transfer(*aten(OTHER_NORMALISERS))
def log_softmax(call: Call) -> Value | tuple[Value, ...]:
    """Log-probabilities: noted in the census; their exponential may still be a map."""
    return softmax(call)


@transfer("aten::mul")
def multiply(call: Call) -> Value:
    """Pointwise; a product of two labelled tensors, or of weights and raw data, may be half of a sum of
    products."""
    weighed = weighed_key(call)
    if weighed is not None:
        return weighed
    value = pointwise(call)
    operands = call.operands()
    if len(operands) != 2:
        return value
    labelled = [operand for operand in operands if operand.value.labelled]
    raw = [operand for operand in operands if call.ledger.tokens.is_raw(operand.value.dormant)]
    if len(labelled) == 2 or (labelled and raw and labelled[0].value.softmaxes):
        value = value.having(product=Multiplied(call.node, (operands[0], operands[1])))
    if len(labelled) < 2:
        return value
    weights = [o for o in operands if o.value.softmaxes]
    if len(weights) == 1 and len(weights[0].value.active) < 2:
        return replace(value, softmaxes=frozenset())  # one weight a token: data, and no weight any more
    return value


@transfer(*aten(REDUCTIONS))
def reduce(call: Call) -> Value | tuple[Value, ...]:
    """Labels that do not vary along the reduced axes stay; the others are pooled into new tokens."""
    operands = call.operands()
    if call.op in ("aten::max", "aten::min") and len(operands) == 2:
        return pointwise(call)
    operand = operands[0]
    axes = _axes(call, operand)
    found = _summed(call, operand, axes)
    if found is None and _is_statistic(call, operand, axes):
        return _statistic(call, operand)
    found = found or Met(_survivors(call, operand, axes))
    reading = reduced(operand.ndim, axes, bool(call.argument("keepdim", False)))
    whole = len(found.slots) == len(operand.value.active)
    coarser = operand.value.gave_way.coarser
    if coarser is not None:  # tokens that lie along the features that are reduced are gone
        there = whole and not reading.over(coarser.slot)
        coarser = coarser.moved(reading.first) if there else None
    value = call.carry(operand, slots=[reading.first(slot) for slot in found.slots], partial=found.partial)
    value = value.having(
        samples=operand.value.hidden.samples if whole else frozenset(),
        shared_map=value.gave_way.shared_map or found.shared_map,
        coarser=coarser,
    )
    return (value,) * len(call.result) if isinstance(call.result, tuple) else value


def _summed(call: Call, operand: Operand, axes: Sequence[int]) -> Met | None:
    """What a sum closes: samples at points, a product of two operands, or scores of the rows of a grid.

    The slots are laid out as the operand. None where it is no such sum.
    """
    asking = sum_up(call, operand, axes)
    if asking is not None:
        return Met(asking)
    product = summed_product(call, operand, axes) if call.op == "aten::sum" else None
    if product is not None:
        return product
    summing = call.op.removeprefix("aten::") in SUMS
    scores = shared_sum(operand.value.active, axes) if summing else None
    return None if scores is None else Met(scores, shared_map=True)


def _is_statistic(call: Call, operand: Operand, axes: Sequence[int]) -> bool:
    """Whether it is the maximum, or the sum, that a softmax of tokens written out takes of its scores."""
    slots = operand.value.active
    whole = bool(slots) and all(any(slot.varies(axis) for axis in axes) for slot in slots)
    return whole and operand.tensor.is_floating_point() and normalises(call, operand)


def _statistic(call: Call, operand: Operand) -> Value | tuple[Value, ...]:
    """It names no token. What a sum of positive numbers divides is a softmax from there on, and what a
    log-sum-exp is taken from is the logarithm of one."""
    value = call.carry(operand, single=())
    if call.op == "aten::logsumexp" or (call.op == "aten::sum" and is_positive(operand)):
        call.ledger.remarks.softmaxes[call.node.name] = (call.node, "tokens")
        call.ledger.data_dependent = True  # that it is positive was seen for these inputs
        value = replace(value, softmaxes=value.softmaxes | {call.node.name})
    return (value,) * len(call.result) if isinstance(call.result, tuple) else value


def _axes(call: Call, operand: Operand) -> list[int]:
    dims = call.argument("dim")
    if dims is None or dims == []:
        return list(range(operand.ndim))
    dims = [dims] if isinstance(dims, int) else dims
    return [int(dim) % max(operand.ndim, 1) for dim in dims]


def _survivors(call: Call, operand: Operand, axes: Sequence[int]) -> list[Slot]:
    if not operand.value.labelled:
        return [slot for slot in operand.value.slots if slot.strength == DORMANT]
    slots = operand.value.active
    kept = reduced(operand.ndim, axes, keep=True).survivors(slots)
    if kept:
        return features_of_rows(call, operand, axes, _without_one_key(call, operand, axes, kept))
    if call.op.removeprefix("aten::") not in SUMS and len(axes) == operand.ndim and call.ledger.batch > 1:
        return []  # one extreme or spread of all samples is a number to scale by, and nobody's token
    return pooled_along(call, operand, axes) if operand.tensor.is_floating_point() else []


def _without_one_key(call: Call, operand: Operand, axes: Sequence[int], kept: list[Slot]) -> list[Slot]:
    """Scores of a single key are reduced over it as those of many are: a statistic of rows holds no key."""
    rows = [slot for slot in kept if slot.token_axes]
    along = len(axes) == 1 and axes[0] >= operand.ndim - 2 and operand.shape[axes[0]] == 1
    return rows if along and len(rows) == 1 < len(kept) and is_score(call, operand) else kept


@transfer(*aten(UNTAGGED))
def untagged_pointwise(call: Call) -> Value | tuple[Value, ...]:
    """Pointwise operations that ATen does not tag so, in every overload."""
    if isinstance(call.result, tuple):
        value = call.carry(*call.operands(), slots=call.operands()[0].value.slots)
        return (value,) * len(call.result)
    return pointwise(call)


@transfer("aten::cosine_similarity", "aten::pairwise_distance")
def compared(call: Call) -> Value:
    """Two tensors broadcast and summed over features: scores, if their tokens lie apart."""
    merged = pointwise(call, call.operands()[:2])
    ndim = max(operand.ndim for operand in call.operands()[:2])
    axis = int(call.argument("dim", 1 if call.op == "aten::cosine_similarity" else -1)) % ndim
    keep = bool(call.argument("keepdim", False))
    slots = reduced(ndim, [axis], keep).survivors(merged.slots)
    if len(slots) < len(merged.slots):
        raise ValueError("a comparison that sums over tokens has no transfer function")
    return replace(merged, slots=tuple(slots))


@transfer("aten::glu")
def glu(call: Call) -> Value:
    """Half of the features gates the other half."""
    operand = call.operands()[0]
    axis = int(call.argument("dim", -1)) % operand.ndim
    if any(slot.varies(axis) and operand.tensor.is_floating_point() for slot in operand.value.active):
        raise ValueError("a half of the tokens that gates the other half")
    half = operand.shape[axis] // 2
    slots = [s.run(lambda labels: labels.narrow(axis, 0, half), operand.shape) for s in operand.value.slots]
    return call.carry(operand, slots=slots)


@transfer(*aten(LOSSES))
def loss(call: Call) -> Value:
    """Element by element; a mean of all samples is a number, and nobody's token."""
    return pointwise(call) if call.result.ndim else call.carry(*call.operands())


@transfer(*aten(CLASS_LOSSES))
def loss_of_classes(call: Call) -> Value | tuple[Value, ...]:
    """One number for each token, in the place of its classes on axis 1."""
    operand = call.operands()[0]
    several = isinstance(call.result, tuple | list)
    result = call.result[0] if several else call.result
    axis = min(1, operand.ndim - 1)
    kept = reduced(operand.ndim, [axis]).survivors(operand.value.active) if result.ndim else []
    value = call.carry(operand, slots=kept)
    return (value, *[NOTHING] * (len(call.result) - 1)) if several else value
