"""What is known of an output beside its numbers: its axes, the model's task, and which places are padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from fxplain.attention.labelled import Labelled
from fxplain.attention.records import TokenSpace
from fxplain.capture.captured import Captured
from fxplain.labels.value import Value
from fxplain.questions import Axis, AxisKind
from fxplain.run.asked import Frame
from fxplain.run.target import batch_axis
from fxplain.tasks import Task, task_of
from fxplain.where import module_path


def frame_of(labelled: Labelled, bound: Mapping[str, Tensor], outputs: Sequence[Tensor], place: int) -> Frame:
    """What is known of one output beside its numbers.

    Args:
        labelled, bound, outputs: the graph with its labels, a tensor for each placeholder, and what it gave.
        place: which of the outputs.
    """
    captured, findings = labelled.captured, labelled.findings
    tensor, value = outputs[place], findings.outputs[place]
    across = batch_axis(tensor, value, findings.batch)
    axes = tuple(
        _axis(labelled, value, axis, size) for axis, size in enumerate(tensor.shape) if axis != across
    )
    task = _task(captured, place)
    named = dict(zip(captured.outputs, outputs, strict=True))
    boxes = named[task.boxes].detach() if task.boxes in named else None
    name = captured.outputs[place]
    beside = tuple(other for other in task.outputs if other in named and other != name)
    return Frame(name, axes, task, _real(captured, bound, task, findings.batch, axes), boxes, beside)


def _task(captured: Captured, place: int) -> Task:
    """The model's task. Of that of a part, only the padding, where the output is not the part's."""
    task = task_of(captured.model)
    if not task.within:
        return task
    made = captured.output_nodes[place]
    path = module_path(made) if made is not None else ""
    inside = path == task.within or path.startswith(task.within + ".")
    return task if inside else Task(padding=task.padding)


def _real(
    captured: Captured, bound: Mapping[str, Tensor], task: Task, batch: int, axes: Sequence[Axis]
) -> Tensor | None:
    """[batch, place]: which places of the first axis are no padding; None if all are, or it is not known."""
    given = {p.path: bound[p.node] for p in captured.placeholders if p.kind == "input"}
    masks = [given[name] for name in task.padding if name in given]
    placed = bool(axes) and axes[0].kind != "features"
    fits = [mask for mask in masks if placed and tuple(mask.shape) == (batch, axes[0].size)]
    real = (fits[0] != 0).cpu() if fits else None
    return real if real is not None and bool(real.any(-1).all()) else None


def _axis(labelled: Labelled, value: Value, axis: int, size: int) -> Axis:
    """What one axis of an output ranges over, read off its labels: a row of tokens one after the other, of
    the space that has most of them."""
    slot = next((slot for slot in value.active if axis in slot.token_axes), None)
    if slot is None:
        return Axis("features", "", size)
    tokens = labelled.classified.token_ids(slot.labels).movedim(axis, 0).reshape(size, -1)[:, 0]
    steps = tokens - torch.arange(size, device=tokens.device)
    rows: dict[int, tuple[int, TokenSpace, int]] = {}
    for space in labelled.classified.spaces:
        inside = steps[(tokens >= space.start) & (tokens < space.start + space.size)]
        if len(inside) and bool((inside == inside[0]).all()):
            rows[space.start] = (len(inside), space, int(inside[0]) - space.start)
    if not rows or max(count for count, _, _ in rows.values()) < 2 <= size:
        return Axis("tokens", "", size)
    _, space, first = max(rows.values(), key=lambda row: (row[1].size == size, row[0]))
    kind = "queries" if space.origin == "parameter" else "places" if len(space.grid) > 1 else "tokens"
    return Axis(cast(AxisKind, kind), space.name, size, first)
