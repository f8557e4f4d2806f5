"""What a reader of an explanation must know of the graph: approximations, and what is not followed."""

from __future__ import annotations

from collections.abc import Iterator

from fxplain.attention.labelled import Labelled
from fxplain.attention.records import Mixing
from fxplain.attention.unfollowed import carried, followed, makes_scores
from fxplain.labels.call import op_name
from fxplain.labels.labels import STRONG
from fxplain.where import module_path, source_line


def notes_of(labelled: Labelled) -> tuple[str, ...]:
    """What a reader of an explanation must know: steps taken by approximation, and those not followed."""
    notes = list(labelled.captured.notes)
    if labelled.findings.batch_axis is None:
        notes.append(_one_sample(labelled))
    notes += map(mixing_note, labelled.classified.mixings)
    beyond = followed(labelled.findings)
    for node in (node for node in labelled.findings.ledger.summaries if node not in beyond):
        where = module_path(node) or node.name
        notes.append(f"{where} sums tokens without a token-to-token map: relevancy does not pass it")
    for node, role in carried(labelled.findings):
        where = module_path(node) or node.name
        notes.append(f"approximate: the {role} in {where} mixes tokens, which is not followed")
    for node in labelled.findings.ledger.blank:
        where = module_path(node) or node.name
        notes.append(f"{where} weighs places that are no tokens too (padding): their share is in no map")
    notes += [*_taken_for_one(labelled), *_unnamed(labelled)]
    return tuple(dict.fromkeys(notes))


def _one_sample(labelled: Labelled) -> str:
    """That samples, if there are any, are explained as one, and what joins the places along each axis."""
    joins = (
        f"{op_name(node).removeprefix('aten::')} in {module_path(node) or 'the model'} ({source_line(node)}) "
        f"joins places along axis {axis}"
        for axis, node in labelled.findings.joined
    )
    told = "no axis of the inputs holds separate samples: all of them are explained as one sample"
    return "; ".join([told, *joins])


def mixing_note(mixing: Mixing) -> str:
    """What a reader must know of a mixing: the paper has no rule for it."""
    streams = f"{mixing.keys.name} -> {mixing.queries.name}"
    what = "mixes tokens" if mixing.kind is None else f"adds to tokens ({mixing.kind}, approximate)"
    return f"{mixing.op} in {mixing.module or 'the model'} {what}: {streams}"


def _taken_for_one(labelled: Labelled) -> Iterator[str]:
    """Places of one sequence that hold different things, and that no label tells apart."""
    classified = labelled.classified
    new = {int(classified.renumber[code]) for code in labelled.findings.ledger.twins}
    for space in classified.spaces:
        if new & set(range(space.start, space.start + space.size)):
            what = f"tokens of {space.name} stand at several places of one sequence"
            yield f"approximate: {what}, and are taken for one"


def _unnamed(labelled: Labelled) -> Iterator[str]:
    goes = "what it holds goes into those of others, place by place"
    return (f"{name} has no tokens of its own: {goes}" for name in unnamed(labelled))


def unnamed(labelled: Labelled) -> tuple[str, ...]:
    """Inputs whose data reach an output without tokens of their own: they came to tokens of others, or were
    never made tokens of. Not those that only make scores, as biases and masks do. Ids are data once they were
    looked up."""
    ledger, findings = labelled.findings.ledger, labelled.findings
    named = {space.source for space in labelled.classified.spaces}
    data = {root.name for root, *_ in ledger.elements.ranges if root.is_input and root.strength == STRONG}
    data |= {space.source for space in ledger.spaces if space.origin == "input" and not space.filled}
    nodes = {node.name: node for node in findings.values if node.op == "placeholder"}
    found = [p for p in labelled.captured.placeholders if named and p.path in data - named]
    return tuple(p.path for p in found if nodes[p.node].users and not makes_scores(findings, nodes[p.node]))
