"""From a live model and one call's arguments to a verified graph, by the first strategy that succeeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from fxplain.capture.captured import Captured, Draft, owned, pruned
from fxplain.capture.export import export
from fxplain.capture.guard import random_state, same_random_numbers, untouched, values_kept
from fxplain.capture.inputs import Layout, flatten
from fxplain.capture.outputs import flatten as flatten_output
from fxplain.capture.outputs import skeleton
from fxplain.capture.passes.added_products import apart
from fxplain.capture.passes.causal_masks import as_flags
from fxplain.capture.passes.clean import draws_random_numbers
from fxplain.capture.passes.dense import without_sparse
from fxplain.capture.placeholder import Placeholder
from fxplain.capture.program import as_module
from fxplain.capture.record import record
from fxplain.capture.verify import (
    call,
    check,
    check_finite_outputs,
    check_finite_weights,
    run,
    tolerance,
)
from fxplain.errors import CaptureError, DeviceError, InputError, VerificationError

__all__ = ["STRATEGIES", "Captured", "Placeholder", "capture"]

Strategy = Callable[[nn.Module, list[Tensor], Layout], Draft]
Run = Callable[[Captured, Mapping[str, Tensor]], Sequence[Tensor]]
STRATEGIES: tuple[tuple[str, Strategy], ...] = (("export", export), ("record", record))
"""Tried in this order; the first whose graph reproduces the model's output wins."""


def capture(
    model: nn.Module | ExportedProgram,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    before: Sequence[tuple[str, Strategy]] = (),
    run: Run | None = None,
) -> Captured:
    """Capture ``model(*args, **kwargs)`` in eval mode as a graph that reproduces the model's output.

    ``before``: what to try before :data:`STRATEGIES`. ``run``: runs a graph on a tensor for each placeholder;
    what it returns is compared with the model's outputs.

    Raises:
        InputError: the model raised on these arguments, or the model is no ``torch.nn.Module`` or
            ``ExportedProgram``.
        DeviceError: weights hold no data, or the model cannot bring what lies on several devices together.
        NonFiniteError: NaN or inf in a parameter or in the output.
        CaptureError: every strategy failed; the message has each one's reason.
        VerificationError: graphs were made, and none reproduces the output.

    Example:
        >>> captured = capture(nn.Linear(2, 3), (torch.ones(1, 2),), {})
        >>> captured.strategy, captured.outputs, [placeholder.path for placeholder in captured.placeholders]
        ('export', ('output',), ['weight', 'bias', 'input'])
    """
    if isinstance(model, ExportedProgram):
        return replace(capture(as_module(model), args, kwargs, run=run), strategy="program")
    model = _plain(model)
    tensors, layout = flatten(model, args, kwargs)
    check_initialised(model)
    places = devices_of(model, tensors, layout)
    check_finite_weights(model)
    tensors = [owned(tensor) for tensor in tensors]  # the model may write into them
    output = _output(model, tensors, layout, places)
    reasons: dict[str, str] = {}
    mismatch: VerificationError | None = None
    for name, strategy in (*before, *STRATEGIES):
        try:
            with untouched(model), values_kept(model, tensors, watch=False), same_random_numbers():
                draft = pruned(as_flags(apart(without_sparse(strategy(model, tensors, layout)))))
            return _verified(
                _captured(model, draft, tensors, layout, output, name, reasons), output, run or _run
            )
        except VerificationError as error:
            mismatch, reasons[name] = error, _reason(error)
        except Exception as error:  # any failure of a strategy is a reason to try the next one
            reasons[name] = _reason(error)
    if mismatch is not None:
        raise mismatch
    raise CaptureError(
        "the model could not be captured as a graph",
        where=type(model).__name__,
        found="; ".join(f"{name}: {reason}" for name, reason in reasons.items()),
        hint="report the model: fxplain should capture every model that runs on this input",
    )


def _run(captured: Captured, bound: Mapping[str, Tensor]) -> Sequence[Tensor]:
    """The outputs of a graph on a tensor for each placeholder."""
    return run(captured.graph, list(bound.values()))


