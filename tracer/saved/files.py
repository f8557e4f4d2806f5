"""Write a traced model to a file, and read it: an exported program with what was found in it as JSON.

The file is what ``torch.export.save`` writes: ``torch.export.load`` reads it as well. Neither side pickles.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from fxplain.attention.labelled import Labelled, labelled_by
from fxplain.capture.audit import audit, record_of
from fxplain.capture.captured import Captured
from fxplain.capture.guard import quiet, untouched
from fxplain.capture.inputs import Layout
from fxplain.capture.verify import difference, tolerance, verify
from fxplain.errors import (
    FxplainError,
    LoadError,
    OutputError,
    UnsafeFileError,
    VerificationError,
    first_line,
)
from fxplain.files import path_of, replacing
from fxplain.labels.findings import Findings
from fxplain.saved.codec import decode, encode
from fxplain.saved.model import SavedModel, parameters_of
from fxplain.saved.program import constants_of, exported, listed, placeholders_of, restored, run_flat
from fxplain.tasks import UNKNOWN, task_of

FORMAT = "fxplain traced model 2"
READ = (FORMAT, "fxplain traced model 1")
FOUND = "fxplain.json"
MOST = 1 << 16
"""How many numbers of an output are kept, evenly spread, to compare with at load."""


def save(labelled: Labelled, path: str | os.PathLike[str]) -> None:
    """See :meth:`fxplain.Traced.save`."""
    captured = labelled.captured
    if captured.specialised:
        raise OutputError(
            "a recorded graph cannot be saved: it holds for the very input of its recording",
            expected="a model that torch.export can capture",
            found=captured.reasons.get("export", captured.strategy),
            hint="explain the model itself: it is recorded again for each input",
        )
    args, kwargs = captured.layout.fill(captured.example)
    with replacing(path, suffix=".pt2") as temporary:
        with untouched(None):
            verified = verify(captured, args, kwargs)  # weights may have changed since the trace
            bound = captured.bind(args, kwargs)
        try:
            text = json.dumps(_found(labelled, bound, verified))
            with quiet():
                program = exported(captured, bound)
                torch.export.save(program, str(temporary), extra_files={FOUND: text})
            again = read(temporary, libraries_of(captured.graph.graph))
            if repr(again.captured.layout) != repr(captured.layout):
                raise TypeError("inputs that are neither tensors nor plain values and containers")
        except OSError:
            raise
        except Exception as error:  # torch raises whatever it likes for what its format has no form for
            raise OutputError(
                "the traced model has no form as a file",
                where=str(path),
                expected="operations of torch, weights that are plain tensors, and inputs that are tensors, "
                "numbers and texts in plain containers",
                found=str(error) if isinstance(error, FxplainError) else first_line(error),
            ) from error


def _found(labelled: Labelled, bound: Mapping[str, Tensor], verified: float) -> dict[str, Any]:
    captured = labelled.captured
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        outputs = run_flat(captured.graph, list(bound.values()))
    content = {
        "outputs": captured.outputs,
        "strategy": captured.strategy,
        "reasons": dict(captured.reasons),
        "verified": verified,
        "notes": captured.notes,
        "layout": captured.layout,
        "structure": captured.structure,
        "parameters": parameters_of(captured.model),
        "example": tuple(captured.example),
        "given": [_spread(output) for output in outputs],
        "findings": labelled.findings,
        "task": task_of(captured.model),
    }
    nodes = listed(captured.graph.graph)
    return {"format": FORMAT, "torch": torch.__version__, "nodes": nodes, "found": encode(content)}


def _spread(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1)
    return flat[:: -(-flat.numel() // MOST) or 1]


def read(path: str | os.PathLike[str], operations: Collection[str] = ()) -> Labelled:
    """What was found in the model of a file that :func:`save` wrote; see :func:`fxplain.load`."""
    path = path_of(path)
    if not path.is_file():
        raise LoadError("there is no such traced model", where=str(path))
    _audit(path, operations)
    text = record_of(path, f"extra/{FOUND}")
    if text is None:
        raise LoadError(
            "the exported program was not saved by fxplain: nothing was found in it yet",
            where=str(path),
            hint="trace it: fxplain.trace(torch.export.load(path), inputs)",
        )
    try:
        with quiet():
            program = torch.export.load(str(path))
        labelled, example, given = _labelled(program, json.loads(text))
        _check(labelled.captured, example, given, path)
    except FxplainError:
        raise
    except Exception as error:  # a damaged file may break anything on the way
        raise LoadError(
            "the traced model cannot be read",
            where=str(path),
            expected=f"a file written by this version of fxplain, with torch {torch.__version__} or near",
            found=first_line(error),
            hint="trace and save the model again",
        ) from error
    return labelled


def _audit(path: Path, operations: Collection[str]) -> None:
    try:
        audit(path, operations)
    except UnsafeFileError as error:
        raise UnsafeFileError(
            str(error).split("\n  next step")[0],
            hint="an operation of a library that you trust: import the library, and name it in operations=; "
            "anything else was not written by fxplain",
        ) from error


def libraries_of(graph: fx.Graph) -> set[str]:
    """The libraries other than torch whose operations a graph has."""
    names = {node.target.namespace for node in graph.nodes if isinstance(node.target, torch._ops.OpOverload)}
    return names - {"aten", "prims"}


def _labelled(program: Any, facts: Mapping[str, Any]) -> tuple[Labelled, Sequence[Tensor], Sequence[Tensor]]:
    if facts["format"] not in READ:
        raise ValueError(f"the format {facts['format']!r}, none of {READ}")
    graph = restored(program, facts["nodes"])
    found = decode(facts["found"], {node.name: node for node in graph.graph.nodes})
    layout, findings = found["layout"], found["findings"]
    if not isinstance(layout, Layout) or not isinstance(findings, Findings):
        raise TypeError("no layout, or no labels")
    placeholders = placeholders_of(program, graph.graph, [tensor.path for tensor in layout.tensors])
    model = SavedModel(program.state_dict, found["parameters"])
    model.fxplain_task = found.get("task", UNKNOWN)
    captured = Captured(
        graph=graph,
        placeholders=placeholders,
        outputs=found["outputs"],
        strategy=found["strategy"],
        reasons=found["reasons"],
        specialised=False,
        verified=found["verified"],
        notes=found["notes"],
        model=model,
        layout=layout,
        structure=found["structure"],
        constants=constants_of(program, placeholders),
        example=found["example"],
    )
    model.labelled = labelled_by(captured, findings)
    return model.labelled, found["example"], found["given"]


def _check(captured: Captured, example: Sequence[Tensor], given: Sequence[Tensor], path: Path) -> None:
    """Run the graph on the input of the trace and compare with what it gave when it was saved."""
    args, kwargs = captured.layout.fill(example)
    values = list(captured.bind(args, kwargs).values())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        outputs = run_flat(captured.graph, values)
    allowed = tolerance(values, outputs)
    gaps = [difference(_spread(new), old) for new, old in zip(outputs, given, strict=True)]
    if not max(gaps, default=0.0) <= allowed:
        raise VerificationError(
            "the graph of the traced model gives something else than when it was saved",
            where=str(path),
            expected=f"a relative difference of at most {allowed:g}",
            found=f"{max(gaps):g} at output {captured.outputs[gaps.index(max(gaps))]!r}",
            hint="the file is damaged, or this torch computes otherwise; trace and save the model again",
        )
