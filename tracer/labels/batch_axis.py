"""Where the inputs may have their batch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, product

import torch
from torch import Tensor

from fxplain.capture.captured import Captured

MOST_PLACINGS = 8
"""How many ways to tell the axes of inputs that fit on two are tried."""


@dataclass(frozen=True)
class Guess:
    """Where the samples may lie: on an axis of the inputs, or one in each of the inputs of a list."""

    axis: int | None
    batch: int
    listed: Mapping[str, int] = field(default_factory=dict)
    """Path of an input -> the sample that it is."""
    elsewhere: Mapping[str, int] = field(default_factory=dict)
    """Path of an input -> the axis that it has them on, where that is another one than the others'."""

    def axis_of(self, path: str, tensor: Tensor) -> int | None:
        """The axis of an input that holds the samples."""
        if path in self.listed:
            return None
        if path in self.elsewhere:
            return self.elsewhere[path]
        return batch_axis_of(tensor, self.axis, self.batch)


def batch_guesses(captured: Captured, bound: Mapping[str, Tensor]) -> list[Guess]:
    """Where the batch may lie, and its size, in the order tried; one is refuted when attention crosses
    samples.

    The first axis, then the second; but one that has the same size in all floating inputs (masks may be
    laid out otherwise), or in all inputs, goes first. Then that of the integers alone, beside patches of
    all samples' pictures in one row. A guess that fits all inputs goes before all others, and one on another
    axis for each input (:func:`on_own_axes`) before those that fit fewer. Then inputs in
    lists may be a sample each. At last: there is no batch. What nobody reads has no say; nor has a mask in
    whether a guess fits, for it has no tokens.
    """
    read = {node.name for node in captured.graph.graph.nodes if node.op == "placeholder" and node.users}
    given = [p for p in captured.placeholders if p.kind == "input" and bound[p.node].ndim]
    named = [p for p in captured.placeholders if p.kind == "input" and p.node in read]
    paths = {p.path: bound[p.node] for p in named if bound[p.node].ndim} or {
        p.path: bound[p.node] for p in given
    }
    data = {path: tensor for path, tensor in paths.items() if tensor.dtype != torch.bool}
    found = [Guess(axis, size) for axis, size in on_one_axis(list(paths.values()))]
    found += on_own_axes({path: tensor for path, tensor in data.items() if tensor.ndim > 1}, found)
    found.sort(key=lambda guess: 1 if guess.elsewhere else 2 * bool(_misfits(guess, data)))
    lists = samples_in_lists([p.path for p in named])
    listed = [Guess(0, max(lists.values()) + 1, lists)] if lists else []
    return [*found, *listed, Guess(None, 1)]


def on_one_axis(tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Guesses of an axis that all inputs have the samples on, and their number; the likelier first."""
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    guesses: list[tuple[bool, bool, int, int]] = []
    for axis in (0, 1):
        all_sizes, sizes = ([t.shape[axis] for t in group if t.ndim > axis] for group in (tensors, floating))
        if all_sizes:
            common = max(sizes or all_sizes, key=(sizes or all_sizes).count)
            differ = len(set(all_sizes)) > 1 or len(all_sizes) < len(tensors)
            guesses.append((len(set(sizes)) > 1, differ, axis, common))
    found = [(axis, size) for _, _, axis, size in sorted(guesses)]
    firsts = [t.shape[0] for t in tensors if not t.is_floating_point()]
    if floating and firsts and (apart := max(firsts, key=firsts.count)) > 1 and (0, apart) not in found:
        found.append((0, apart))
    return found


def on_own_axes(data: Mapping[str, Tensor], others: Sequence[Guess]) -> Iterator[Guess]:
    """Guesses that some inputs have their samples on the first axis and some on the second, as features with
    the time first beside pictures have.

    Where both axes of an input are of the right size, either may be. Only such as fit all inputs, or more
    than any of the ``others`` does; a single sample, which nothing refutes, must be found in all.
    """
    most = max((len(data) - _misfits(guess, data) for guess in others), default=0)
    sizes = {size: None for tensor in data.values() for size in tensor.shape[:2]}
    for size in sizes:
        fitting = {p: [axis for axis in (0, 1) if t.shape[axis] == size] for p, t in data.items()}
        fitting = {path: axes for path, axes in fitting.items() if axes}
        if len(fitting) < len(data) and (size == 1 or len(fitting) <= most):
            continue
        for axes in islice(product(*fitting.values()), MOST_PLACINGS):
            if len(set(axes)) > 1:
                main = max(axes, key=axes.count)
                placed = zip(fitting, axes, strict=True)
                yield Guess(main, size, elsewhere={path: axis for path, axis in placed if axis != main})


def _misfits(guess: Guess, data: Mapping[str, Tensor]) -> int:
    return sum(guess.axis_of(path, tensor) is None for path, tensor in data.items())


def samples_in_lists(paths: Sequence[str]) -> dict[str, int]:
    """The place of each input that stands in a list, if all lists have one length, and more than one thing.

    >>> samples_in_lists(["pictures.0", "pictures.1", "queries"])
    {'pictures.0': 0, 'pictures.1': 1}
    """
    places: dict[str, int] = {}
    lists: dict[str, set[int]] = {}
    for path in paths:
        name, number, rest = next(iter(re.findall(r"^(.*?)\.(\d+)((?:\..*)?)$", path)), (path, "", ""))
        if number:
            places[path] = int(number)
            lists.setdefault(f"{name}.*{rest}", set()).add(int(number))
    lengths = {len(own) for own in lists.values() if own == set(range(len(own)))}
    whole = all(own == set(range(len(own))) for own in lists.values())
    return places if whole and len(lengths) == 1 and lengths != {1} else {}


def batch_axis_of(tensor: Tensor, axis: int | None, batch: int) -> int | None:
    """The axis of an input that holds the samples, if ``batch`` of them lie on ``axis`` of the inputs.

    States of layers and memories have it behind their first axis, [layer or time, sample, feature], also
    where that of the other inputs is the first.
    """
    if axis is None or tensor.ndim <= axis:
        return None
    if tensor.shape[axis] == batch:
        return axis
    behind = axis == 0 and tensor.ndim == 3 and tensor.is_floating_point() and tensor.shape[1] == batch > 1
    return 1 if behind else None