def _captured(
    model: nn.Module,
    draft: Draft,
    tensors: list[Tensor],
    layout: Layout,
    output: Any,
    strategy: str,
    reasons: Mapping[str, str],
) -> Captured:
    notes = draft.notes
    if any(module.training for module in model.modules()):
        notes += ("the model was in training mode; captured and explained in eval mode",)
    if random := draws_random_numbers(draft.graph):
        notes += (f"the model draws random numbers (first at node {random}); each run may differ",)
    return Captured(
        graph=draft.graph,
        placeholders=draft.placeholders,
        outputs=tuple(name for name, _ in flatten_output(output)),
        strategy=strategy,
        reasons=dict(reasons),
        specialised=draft.specialised,
        verified=0.0,
        notes=notes,
        model=model,
        layout=layout,
        structure=skeleton(output),
        constants=draft.constants,
        example=tuple(tensors),
        path=draft.path,
        drawn_from=random_state() if draft.drew else None,  # all that ran put back what it drew
    )


def _verified(captured: Captured, output: Any, run: Run) -> Captured:
    """The captured graph, once it was run and gave what the model gave."""
    bound, expected = captured.bind_tensors(captured.example), flatten_output(output)
    allowed = tolerance(list(bound.values()), [tensor for _, tensor in expected])
    return replace(captured, verified=check(run(captured, bound), expected, allowed, captured.strategy))


def _plain(model: Any) -> nn.Module:
    """The module itself, without the wrappers that ``torch.compile`` and data parallelism put around it."""
    if not isinstance(model, nn.Module):
        raise InputError(
            "the model is not a PyTorch module",
            expected="a torch.nn.Module or an ExportedProgram",
            found=type(model).__name__,
        )
    inner = getattr(model, "_orig_mod", None)
    if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        inner = model.module
    return _plain(inner) if isinstance(inner, nn.Module) else model


def check_initialised(model: nn.Module) -> None:
    """Raise :class:`InputError` for a lazy module, whose parameters have no shape before its first call."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if nn.parameter.is_lazy(tensor):
            raise InputError(
                "the model is not initialised yet",
                where=name,
                expected="parameters with shapes",
                found="a lazy parameter",
                hint="call the model once on an input before it is explained",
            )


def devices_of(model: nn.Module, tensors: list[Tensor], layout: Layout) -> dict[torch.device, str]:
    """The devices that weights and inputs lie on, each with a name of what lies there.

    Raises:
        DeviceError: one of them holds no data.
    """
    names = list(model.named_parameters()) + list(model.named_buffers())
    names += [(f"input {spec.path}", tensor) for spec, tensor in zip(layout.tensors, tensors, strict=True)]
    places: dict[torch.device, str] = {}
    for name, tensor in names:
        if tensor.is_meta:
            raise DeviceError(
                "the model has no weights yet",
                where=name,
                expected="tensors that hold data",
                found="a tensor on the meta device",
                hint="load the weights, or move the model with to_empty and initialise it; weights that are "
                "offloaded and only come when they are needed cannot be explained where they are",
            )
        if tensor.dim():  # single numbers on the CPU work with tensors anywhere
            places.setdefault(tensor.device, name)
    return places


def _output(
    model: nn.Module, tensors: list[Tensor], layout: Layout, places: Mapping[torch.device, str]
) -> Any:
    """The model's own output. It may well be spread over devices, if it moves what passes between them."""
    try:
        output = call(model, tensors, layout)
    except InputError as error:
        if len(places) < 2:
            raise
        raise DeviceError(
            "the model and its inputs lie on several devices, and the model does not bring them together",
            expected="one device for all parameters, buffers and inputs, or a model that was dispatched",
            found=", ".join(f"{name} on {device}" for device, name in places.items()),
            hint="move them together: model.to(device) and the inputs too",
        ) from error
    tensors_in_it = flatten_output(output)
    if not tensors_in_it:
        raise InputError(
            "the model returns no tensor",
            where=type(model).__name__,
            expected="a tensor, or a container or dataclass with tensors",
            found=type(output).__name__,
        )
    check_finite_outputs(tensors_in_it)
    return output


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
