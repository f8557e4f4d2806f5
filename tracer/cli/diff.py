"""``fxplain diff``: how two models' attention graphs differ; exit codes as those of ``diff``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from fxplain.cli.inspect import table
from fxplain.cli.options import Ask, tell, working
from fxplain.errors import LoadError

if TYPE_CHECKING:
    from fxplain.attention.diff import Change, Facts, Graph, GraphDiff


def run_diff(left: Ask, right: Ask, as_json: bool) -> None:
    """Trace both models, print what differs, and exit with 1 if anything does."""
    from fxplain.attention.diff import diff

    graphs = [_graph(ask) for ask in (left, right)]
    found = diff(*graphs)
    if as_json:
        typer.echo(json.dumps(plain_diff(found, left.model, right.model), indent=2))
    else:
        typer.echo("\n".join(told(found, left.model, right.model)))
    if not found.equal:
        raise typer.Exit(1)


def _graph(ask: Ask) -> Graph:
    """The attention graph of a model, or the one that inspect wrote as JSON."""
    if ask.model.endswith(".json") and Path(ask.model).is_file():
        return _read(Path(ask.model))
    from fxplain.traced import trace

    loaded = ask.load()
    inputs, notes = ask.example(loaded)
    tell(notes, f"{ask.model}: ")
    with working(f"capturing {ask.model} and finding its attentions"):
        return trace(loaded.model, inputs).graph


def _read(path: Path) -> Graph:
    import networkx as nx

    try:
        graph = cast("Graph", nx.node_link_graph(json.loads(path.read_text()), edges="edges"))
    except (ValueError, KeyError, TypeError, AttributeError, nx.NetworkXError):
        graph = nx.MultiDiGraph()
    if not len(graph) or not all("type" in data for _, data in graph.nodes(data=True)):
        raise LoadError(
            "the file holds no attention graph",
            where=str(path),
            hint="fxplain inspect MODEL --out FILE.json writes one",
        )
    return graph


def told(found: GraphDiff, left: str, right: str) -> list[str]:
    """What differs, as lines: a count by kind, then the steps; equal changes in a row are one line."""
    counts = [(kind.replace("_", "-"), str(a), str(b)) for kind, (a, b) in found.counts.items()]
    lines = [f"A  {left}", f"B  {right}", "", *table(("steps", "A", "B"), counts), ""]
    if found.equal:
        return [*lines, "no difference: the attention graphs are alike"]
    lines.append(f"{len(found.changes)} of {len(found.changes) + found.same} steps differ")
    rows = [_row(list(run)) for _, run in groupby(found.changes, key=_alike)]
    return [*lines, *table(("", "A", "B", "module", "what"), rows)]


def _alike(change: Change) -> tuple[Any, ...]:
    step = change.right or change.left
    assert step is not None
    own = () if change.what == "changed" else (_described(step),)
    return (change.what, *own, *(fact for fact in change.facts if fact[0] != "after"), step["type"])


def _row(run: Sequence[Change]) -> tuple[str, ...]:
    first = run[0]
    step = first.right or first.left
    assert step is not None
    what = "; ".join(f"{key}: {_shown(old)} -> {_shown(new)}" for key, old, new in first.facts)
    modules = [str((change.right or change.left or {})["module"]) for change in run]
    shown = modules[0] if len(run) == 1 else f"{modules[0]} ... {modules[-1]}"
    places = [_places([change.left for change in run]), _places([change.right for change in run])]
    return (first.what, *places, shown or "(the model itself)", what or _described(step))


def _places(steps: Sequence[Facts | None]) -> str:
    named = [step for step in steps if step is not None]
    if not named:
        return ""
    mark = "~" if named[0]["type"] == "mixing" else ""
    first, last = (f"{mark}{step['index']}" for step in (named[0], named[-1]))
    return first if first == last else f"{first}..{last}"


def _shown(value: Any) -> str:
    return str(value).replace("encoder_decoder", "encoder-decoder") or "none"


def _described(step: Facts) -> str:
    kind = str(step.get("op") or step["kind"]).replace("_", "-")
    heads = f", {step['heads']} heads" if "heads" in step else ""
    return f"{kind}: {step['queries']} <- {step['keys']}, {step['size']}{heads}"


def plain_diff(found: GraphDiff, left: str, right: str) -> dict[str, Any]:
    """The difference as plain data for JSON."""
    return {
        "a": left,
        "b": right,
        "equal": found.equal,
        "same": found.same,
        "counts": {kind: list(pair) for kind, pair in found.counts.items()},
        "changes": [
            {
                "what": change.what,
                "a": change.left and dict(change.left),
                "b": change.right and dict(change.right),
                "facts": {key: [old, new] for key, old, new in change.facts},
            }
            for change in found.changes
        ],
    }
