"""What a person gives as a target, and sums of targets: a contrast, a log-probability, a part of an answer.

What each part leaves open is chosen as for a target by itself (:mod:`fxplain.run.asked`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fxplain.errors import TargetError
from fxplain.questions import Part, Question
from fxplain.run import asked as single
from fxplain.run.asked import Frame
from fxplain.run.wishes import Wish
from fxplain.run.wishes import score_at as single_score

RAW, LOG, SIGMOID = "", "softmax", "sigmoid"


@dataclass(frozen=True)
class Term:
    """One part of a sum.

    Args:
        target: what a target by itself may be, but for a function.
        weight: what its score is multiplied by.
        log: empty for the score as the model gives it; else the logarithm of its probability, by a
            ``softmax`` over the last axis, or a ``sigmoid`` where each class has a probability of its own.
    """

    target: Any
    weight: float = 1.0
    log: str = RAW

    def __str__(self) -> str:
        times = "" if abs(self.weight) == 1 else f"{abs(self.weight):g} "
        return f"{times}{'log ' if self.log else ''}{self.target}"


@dataclass(frozen=True)
class Combined:
    """A sum of targets of one sample; made by the functions of :mod:`fxplain.targets`.

    Example:
        >>> print(Combined((Term(3), Term(5, weight=-1))))
        3 - 5
    """

    terms: tuple[Term, ...]

    def __str__(self) -> str:
        first, *rest = self.terms
        said = [f"{'-' if first.weight < 0 else ''}{first}"]
        return " ".join([*said, *(f"{'-' if term.weight < 0 else '+'} {term}" for term in rest)])

    def mapped(self, change: Callable[[Any], Any]) -> Combined:
        """The same sum of other targets."""
        return Combined(tuple(replace(term, target=change(term.target)) for term in self.terms))


Asked = tuple[tuple[int, ...] | Combined, Question]


def asked(scores: Tensor, target: Any, frame: Frame, sample: int) -> Asked:
    """As :func:`fxplain.run.asked.asked`, for sums as well: every part in full, and the question in words.

    Raises:
        TargetError: as there; or a log-probability is asked for where there are no probabilities.
    """
    if not isinstance(target, Combined):
        return single.asked(scores, target, frame, sample)
    terms, parts = [], []
    for term in target.terms:
        index, question = single.asked(scores, term.target, frame, sample)
        log = term.log
        if log:
            _check_probability(question, frame)
            log = SIGMOID if frame.independent else LOG
        terms.append(Term(index, term.weight, log))
        parts.append(Part(term.weight, bool(log), question))
    return Combined(tuple(terms)), Question("combined", frame.output, parts=tuple(parts))


def _check_probability(question: Question, frame: Frame) -> None:
    if question.probability is None:
        raise TargetError(
            "there is no probability whose logarithm could be explained",
            where=f"output {frame.output!r}",
            expected="an output of classes or words, of a model whose task is known",
            found=str(question),
            hint="explain the score as it is, or let the model say what it is for: "
            'model.fxplain_task = fxplain.tasks.Task("classes")',
        )


def score_at(scores: Tensor, index: Sequence[int] | Combined) -> Tensor:
    """One sample's score at an index, over a region, or summed over the parts of a sum."""
    if not isinstance(index, Combined):
        return single_score(scores, index)
    return torch.stack([term.weight * _term_at(scores, term) for term in index.terms]).sum()


def _term_at(scores: Tensor, term: Term) -> Tensor:
    if not term.log:
        return single_score(scores, term.target)
    *place, label = term.target
    row = scores[tuple(place)]
    logs = torch.nn.functional.logsigmoid(row) if term.log == SIGMOID else row.log_softmax(-1)
    return logs[label]


def parts_of(index: tuple[int, ...] | Combined) -> tuple[tuple[int, ...], ...]:
    """The index of every part; of what is no sum, itself."""
    return tuple(term.target for term in index.terms) if isinstance(index, Combined) else (index,)


def each_target(target: Any, samples: int) -> list[Any]:
    """One target for each sample, of one for all or of a list.

    Raises:
        TargetError: something in it is no target, or there are not as many as samples.
    """
    if isinstance(target, Tensor):
        target = target.tolist()
        if isinstance(target, int):
            return [target] * samples
    elif hasattr(target, "tolist") and not isinstance(target, int):
        target = target.tolist()
    if isinstance(target, bool | float):
        raise _no_index(target)
    if isinstance(target, list):
        entries = [tuple(entry) if isinstance(entry, list) else entry for entry in target]
        for entry in entries:
            _check_index(entry)
        if len(entries) != samples:
            raise TargetError(
                "one target per sample is needed", expected=f"{samples} targets", found=f"{len(entries)}"
            )
        return entries
    if isinstance(target, Combined):
        _check_index(target)
    elif not (target is None or isinstance(target, int | tuple | Wish)):
        raise TargetError(
            "this is no target",
            expected="None, int, tuple, tensor or callable",
            found=type(target).__name__,
        )
    return [target] * samples


def _check_index(target: Any) -> None:
    """Refuse what is no index, nor a sum of them.

    Raises:
        TargetError: it is none.
    """
    if isinstance(target, Combined):
        for term in target.terms:
            _check_index(term.target)
        return
    flat = target if isinstance(target, tuple) else () if isinstance(target, Wish) else (target,)
    if not all(one is None or (isinstance(one, int) and not isinstance(one, bool)) for one in flat):
        raise _no_index(target)


def _no_index(target: Any) -> TargetError:
    return TargetError(
        "a target is an index", expected="None, int, tuple, tensor or callable", found=repr(target)
    )
