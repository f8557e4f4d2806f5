"""Many targets of one input: one run of the graph, and gradients of several scores in one backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fxplain.attention.labelled import Labelled
from fxplain.attention.layers import Layers, chosen_sites
from fxplain.attribution.frame import frame_of
from fxplain.attribution.prediction import Mode, Prediction, Ran, aim, output_of, run_graph
from fxplain.attribution.scheduled import Explained, Scheduled
from fxplain.attribution.table import Method
from fxplain.errors import FxplainError, InputError, TargetError, first_line
from fxplain.explanation import check_layers, check_mode, check_understood, result_of, with_matrix
from fxplain.progress import working
from fxplain.result import Result
from fxplain.run.ranked import CONFIDENT, Likeliest, ranked
from fxplain.run.replay import Gradients, Replay, gradients_of
from fxplain.run.target import batch_axis, choose_output
from fxplain.run.wishes import Region

MEMORY = 1 << 30
"""Bytes that gradients of several scores may take together, if nothing else is asked for."""
WORKING = 3
"""How many tensors of the size of the largest one a backward pass holds for each score on its way."""


def explain_each(
    labelled: Labelled,
    bound: Mapping[str, Tensor],
    targets: Sequence[Any] | Callable[[Any], Sequence[Any]] | Likeliest,
    method: Method,
    output: str | None,
    verified: float,
    layers: Layers | None = None,
    verify: bool = False,
    mode: Mode = "auto",
    memory: int = MEMORY,
) -> Iterator[Result]:
    """Explain several targets of one batch, each as :func:`fxplain.explanation.explain_labelled` does.

    Args:
        targets: what to explain, a function from the model's output to that, or the likeliest answers.
        memory: how many bytes the gradients that are had together may take.

    Raises:
        FxplainError: at the first target that cannot be explained.
    """
    chosen = None if layers is None else chosen_sites(labelled.classified, layers)
    check_layers(chosen, method)
    check_mode(mode, method)
    if method.attentions:
        check_understood(labelled)
    own = not callable(targets) and isinstance(targets, Iterable) and any(map(callable, targets))
    ran = run_graph(labelled, bound, method.gradients, method.libra, method.attentions, verify, own, mode)
    note = ""
    if isinstance(targets, Likeliest):
        targets, note = likeliest(targets, ran, output)
    if callable(targets):
        targets = asked(targets, ran)
    if isinstance(targets, str) or not isinstance(targets, Iterable):
        raise TargetError(
            "several targets are a sequence of them", expected="such as [0, 3]", found=repr(targets)
        )
    count = len(targets)
    options = {"chosen": chosen, "mode": mode}
    aimed = [aim(ran, t, output, retain=place + 1 < count, **options) for place, t in enumerate(targets)]
    together = method.gradients and method.attentions and mode != "checkpoint"
    size = chunk_size(ran.run, memory, len(aimed[0].passes)) if together and aimed else 1
    with working(f"explaining {count} answers", total=count) as advance:
        for start in range(0, count, size):
            for found in _of_chunk(method, aimed[start : start + size], together, verified):
                result = with_matrix(found, labelled, bound, method, layers)
                assert isinstance(result, Result)
                advance(1)
                yield replace(result, notes=(*result.notes, note)) if note else result


def _of_chunk(
    method: Method, predictions: Sequence[Prediction], together: bool, verified: float
) -> list[Result]:
    """The results of targets whose gradients are had together, and forgotten here."""
    note = ""
    if together and len(predictions) > 1:
        predictions, note = with_gradients(predictions)
    else:  # which keep what they work out: not beyond this chunk
        predictions = [replace(prediction) for prediction in predictions]
    answers = zip(predictions, _explained(method, predictions), strict=True)
    found = [result_of(prediction, method, explained, verified) for prediction, explained in answers]
    return [replace(result, notes=(*result.notes, note)) for result in found] if note else found


def likeliest(wanted: Likeliest, ran: Ran, output: str | None) -> tuple[list[Any], str]:
    """The likeliest answers as targets: first every sample's first, then every sample's second, ... A sample
    that has fewer stands there with its first again. And a note where some are left out."""
    captured, findings = ran.labelled.captured, ran.labelled.findings
    outputs = [tensor.detach() for tensor in ran.run.outputs]
    place = choose_output(captured.outputs, outputs, output_of(ran, output))
    frame = frame_of(ran.labelled, ran.bound, outputs, place)
    axis = batch_axis(outputs[place], findings.outputs[place], findings.batch)
    samples = outputs[place][None] if axis is None else outputs[place].movedim(axis, 0)
    own = [ranked(scores, wanted, frame, sample) for sample, scores in enumerate(samples)]
    most = max(len(found) for found, _ in own)
    ranks = [[found[rank if rank < len(found) else 0] for found, _ in own] for rank in range(most)]
    left = sum(count for _, count in own)
    least = CONFIDENT if wanted.threshold is None else wanted.threshold
    note = f"{left} less likely answers, below a probability of {least:g}, are left out (threshold=)"
    return [[_as_entry(index) for index in row] for row in ranks], note if left else ""


def _as_entry(index: tuple[int, ...]) -> Any:
    """A target as a list of them holds it."""
    return index if len(index) != 1 or isinstance(index, Region) else index[0]


def asked(targets: Callable[[Any], Sequence[Any]], ran: Ran) -> list[Any]:
    """The targets that a function picks from the model's output."""
    outputs = [tensor.detach() for tensor in ran.run.outputs]
    try:
        return list(targets(ran.labelled.captured.rebuild(outputs)))
    except FxplainError:
        raise
    except Exception as error:
        raise TargetError(
            "the function that picks targets raised an error",
            expected="a function from the model's output to a sequence of targets",
            found=f"{type(error).__name__}: {error}",
            hint=f"the model's outputs are {', '.join(ran.labelled.captured.outputs)}",
        ) from error


