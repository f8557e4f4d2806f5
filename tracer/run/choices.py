"""What can be asked of an output of which no question is the usual one: each choice with an example."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fxplain.errors import TargetError
from fxplain.tasks import TaskKind

Choice = tuple[str, str]
"""What is asked, and how it is written."""


def ambiguous(kind: TaskKind, output: str, shape: Sequence[int], found: str, other: str = "") -> TargetError:
    """The error that says which questions an output can be asked.

    Args:
        kind: what the output holds.
        output: its name.
        shape: of one sample's output.
        found: what the output holds, in words.
        other: name of another output, which can be asked as well.
    """
    choices = list(_CHOICES[kind](_written(output), shape))
    if other:
        choices.append(("another output", f"output={other!r}"))
    return TargetError(
        f"the output {output!r} can be asked in several ways, and none is the usual one",
        expected="; ".join(f"{what}: {how}" for what, how in choices),
        found=found,
        hint="choose one of these",
    )


def _written(output: str) -> str:
    """An output as a function of the model's output writes it; a model's only tensor is its output."""
    return "out" if output == "output" else f"out.{output}"


def _of_classes(out: str, shape: Sequence[int]) -> tuple[Choice, ...]:
    label = min(3, shape[0] - 1)
    return (
        ("one class, over the places where it is predicted", f"target={label}, or its name"),
        ("one class at one place", f"target=({label}, row, column)"),
    )


def _of_boxes(out: str, shape: Sequence[int]) -> tuple[Choice, ...]:
    if len(shape) == 2:
        query = min(7, shape[0] - 1)
        return (("one number of one query", f"target=({query}, 0), the first number of query {query}"),)
    return (("one number", f"target=({', '.join('0' for _ in shape)})"),)


def _of_masks(out: str, shape: Sequence[int]) -> tuple[Choice, ...]:
    which = ", ".join("0" for _ in shape[:-2])
    chosen = f"{out}[:, {which}]" if which else out
    return (
        ("one place of it", f"target=({which + ', ' if which else ''}row, column)"),
        ("its mean over the whole picture", f"target=lambda out: {chosen}.flatten(1).mean(-1)"),
        (
            "its mean over a region, a boolean tensor [row, column]",
            f"target=lambda out: {chosen}.flatten(1)[:, region.flatten()].mean(-1)",
        ),
    )


def _of_words(out: str, shape: Sequence[int]) -> tuple[Choice, ...]:
    place, word = min(4, shape[0] - 1), min(17, shape[-1] - 1)
    return (
        (
            "one word at one place, such as a masked one",
            f"target=({place}, {word}), word {word} at place {place}",
        ),
        ("the likeliest word at one place", f"target=({place},)"),
    )


def _of_coordinates(out: str, shape: Sequence[int]) -> tuple[Choice, ...]:
    vector = {1: out, 2: f"{out}.mean(1)"}.get(len(shape), f"{out}.flatten(2).mean(-1)")
    feature = min(3, shape[0 if len(shape) > 2 else -1] - 1)
    one = {1: f"target={feature}", 2: f"target=(place, {feature})"}.get(
        len(shape), f"target=({feature}, row, column)"
    )
    return (
        ("the similarity to another text or picture", f"target=lambda out: {vector} @ other"),
        ("one coordinate", one),
        ("the length of the vector", f"target=lambda out: {vector}.norm(dim=-1)"),
    )


_CHOICES: Mapping[TaskKind, Callable[[str, Sequence[int]], tuple[Choice, ...]]] = {
    "places": _of_classes,
    "boxes": _of_boxes,
    "masks": _of_masks,
    "words": _of_words,
    "embedding": _of_coordinates,
}
