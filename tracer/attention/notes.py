"""What a reader of an explanation must know of the graph: approximations, and what is not followed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from fxplain.attention.gave_way import endings, unnamed, weighing
from fxplain.attention.labelled import Labelled
from fxplain.attention.records import Mixing
from fxplain.attention.unfollowed import carried, followed, unheard
from fxplain.labels.call import op_name
from fxplain.where import module_path, source_line


def notes_of(labelled: Labelled, shares: Mapping[str, float] = MappingProxyType({})) -> tuple[str, ...]:
    """What a reader of an explanation must know: steps taken by approximation, and those not followed.

    Args:
        labelled: the graph and what is known of its tokens.
        shares: input -> the part of the score's gradient times input that no relevance tells, where known.
    """
    notes = list(labelled.captured.notes)
    if labelled.findings.batch_axis is None:
        notes.append(_one_sample(labelled))
    elif labelled.findings.doubted:
        notes.append(_taken_to_lie(labelled))
    notes += map(mixing_note, labelled.classified.mixings)
    beyond = followed(labelled.findings)
    for node in (node for node in labelled.findings.ledger.remarks.summaries if node not in beyond):
        where = module_path(node) or node.name
        notes.append(f"{where} sums tokens without a token-to-token map: relevancy does not pass it")
    for node, role in carried(labelled.findings):
        where = module_path(node) or node.name
        notes.append(f"approximate: the {role} in {where} mixes tokens, which is not followed")
    for node in labelled.findings.ledger.remarks.padding_weighed:
        where = module_path(node) or node.name
        notes.append(f"{where} weighs places that are no tokens too (padding): their share is in no map")
    notes += [*_taken_for_one(labelled), *_passed_over(labelled)]
    notes += [*_unnamed(labelled, shares), *_unreached(labelled, shares)]
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


def _taken_to_lie(labelled: Labelled) -> str:
    """Where the samples are taken to lie, though neither a map nor the outputs tell it."""
    guess = labelled.findings.guess
    given = zip(labelled.captured.layout.tensors, labelled.captured.example, strict=True)
    axes = [(known.path, guess.axis_of(known.path, tensor)) for known, tensor in given]
    told = ", ".join(f"axis {axis} of {path}" for path, axis in axes if axis is not None)
    return f"ambiguous: the samples are taken to lie on {told}; on other axes they would fit as well"


def mixing_note(mixing: Mixing) -> str:
    """What a reader must know of a mixing: the paper has no rule for it."""
    streams = f"{mixing.keys.name} -> {mixing.queries.name}"
    what = "mixes tokens" if mixing.kind is None else f"adds to tokens ({mixing.kind}, approximate)"
    return f"{mixing.op} in {mixing.module or 'the model'} {what}: {streams}"


def _taken_for_one(labelled: Labelled) -> Iterator[str]:
    """Places of one sequence that hold different things, and that no label tells apart; and queries whose
    rows of a map are added up."""
    classified = labelled.classified
    new = {int(classified.renumber[code]) for code in labelled.findings.ledger.tokens.repeated}
    for site in (site for site in classified.sites if site.role == "attention"):
        plan = labelled.plans[site.index]
        new.update(plan.queries[plan.rows_apiece > 1].tolist())
    for space in classified.spaces:
        if new & set(range(space.start, space.start + space.size)):
            what = f"tokens of {space.name} stand at several places of one sequence"
            yield f"approximate: {what}, and are taken for one"


def _passed_over(labelled: Labelled) -> Iterator[str]:
    """Where tokens come to each other while no label says so: one note for each space and sort."""
    found: dict[tuple[str, str], list[str]] = {}
    spaces = labelled.classified.spaces
    for each in labelled.passed_over:
        name = next(s.name for s in spaces if s.start <= each.token < s.start + s.size)
        place = f"{module_path(each.node) or 'the model'} ({source_line(each.node) or each.node.name})"
        found.setdefault((each.how, name), []).append(place)
    for (how, name), places in found.items():
        others = len(set(places)) - 1
        where = places[0] + (f" and {others} other place{'s' if others > 1 else ''}" if others else "")
        if how == "statistics":
            yield f"approximate: {where} takes statistics of several tokens of {name}, which is not followed"
        else:
            what = "take in what was mixed of them before any attention"
            yield f"approximate: tokens of {name} {what}, in {where}, which is not followed"


def _unnamed(labelled: Labelled, shares: Mapping[str, float]) -> Iterator[str]:
    """Inputs without tokens of their own, and where what they hold goes; not those that do not move the
    score."""
    for source in unnamed(labelled):
        share = shares.get(source)
        if share == 0:
            continue
        first = next(endings(labelled, source), None)
        way = "it goes into no tokens" if first is None else str(first)
        told = "" if share is None else f"; it has {_percent(share)} of the score's gradient x input"
        yield f"{source} has no tokens of its own, and so no relevance: {way}{told}"
    for source in weighing(labelled):
        yield f"{source} has no tokens of its own, and so no relevance: it only makes weights between tokens"


def _unreached(labelled: Labelled, shares: Mapping[str, float]) -> Iterator[str]:
    """Inputs with tokens that move the score, though steps do not lead to them, and what is not followed."""
    classified = labelled.classified
    silent = unheard(labelled.findings, classified.renumber, {site.index for site in classified.sites})
    where = [f"{module_path(node) or 'the model'} ({source_line(node) or node.name})" for node in silent]
    missing = unnamed(labelled)
    for source, share in shares.items():
        if source not in missing and share:
            why = f": {', '.join(dict.fromkeys(where))} not followed" if where else ""
            told = f"{_percent(share)} of the score's gradient x input is at tokens of {source}"
            yield f"{told} that no relevance reaches{why}"


def tells_of(notes: Iterable[str], source: str) -> bool:
    """Whether notes say that an input has no relevance, or less than it should have, and its share."""
    own, reached = f"{source} has no tokens of its own", f"is at tokens of {source} that no relevance reaches"
    return any(note.startswith(own) or reached in note for note in notes)


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "less than 1%"
