"""What is kept of the explanation of one sample of a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fxplain.result import Result


@dataclass(frozen=True)
class Sample:
    """One entry of a dataset, as it is to be explained.

    Args:
        inputs: just as the model is called: a tensor, tuple, dict or BatchEncoding, with a batch axis.
        target: what to explain, as for :meth:`fxplain.Traced.explain`; of several samples one for all, or a
            list. Left out: the target of the whole run.
        key: a name of your own (a file's, say) that comes back with the result.
    """

    inputs: Any
    target: Any = ...
    key: str = ""


@dataclass(frozen=True, eq=False)
class Explained:
    """The explanation of one sample: the place it has in the dataset, and what was found.

    Where the sample could not be explained and errors are kept, ``error`` says why and the rest is empty.
    """

    index: int
    """Place of the entry in the dataset."""
    sample: int = 0
    """Place of the sample in the entry: 0 unless entries are batches."""
    key: str = ""
    relevance: Mapping[str, Tensor] = field(default_factory=dict)
    """By token space, in the shape of its grid: [T], [H, W] or [T, H, W]; on the CPU."""
    score: float = float("nan")
    target: Any = None
    output: str = ""
    question: str = ""
    """What the score answers, in words."""
    verified: float = 0.0
    notes: tuple[str, ...] = ()
    error: str = ""
    read: tuple[tuple[str, int], ...] = ()
    """Tokens whose rows were read, by space and place there: their entries hold themselves, and are set aside
    where relevance is shown. Empty where the method goes by no rows."""
    digest: str = ""
    """Of the input tensors of the entry: says later whether the dataset is still the same."""


def of_result(
    result: Result, places: list[tuple[int, int, str, str]], names: Mapping[int, str] | None = None
) -> list[Explained]:
    """A result's samples one by one; ``places``: index, sample, key and digest of each; ``names`` of classes
    or words that the question does not know."""
    grids = {space.name: result.relevance.grid(space.name).detach().cpu() for space in result.spaces}
    target = result.target
    return [
        Explained(
            index=index,
            sample=sample,
            key=key,
            relevance={name: grid[row].clone() for name, grid in grids.items()},
            score=float(result.score[row]),
            target=_written(target[row])
            if isinstance(target, (tuple, list))
            else getattr(target, "__name__", "function"),
            output=result.output,
            question=str(result.questions[row].named(names or {})) if row < len(result.questions) else "",
            verified=result.verified,
            notes=result.notes,
            read=_read(result, row),
            digest=digest,
        )
        for row, (index, sample, key, digest) in enumerate(places)
    ]


def _read(result: Result, row: int) -> tuple[tuple[str, int], ...]:
    tokens = [token for token, weight in result.readout[row] if weight] if result.aside else []
    if 2 * len(tokens) > sum(space.size for space in result.spaces):  # a mean over all: none is set aside
        return ()
    return tuple(
        (space.name, token - space.start)
        for token in tokens
        for space in result.spaces
        if space.start <= token < space.start + space.size
    )


def _written(target: Any) -> Any:
    """An index as it is; a sum of targets has no other form in a file than its text."""
    return target if isinstance(target, (tuple, list)) else str(target)
