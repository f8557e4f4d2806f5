"""Never explain a graph that is not the model: both run on one input and their outputs are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fxplain.capture.captured import Captured, owned
from fxplain.capture.guard import drawing_from, same_random_numbers, untouched, values_kept
from fxplain.capture.inputs import Layout, described, signature
from fxplain.capture.inputs import flatten as flatten_inputs
from fxplain.capture.outputs import flatten
from fxplain.errors import InputError, NonFiniteError, VerificationError

TOLERANCES = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.float16: 5e-3,
    torch.bfloat16: 4e-2,
}
"""Largest allowed difference, relative to the output's largest magnitude: about five roundings of the
coarsest floating type in play, and 1e-5 for float32."""


def call(model: nn.Module, tensors: Sequence[Tensor], layout: Layout) -> Any:
    """The model's own output on these inputs, the model and the process left as found.

    Raises:
        InputError: the model raised; the message is the model's own.
    """

    def once(watch: bool) -> Any:
        with untouched(model), values_kept(model, watch=watch), same_random_numbers():
            args, kwargs = layout.fill([owned(tensor) for tensor in tensors])
            return model(*args, **kwargs)

    try:
        try:
            return once(watch=True)
        except Exception:  # compiled parts of a model may not bear watching
            return once(watch=False)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise InputError(
            f"the model raised on these inputs: {type(error).__name__}: {error}",
            where=type(model).__name__,
            expected=signature(model),
            found=described(layout),
            hint="call the model with the same inputs outside fxplain; it must run there first",
        ) from error


def run(graph: torch.fx.GraphModule, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The graph's outputs for the values of its placeholders, without gradient."""
    with untouched(None):
        outputs: tuple[Tensor, ...] = torch.fx.Interpreter(graph).run(*values)
    return outputs


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest finite magnitude of ``expected``.

    Equal infinities and NaN at equal places count as equal; other shapes or dtypes give inf.

    Example:
        >>> difference(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
        0.5
    """
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    if not expected.numel():
        return 0.0
    wide = torch.complex128 if expected.is_complex() else torch.float64
    a, b = found.detach().to("cpu", wide), expected.detach().to("cpu", wide)
    same = (a == b) | (a.isnan() & b.isnan())
    finite = b.isfinite()
    if not bool((same | (finite & a.isfinite())).all()):
        return float("inf")
    gap = torch.where(same, 0.0, (a - b).abs()).max().item()
    scale = torch.where(finite, b.abs(), 0.0).max().item()
    if gap == 0:
        return 0.0
    return float(gap / scale) if scale else float("inf")


def compare(found: Sequence[Tensor], expected: Sequence[tuple[str, Tensor]]) -> tuple[float, str]:
    """The largest relative difference over all outputs, and the name of the output it is in."""
    if len(found) != len(expected):
        return float("inf"), f"{len(found)} outputs instead of {len(expected)}"
    worst, where = 0.0, ""
    for tensor, (name, reference) in zip(found, expected, strict=True):
        if (gap := difference(tensor, reference)) > worst:
            worst, where = gap, name
    return worst, where


def tolerance(*groups: Sequence[Tensor]) -> float:
    """The tolerance of the coarsest floating type among these tensors."""
    dtypes = {tensor.dtype for group in groups for tensor in group}
    return max((TOLERANCES.get(dtype, 0.0) for dtype in dtypes), default=0.0) or TOLERANCES[torch.float32]


def check(
    found: Sequence[Tensor], expected: Sequence[tuple[str, Tensor]], allowed: float, strategy: str
) -> float:
    """The largest relative difference; raises :class:`VerificationError` when it exceeds ``allowed``."""
    worst, where = compare(found, expected)
    if not worst <= allowed:
        raise VerificationError(
            "the captured graph does not compute what the model computes",
            where=f"output {where!r}, captured by {strategy}",
            expected=f"a relative difference of at most {allowed:g}",
            found=f"{worst:g}",
            hint="a model that draws random numbers or keeps state between calls cannot be captured",
        )
    return worst


def verify(captured: Captured, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
    """Run graph and model on these inputs; the largest relative difference of their outputs.

    Raises:
        InputError: the inputs do not fit, or the model raised on them.
        NonFiniteError: the model's output holds NaN or inf.
        VerificationError: the difference is above the tolerance for the model's dtype.
    """
    bound = captured.bind(args, kwargs)
    tensors, layout = flatten_inputs(captured.model, args, kwargs, captured.layout)
    with drawing_from(captured.drawn_from):
        expected = flatten(call(captured.model, tensors, layout))
    check_finite_outputs(expected)
    found = run(captured.graph, list(bound.values()))
    allowed = tolerance(list(bound.values()), [tensor for _, tensor in expected])
    return check(found, expected, allowed, captured.strategy)


def check_finite_weights(model: nn.Module) -> None:
    """Raise :class:`NonFiniteError` that names the first parameter with NaN or inf."""
    for path, parameter in model.named_parameters():
        weights = parameter.detach()
        # a sum is not finite if an entry is not, and is had several times faster than a look at each; it may
        # also overflow, so then each is looked at
        if not parameter.is_floating_point() or bool(weights.sum().isfinite()):
            continue
        if bad := int((~weights.isfinite()).sum()):
            raise NonFiniteError(
                "a parameter of the model is not finite",
                where=path,
                expected="finite numbers",
                found=f"{bad} of {parameter.numel()} entries are NaN or inf",
                hint="the weights are damaged, or training diverged",
            )


def check_finite_outputs(outputs: Sequence[tuple[str, Tensor]]) -> None:
    """Raise :class:`NonFiniteError` for NaN or +inf; -inf passes, since models mask logits with it."""
    for name, tensor in outputs:
        if not tensor.is_floating_point():
            continue
        bad = tensor.isnan() | (tensor == float("inf"))
        if bool(bad.any()):
            raise NonFiniteError(
                "the model's output is not finite",
                where=f"output {name!r}",
                expected="finite numbers",
                found=f"{int(bad.sum())} of {tensor.numel()} entries are NaN or inf",
                hint="look for inputs out of range, fully masked rows, or overflow in half precision",
            )
