"""Records of files that earlier versions wrote, as records of today.

A class whose fields change gets a function here; ``tests/saved/test_saved_older.py`` reads a file of 0.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from fxplain.labels.axes import Axes
from fxplain.labels.batch_axis import Guess
from fxplain.labels.findings import Findings
from fxplain.labels.flows import (
    Copied,
    EdgeList,
    Elementwise,
    Gathered,
    Kernel,
    Map,
    Matrix,
    Operator,
    Sampled,
    Site,
    Sum,
    Window,
    WrittenOut,
)
from fxplain.labels.notebook import Ledger, Remarks
from fxplain.labels.tokens import Tokens
from fxplain.labels.value import GaveWay, Hidden, Single, Value
from fxplain.tasks import Task

Fields = Mapping[str, Any]


def site_of(old: Fields) -> Site:
    """A site of 0.1, which said by a word how its map is had, and had the fields of all kinds."""
    attention = old["role"] == "attention"
    return Site(
        index=old["index"],
        node=old["node"],
        map=_map_of(old),
        shape=old["shape"],
        rows=old["rows"],
        cols=old["cols"],
        softmaxes=old["softmaxes"],
        new_rows=old["pools"] if attention else not old["adds"],
        absorbed=old["absorbed"],
    )


def _map_of(old: Fields) -> Map:
    operands, path = old["operands"], old["path"]
    makers: Mapping[str, Callable[[], Map]] = {
        "weights": lambda: _weights_of(old),
        "fused": lambda: Kernel(*operands),
        "summed": lambda: Sum(old["parts"], old["scales"], old["normaliser"]),
        "pooled": lambda: Elementwise(*operands),
        "joined": lambda: Elementwise(*operands),
        "taps": lambda: Window(*operands, **old["window"]),
        "copied": Copied,
        "gathered": lambda: Gathered(operands, path),
        "operator": lambda: Operator(operands, path),
        "sampled": lambda: Sampled(operands, path),
    }
    return makers[old["form"]]()


def _weights_of(old: Fields) -> Map:
    """A map that is a node's value. The letters were ``map,values->output`` for an attention, and
    ``weights,values->output|map`` for a matrix; of tied rows the matrix lacks the first."""
    held, weighed = old["operands"]
    product, _, matrix = old["axes"].partition("|")
    inputs, output = product.split("->")
    weights, values = inputs.split(",")
    if matrix:
        return Matrix(held, weighed, Axes(weights, values, output, matrix))
    if set(weights) <= set(output) and weights == values:
        return EdgeList(held, weighed)
    axes = Axes(weights[1:] if old["tied"] else weights, values, output, weights)
    return WrittenOut(held, weighed, axes, old["normaliser"], old["divided"], old["ones"])


def findings_of(old: Fields) -> Findings:
    """What 0.1 saw: all inputs had their samples on the same axis."""
    guess = Guess(old["batch_axis"], old["batch"], old["listed"])
    return Findings(old["ledger"], old["outputs"], old["values"], guess, old["joined"])


def ledger_of(old: Fields) -> Ledger:
    """Notes of 0.1, which were one flat record."""
    return Ledger(
        tokens=Tokens(**_renamed(old, {**_same(Tokens), "twins": "repeated", "rows_alike": "shared_rows"})),
        remarks=Remarks(**_renamed(old, {**_same(Remarks), "blank": "padding_weighed"})),
        **_renamed(old, {**_same(Ledger), "beside": "heads"}),
    )


def value_of(old: Fields) -> Value:
    """What 0.1 knew of a tensor, with all that gave way and is hidden beside the rest."""
    gave_way = {"asked": "single", "piled": "several_single", "tied": "shared_map"}
    hidden = {"spectrum": "spectrum", "summed": "summaries", "sampled": "samples"}
    return Value(
        gave_way=GaveWay(**_renamed(old, gave_way)),
        hidden=Hidden(**_renamed(old, hidden)),
        **_renamed(old, _same(Value)),
    )


def _same(kind: Any) -> dict[str, str]:
    """The fields of a record of today, which had these names before too."""
    return {field.name: field.name for field in fields(kind)}


def _renamed(old: Fields, names: Mapping[str, str]) -> dict[str, Any]:
    return {new: old[name] for name, new in names.items() if name in old}


OLDER: Mapping[str, Callable[[Fields], Any]] = {
    "sites.Site": site_of,
    "sites.Window": dict,
    "find.Findings": findings_of,
    "ledger.Ledger": ledger_of,
    "labels.Asked": lambda old: Single(**old),
    "labels.Value": value_of,
    "tasks.Task": lambda old: Task(**old),  # what it did not know of then has the usual value
}
"""Name of a record -> what it is today, from its fields."""