def chunk_size(run: Replay, memory: int, passes: int = 1) -> int:
    """For how many targets gradients fit into so many bytes; at least one."""
    if not isinstance(memory, int):
        raise InputError("memory= is a number of bytes", expected="an int", found=repr(memory))
    held = sum(tensor.nbytes for tensor in run.tapped.values() if tensor.requires_grad)
    return max(memory // max(passes * (held + WORKING * run.largest), 1), 1)


def with_gradients(predictions: Sequence[Prediction]) -> tuple[list[Prediction], str]:
    """Predictions of one run with the gradients of all their passes, from one backward pass; and a note
    where that cannot be had."""
    scores = [score for prediction in predictions for score in prediction.passes]
    tapped = predictions[0].run.differentiated
    names = [name for name, tensor in tapped.items() if tensor.requires_grad]
    note = ""
    with torch.enable_grad():
        stacked = torch.stack(scores)
    try:
        found = iter(_of_all(stacked, [tapped[name] for name in names], names))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        note = f"gradients of several targets were taken one by one: {first_line(error)}"
        found = iter([gradients_of(score, tapped, True) for score in scores])
    return [replace(p, given=tuple(next(found) for _ in p.passes)) for p in predictions], note


def _of_all(scores: Tensor, tensors: Sequence[Tensor], names: Sequence[str]) -> list[Gradients]:
    seeds = torch.eye(len(scores), dtype=scores.dtype, device=scores.device)
    grown = torch.autograd.grad(
        scores, tensors, seeds, retain_graph=True, allow_unused=True, is_grads_batched=True
    )
    return [
        {name: None if every is None else every[place] for name, every in zip(names, grown, strict=True)}
        for place in range(len(scores))
    ]


def _explained(method: Method, predictions: Sequence[Prediction]) -> list[Explained]:
    if isinstance(method.explain, Scheduled):
        return method.explain.together(predictions)
    return [method.explain(prediction) for prediction in predictions]
