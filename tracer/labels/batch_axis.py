"""Where the inputs may have their batch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fxplain.capture.captured import Captured


@dataclass(frozen=True)
class Guess:
    """Where the samples may lie: on an axis of the inputs, or one in each of the inputs of a list."""

    axis: int | None
    batch: int
    listed: Mapping[str, int] = field(default_factory=dict)
    """Path of an input -> the sample that it is."""

    def axis_of(self, tensor: Tensor) -> int | None:
        """The axis of an input that holds the samples."""
        return batch_axis_of(tensor, self.axis, self.batch)


def batch_guesses(captured: Captured, bound: Mapping[str, Tensor]) -> list[Guess]:
    """Where the batch may lie, and its size, in the order tried; one is refuted when attention crosses
    samples.

    The first axis, then the second; but one that has the same size in all floating inputs (masks may be
    laid out otherwise), or in all inputs, goes first. Then that of the integers alone, beside patches of
    all samples' pictures in one row. A guess that fits all inputs goes before all others. Then inputs in
    lists may be a sample each. At last: there is no batch. What nobody reads has no say; nor has a mask in
    whether a guess fits, for it has no tokens.
    """
    read = {node.name for node in captured.graph.graph.nodes if node.op == "placeholder" and node.users}
    given = [bound[p.node] for p in captured.placeholders if p.kind == "input" and bound[p.node].ndim]
    named = [bound[p.node] for p in captured.placeholders if p.kind == "input" and p.node in read]
    tensors = [tensor for tensor in named if tensor.ndim] or given
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    guesses: list[tuple[bool, bool, int, int]] = []
    for axis in (0, 1):
        all_sizes, sizes = ([t.shape[axis] for t in group if t.ndim > axis] for group in (tensors, floating))
        if all_sizes:
            common = max(sizes or all_sizes, key=(sizes or all_sizes).count)
            differ = len(set(all_sizes)) > 1 or len(all_sizes) < len(tensors)
            guesses.append((len(set(sizes)) > 1, differ, axis, common))
    found: list[tuple[int | None, int]] = [(axis, size) for _, _, axis, size in sorted(guesses)]
    firsts = [t.shape[0] for t in tensors if not t.is_floating_point()]
    if floating and firsts and (apart := max(firsts, key=firsts.count)) > 1 and (0, apart) not in found:
        found.append((0, apart))
    data = [tensor for tensor in tensors if tensor.dtype != torch.bool]
    found.sort(key=lambda guess: any(batch_axis_of(tensor, *guess) is None for tensor in data))
    lists = samples_in_lists([p.path for p in captured.placeholders if p.kind == "input" and p.node in read])
    listed = [Guess(0, max(lists.values()) + 1, lists)] if lists else []
    return [*(Guess(axis, size) for axis, size in found), *listed, Guess(None, 1)]


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
