"""Linear operators over tokens that have no matrix in the graph: transforms, running sums, solved systems.

Each place of the result stands for the token that lay there, and takes in others. How much is had from the
operator itself, by its gradient from one place at a time: ⟨∂y/∂oᵢ, contribution of token j to oᵢ⟩, which is
what ∇A ⊙ A is for an attention. Of what is not linear that is the first order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx

from fxplain.labels.call import Call, aten
from fxplain.labels.flows import Operator
from fxplain.labels.labels import STRONG, Slot, codes_of, compact, samples_of
from fxplain.labels.value import Operand, Spectrum, Value
from fxplain.ops.table import transfer
from fxplain.recognise.around import between

MOST_TOKENS = 512
"""A backward pass for each token is more than one would wait for beyond this."""


def follow_operator(call: Call, source: fx.Node, given: Slot, made: Slot, alone: bool = True) -> Slot | None:
    """Write down that the tokens of ``made``, on the result, take in those of ``given``, on the source.

    Returns ``made`` with the step behind it. None where it is not followed: too many tokens, tokens of
    parameters, or another step on the way that would be counted twice. It is this operation ``alone``, or
    all that lies between the source and its result.
    """
    ledger, shape = call.ledger, call.ledger.shapes.get(source.name)
    codes = torch.unique(codes_of(made.labels))
    path = (call.node,) if alone else between(call.node, {source})
    sites = {site.node for site in ledger.sites}
    if shape is None or given.strength < STRONG or len(codes) > MOST_TOKENS or sites & set(path):
        return None
    rows = made.labels.reshape(*made.labels.shape, *[1] * given.labels.ndim)
    cols = given.labels.reshape(*[1] * made.labels.ndim, *given.labels.shape)
    on_map = Slot(rows, made.strength, made.reads), Slot(cols, given.strength, given.reads)
    if given.labels.ndim != len(shape):
        return None
    site = ledger.add_site(
        node=call.node,
        map=Operator((source,), path),
        shape=(*made.labels.shape, *given.labels.shape),
        rows=on_map[0],
        cols=on_map[1],
    )
    return replace(made, reads=made.reads | given.reads | {site.index})


SOLVING = "solved system", "a linear system over tokens mixes those that it couples"


@transfer(
    *aten("linalg_inv inverse linalg_inv_ex linalg_pinv matrix_exp linalg_matrix_exp linalg_matrix_power")
)
def matrix(call: Call) -> Value | tuple[Value, ...]:
    """A function of a map is a map between the same tokens."""
    operand = call.operands()[0]
    _check_map(call, operand)
    slots = operand.value.active
    if "pinv" in call.op:  # [row, column] becomes [column, row], and the two may be of other sizes
        slots = tuple(slot.run(lambda labels: labels.mT, operand.shape) for slot in slots)
    value = call.carry(operand, slots=slots, softmaxes=frozenset())
    return (value,) * len(call.result) if isinstance(call.result, tuple) else value


def _check_map(call: Call, operand: Operand) -> None:
    """Raise where a matrix is no map of tokens; samples along its rows or columns are none."""
    slots = operand.value.active
    for slot in slots:
        samples = samples_of(slot.labels)
        call.ledger.crossing |= any(compact(samples).shape[axis] > 1 for axis in (-1, -2))
    if len(slots) == 1 and slots[0].token_axes & {operand.ndim - 1, operand.ndim - 2}:
        raise ValueError("a matrix whose rows alone are tokens")


@transfer(*aten("linalg_solve_triangular linalg_solve cholesky_solve triangular_solve"))
def solve(call: Call) -> Value | tuple[Value, ...]:
    """The places of the right-hand side stay those of its tokens; a system for none is a map itself."""
    system, given = call.operands()[:2]
    if call.op in ("aten::cholesky_solve", "aten::triangular_solve"):
        system, given = given, system
    if not given.value.labelled:
        _check_map(call, system)
        value = call.carry(system, given, slots=system.value.active, softmaxes=frozenset())
    else:
        value = call.carry(given, system, slots=_taken_in(call, system, given), softmaxes=frozenset())
    return (value,) * len(call.result) if isinstance(call.result, tuple) else value


def _taken_in(call: Call, system: Operand, given: Operand) -> list[Slot]:
    """The slots of the right-hand side; those along the coupled axis with what they take in."""
    left = bool(call.argument("left", True))
    axis = given.ndim - (2 if left else 1)
    if given.ndim != call.result.ndim:
        raise ValueError("a system solved for a batch of vectors")
    found = []
    for slot in given.value.active:
        if slot.varies(axis) and given.node is not None:
            call.ledger.remarks.unfollowed[call.node] = SOLVING
            slot = follow_operator(call, given.node, slot, slot) or slot
        found.append(slot)
    return found


FORWARD = "fft_fft fft_rfft fft_fft2 fft_rfft2 fft_fftn fft_rfftn"
BACKWARD = "fft_ifft fft_irfft fft_ifft2 fft_irfft2 fft_ifftn fft_irfftn fft_hfft"
MIXING = "FFT mixing", "a Fourier transform along tokens mixes all of them"
LAST_TWO = [-2, -1]


@transfer(*aten(FORWARD))
def forward(call: Call) -> Value:
    """Labels of tokens along the transformed axes are set aside; others stay."""
    operand = call.operands()[0]
    axes = _axes(call, operand)
    if not any(slot.varies(axis) for slot in operand.value.active for axis in axes):
        return call.carry(operand, slots=operand.value.active)
    call.ledger.remarks.unfollowed[call.node] = MIXING
    return call.carry(operand, spectrum=Spectrum(operand.value.active, operand.shape, operand.node))


@transfer(*aten(BACKWARD))
def backward(call: Call) -> Value:
    """The tokens whose spectrum it was come back to their places."""
    operand = call.operands()[0]
    known = operand.value.hidden.spectrum
    if known is not None:
        if call.result.ndim != len(known.shape):
            raise ValueError("a spectrum of tokens is transformed back to other axes")
        return call.carry(operand, slots=_mixed(call, known), spectrum=None)
    if any(slot.varies(axis) for slot in operand.value.active for axis in _axes(call, operand)):
        call.ledger.remarks.unfollowed[call.node] = MIXING
    return call.carry(operand, slots=operand.value.active)


@transfer("aten::fft_fftshift", "aten::fft_ifftshift")
def shifted(call: Call) -> Value:
    """A spectrum in another order; tokens in another order, where there is none."""
    operand = call.operands()[0]
    slots = [slot.run(lambda labels: _again(call, labels), operand.shape) for slot in operand.value.slots]
    return call.carry(operand, slots=slots)


def taken_for_data(call: Call, value: Value) -> Value:
    """The value of a spectrum's real part or size: tokens are back where the shape is theirs."""
    known = value.hidden.spectrum
    if known is None or value.slots or tuple(call.result.shape) != known.shape:
        return value
    return value.having(slots=tuple(_mixed(call, known)), spectrum=None)


