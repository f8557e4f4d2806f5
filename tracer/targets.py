"""Targets picked from the model's output, for :meth:`fxplain.Traced.explain_targets`.

Each function here answers with one that takes the model's output and gives a list of targets.
:data:`LARGEST` is a target by itself: the largest element of each sample's output, whatever it is for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from fxplain.errors import TargetError
from fxplain.run.combined import LOG, RAW, Combined, Term
from fxplain.run.ranked import Likeliest
from fxplain.run.wishes import LARGEST, Point

__all__ = [
    "LARGEST",
    "Combined",
    "Likeliest",
    "Picker",
    "Point",
    "confident",
    "contrast",
    "generated",
    "likeliest",
    "log_probability",
    "point",
    "top",
    "total",
]

Picker = Callable[[Any], list[Any]]


def contrast(a: Any, b: Any) -> Combined:
    """Why one answer and not another: the score of ``a`` less that of ``b``.

    Evidence that speaks for both cancels. For words of one place it makes no difference whether scores or
    log-probabilities are subtracted.

    Args:
        a, b: targets, but no functions. With an :class:`fxplain.Explainer`, names as well.

    Example:
        >>> import torch, fxplain
        >>> model = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> x = torch.randn(1, 5, 8)
        >>> print(fxplain.explain(model, x, target=contrast((0, 3), (0, 4))).question)
        the value of output at place 0 of src, index 3, against the value of output at place 0 of src, index 4
    """
    minus = (Term(term.target, -term.weight, term.log) for term in _terms(b))
    return Combined((*_terms(a), *minus))


def log_probability(target: Any = None) -> Combined:
    """The logarithm of the target's probability in place of its score: what speaks against other answers
    counts as well.

    Raises:
        TargetError: when it is explained: the output holds no probabilities, as far as the task is known.
    """
    return Combined(tuple(Term(term.target, term.weight, LOG) for term in _terms(target)))


def total(targets: Iterable[Any]) -> Combined:
    """The sum of several targets: of the words of one answer, say, ``total(map(log_probability, words))``."""
    terms = tuple(term for target in targets for term in _terms(target))
    if not terms:
        raise TargetError("a sum of targets needs some", expected="at least one target", found="none")
    return Combined(terms)


def _terms(target: Any) -> tuple[Term, ...]:
    if callable(target):
        raise TargetError(
            "a function has no place in a sum of targets",
            expected="indices, names, or sums of them",
            found=repr(target),
            hint="write the whole sum as one function of the model's output",
        )
    return target.terms if isinstance(target, Combined) else (Term(target, 1.0, RAW),)


def point(across: float, down: float) -> Point:
    """Of a segmentation: the class at a point, over the places around it that have the same class.

    Args:
        across, down: parts of the picture's width and height, from its left and upper edge, 0 to 1.

    Raises:
        TargetError: when it is explained: the model does not segment, or the point lies outside.
    """
    return Point(float(across), float(down))


def likeliest(count: int, target: Any = None, threshold: float | None = None) -> Likeliest:
    """The likeliest answers, by the model's task: classes, next tokens, the surest queries of a detector each
    with its class, the classes of a segmentation that are predicted at most places.

    Args:
        count: how many of each sample at most.
        target: what is named of them: ``(place,)`` for the likeliest words at one place, a class for the
            surest queries of that class.
        threshold: the least probability; a sample's first answer is there in any case. None: 0.5 for
            detectors, else there is no limit.

    Raises:
        TargetError: when they are looked up: the output has no likeliest answers.

    Example:
        >>> import torch, fxplain
        >>> from fxplain.tasks import Task
        >>> model = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> model.fxplain_task = Task("next token", outputs=("output",))
        >>> x = torch.randn(1, 5, 8)
        >>> found = fxplain.trace(model, x).explain_targets(x, likeliest(2))
        >>> [result.target[0][0] for result in found]
        [4, 4]
    """
    return Likeliest(count, target, threshold)


def top(count: int, output: str = "logits") -> Picker:
    """The classes with the largest scores: first every sample's first, then every sample's second, ...

    Args:
        count: how many of each sample.
        output: name of the output, [batch, class].

    Example:
        >>> import torch
        >>> top(2)({"logits": torch.tensor([[0.1, 0.7, 0.2], [3.0, 1.0, 2.0]])})
        [[1, 0], [2, 2]]
    """

    def pick(made: Any) -> list[Any]:
        scores = _scores(made, output, 2, "[batch, class]")
        if not 0 < count <= scores.shape[-1]:
            raise TargetError(
                "there are not so many classes", expected=f"1 to {scores.shape[-1]}", found=str(count)
            )
        found: list[Any] = scores.topk(count, -1).indices.T.tolist()
        return found

    return pick


def confident(threshold: float, output: str = "logits", nothing: int | None = -1) -> Picker:
    """Of a detector: each query that is sure of an object, with its class, the surest first.

    Args:
        threshold: the least probability (softmax over classes) of the class.
        output: name of the output, [1, query, class].
        nothing: the class that stands for no object; None where there is none.

    Raises:
        TargetError: when it picks: several samples, which need not have equally many such queries.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[9.0, 0.0, 0.0], [0.0, 0.0, 9.0], [0.0, 3.0, 0.0]]])
        >>> confident(0.8)({"logits": logits}), confident(0.95)({"logits": logits})
        ([(0, 0), (2, 1)], [(0, 0)])
    """

    def pick(made: Any) -> list[Any]:
        scores = _scores(made, output, 3, "[1, query, class]")
        if len(scores) != 1:
            raise TargetError(
                "queries are picked of one sample at a time", expected="a batch of 1", found=str(len(scores))
            )
        shares = scores[0].float().softmax(-1)
        if nothing is not None:
            shares[:, nothing] = -1.0
        sure, classes = shares.max(-1)
        order = sure.argsort(descending=True).tolist()
        return [(query, int(classes[query])) for query in order if float(sure[query]) >= threshold]

    return pick


def generated(ids: Tensor, start: int) -> Picker:
    """Of a language model: every token of a text from some place on, each where it was predicted.

    Args:
        ids: [batch, token] (or [token]): what the model read, prompt and answer.
        start: the place of the answer's first token; at least 1.

    Example:
        >>> import torch
        >>> generated(torch.tensor([[5, 8, 2, 7]]), 2)(None)
        [[(1, 2)], [(2, 7)]]
    """

    def pick(made: Any) -> list[Any]:
        rows = (ids if ids.ndim == 2 else ids[None]).tolist()
        if not 1 <= start < len(rows[0]):
            raise TargetError(
                "nothing was generated from there on",
                expected=f"a place from 1 to {len(rows[0]) - 1}",
                found=str(start),
                hint="the first token of all was not predicted by the model",
            )
        return [[(place - 1, row[place]) for row in rows] for place in range(start, len(rows[0]))]

    return pick


def _scores(made: Any, output: str, ndim: int, shape: str) -> Tensor:
    """One of the model's outputs by name; an output that is a bare tensor is meant by any."""
    found = made if isinstance(made, Tensor) else None
    if found is None:
        found = made.get(output) if hasattr(made, "get") else getattr(made, output, None)
    if not isinstance(found, Tensor) or found.ndim != ndim:
        raise TargetError(
            f"the output {output!r} does not hold scores",
            expected=f"a tensor {shape}",
            found=str(list(found.shape)) if isinstance(found, Tensor) else type(found).__name__,
            hint="name another output=, or write the function that picks targets yourself",
        )
    return found