def _mixed(call: Call, known: Spectrum) -> list[Slot]:
    """The tokens at their places in the result, where each has taken in the others."""
    found = []
    for slot in known.slots:
        made = replace(slot, labels=_fitted(slot.labels, known.shape, call.result.shape))
        taken = (
            follow_operator(call, known.source, slot, made, alone=False) if known.source is not None else None
        )
        found.append(taken or made)
    return found


def _fitted(labels: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Labels of a tensor that is longer now, for it was padded, or shorter; places beyond have none."""
    for axis, size in enumerate(labels.shape):
        if size > 1 and new[axis] != old[axis]:
            kept = labels.narrow(axis, 0, min(size, new[axis]))
            beyond = [new[axis] - kept.shape[axis] if a == axis else n for a, n in enumerate(kept.shape)]
            labels = torch.cat([kept, kept.new_zeros(beyond)], axis)
    return labels


def _again(call: Call, labels: Tensor) -> Tensor:
    moved: Tensor = call.node.target(labels, *call.args[1:], **call.kwargs)  # type: ignore[operator]
    return moved


def _axes(call: Call, operand: Operand) -> list[int]:
    """The transformed axes: all of them, the last two or the last one, where none are named."""
    default = -1 if call.op.removeprefix("aten::fft_").removeprefix("i") in ("fft", "rfft", "hfft") else None
    dims = call.argument("dim", LAST_TWO if call.op.endswith("2") else default)
    dims = list(range(operand.ndim)) if dims is None else [dims] if isinstance(dims, int) else list(dims)
    return [int(dim) % operand.ndim for dim in dims]
