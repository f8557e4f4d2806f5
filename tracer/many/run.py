"""Explain a dataset: an iterator over its samples, and the same with results on disk that can be resumed."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fxplain.attention.layers import Layers
from fxplain.errors import FxplainError, InputError
from fxplain.many.padding import Padded, same
from fxplain.many.records import Explained, Sample, of_result
from fxplain.many.samples import (
    Group,
    Places,
    check_entries,
    check_order,
    count_of,
    digest,
    digest_of,
    entries,
    groups,
)
from fxplain.many.store import Explanations, Writer, claim_job, only_worker
from fxplain.many.workers import part_of_environment
from fxplain.result import Result

if TYPE_CHECKING:
    from fxplain.traced import Traced

Part = tuple[int, int]
"""Number of a worker, and how many there are: it takes the entries whose place modulo the count is it."""


@dataclass(frozen=True)
class Wanted:
    """What is asked for each sample."""

    target: Any = None
    method: str = "relevancy"
    output: str | None = None
    layers: Layers | None = None
    batch_size: int = 8
    keep_errors: bool = False
    prepare: Callable[[Any], Any] | None = None
    names: Mapping[int, str] | None = None


def explain_all(
    model: Any,
    dataset: Iterable[Any],
    target: Any = None,
    method: str = "relevancy",
    output: str | None = None,
    layers: Layers | None = None,
    batch_size: int = 8,
    prepare: Callable[[Any], Any] | None = None,
    keep_errors: bool = False,
    progress: bool | None = None,
    part: Part | None = None,
    names: Mapping[int, str] | None = None,
) -> Iterator[Explained]:
    """Explain every sample of a dataset, one after the other as they are done.

    Entries of one sample and the same layout are explained together; so results come in another order, and
    each says its place. At most 16 batches' worth of entries are held at a time.

    Args:
        model: a module, or what :func:`fxplain.trace` and :func:`fxplain.load` give.
        dataset: a sequence, a map-style or iterable dataset, or a DataLoader.
        target: what to explain in each sample, as for :meth:`fxplain.Traced.explain`, unless the entry says
            it itself (:class:`fxplain.Sample`).
        method, output, layers: as for :meth:`fxplain.Traced.explain`.
        batch_size: how many samples go together; 1: each by itself. Entries that are batches stay so.
        prepare: makes of an entry the inputs of the model, with a batch axis, or a :class:`fxplain.Sample`.
            None: entries are that already.
        keep_errors: go on where a sample cannot be explained; what came of it has an ``error``.
        progress: a bar on standard error; None: only on a terminal.
        part: (number of this worker, how many there are); None: as ``torchrun`` and ``accelerate launch``
            say, else all of it.
        names: of classes or words, index -> name, for questions; models of transformers have their own.

    Raises:
        FxplainError: a sample that cannot be explained, unless errors are kept; it names the place.

    Example:
        >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> found = explain_all(layer, [torch.randn(1, 5, 8), torch.randn(1, 4, 8)], target=(0, 3))
        >>> sorted((one.index, tuple(one.relevance["src"].shape)) for one in found)
        [(0, (5,)), (1, (4,))]
    """
    wanted = Wanted(target, method, output, layers, batch_size, keep_errors, prepare, names)
    check_entries(dataset)
    number, count = _checked(part)
    total = count_of(dataset)
    total = None if total is None else len(range(number, total, count))
    _, found = _started(model, dataset, wanted, lambda index: index % count == number)
    with closing(found), _bar(total, progress) as advance:
        for records in found:
            advance(len({record.index for record in records}))
            yield from records


def explain_dataset(
    model: Any,
    dataset: Iterable[Any],
    folder: str | os.PathLike[str],
    target: Any = None,
    method: str = "relevancy",
    output: str | None = None,
    layers: Layers | None = None,
    batch_size: int = 8,
    prepare: Callable[[Any], Any] | None = None,
    keep_errors: bool = False,
    progress: bool | None = None,
    part: Part | None = None,
    per_file: int = 64,
    names: Mapping[int, str] | None = None,
) -> Explanations:
    """Explain every sample of a dataset into a folder; run again, it goes on with what is not there yet.

    Results are written as they come, in files of ``per_file`` entries (or what half a minute gave), each
    whole or not at all. After an interruption of any kind the same call explains the rest: nothing is lost
    but what had not been written, and nothing is there twice. Several processes may fill one folder, each its
    ``part``.

    Args:
        folder: made if it is not there. It must not hold results of another model, method or target.
        model, dataset, target, method, output, layers, batch_size, prepare, keep_errors, progress, part: as
            for :func:`explain_all`. The dataset must give the same entries in the same order each time.
        per_file: how many entries go into one file.
        names: as for :func:`explain_all`.

    Returns:
        All results of the folder, those of other workers too as far as they are there.

    Raises:
        InputError: a DataLoader that shuffles, or a dataset that has changed.
        OutputError: the folder is of another job, or another process works on the same part.
        FxplainError: a sample that cannot be explained, unless errors are kept; it names the place.

    Example:
        >>> import tempfile
        >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> dataset = [torch.randn(1, 5, 8) for _ in range(3)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = explain_dataset(layer, dataset, folder, target=(0, 3))
        ...     len(found), tuple(found[2][0].relevance["src"].shape)
        (3, (5,))
    """
    check_entries(dataset)
    check_order(dataset)
    wanted = Wanted(target, method, output, layers, batch_size, keep_errors, prepare, names)
    (number, count), folder = _checked(part), Path(folder)
    claim_job(folder, job_of(model, wanted))
    with only_worker(folder, number):
        known = Explanations(folder)
        _check_same(dataset, wanted, known)
        total = count_of(dataset)
        left = None if total is None else sum(i not in known for i in range(number, total, count))
        with _bar(left, progress) as advance:
            writer = Writer(folder, f"{number:04d}", per_file)
            fill(model, dataset, wanted, lambda i: i % count == number and i not in known, writer, advance)
    done = Explanations(folder)
    if total is None or len(done) >= total:
        done.write_index()
    return done


def _checked(part: Part | None) -> Part:
    number, count = part or part_of_environment()
    if not 0 <= number < count:
        raise InputError(
            "there is no such part of the dataset",
            expected="(number, count) with 0 <= number < count",
            found=str(part),
        )
    return number, count


def fill(
    model: Any,
    dataset: Iterable[Any],
    wanted: Wanted,
    mine: Places,
    writer: Writer,
    advance: Callable[[int], Any] = lambda count: None,
) -> Any:
    """Explain some entries into files; the model as it was traced, for the next ones."""
    traced, found = _started(model, dataset, wanted, mine)
    try:
        with closing(found):
            for records in found:
                writer.add(records)
                advance(len({record.index for record in records}))
    finally:
        writer.flush()
    return traced


def _started(
    model: Any, dataset: Iterable[Any], wanted: Wanted, mine: Places
) -> tuple[Any, Generator[list[Explained], None, None]]:
    """The model, traced on the first of some entries that it takes, and the records of some at a time."""
    samples = entries(dataset, mine, wanted.prepare, wanted.target)
    failed: list[Explained] = []
    for index, sample in samples:
        try:
            if isinstance(sample, FxplainError):
                raise sample
            traced = _traced(model, sample.inputs)
        except FxplainError as error:
            failed.append(_failed(index, sample, error, wanted))
            continue
        return traced, _records(traced, chain([(index, sample)], samples), failed, wanted)
    return model, (records for records in [failed] if records)


def _records(
    traced: Traced,
    samples: Iterable[tuple[int, Sample | FxplainError]],
    failed: list[Explained],
    wanted: Wanted,
) -> Generator[list[Explained], None, None]:
    def good() -> Iterator[tuple[int, Sample]]:
        for index, sample in samples:
            if isinstance(sample, Sample):
                yield index, sample
            else:
                failed.append(_failed(index, sample, sample, wanted))

    padding: dict[str, bool] = {}
    for group in groups(traced.model, good(), wanted.batch_size, traced.batch_axes, padding):
        yield [*failed, *_of_group(traced, group, wanted, padding)]
        failed.clear()
    if failed:
        yield failed


def _failed(index: int, sample: Sample | FxplainError, error: FxplainError, wanted: Wanted) -> Explained:
    """The record of an entry that cannot be explained; raises its error unless errors are kept."""
    key = sample.key if isinstance(sample, Sample) else ""
    if not wanted.keep_errors:
        error.args = (f"{error}\n  entry of the dataset: {index}{f' ({key})' if key else ''}",)
        raise error
    own = digest_of(sample.inputs) if isinstance(sample, Sample) else ""
    return Explained(index, key=key, error=str(error), digest=own)


def _traced(model: Any, inputs: Any) -> Traced:
    from fxplain.traced import Traced, trace

    return model if isinstance(model, Traced) else trace(model, inputs)


def _of_group(traced: Traced, group: Group, wanted: Wanted, padding: dict[str, bool]) -> list[Explained]:
    """A group that fails is taken apart, to tell the sample that does not bear it.

    Args:
        padding: kind of sample -> whether padding changes nothing, of the kinds that were looked at.
    """
    alone = [Group((member,), member[1].inputs) for member in group.members]
    try:
        result = traced.explain(
            group.inputs, group.target, wanted.method, wanted.output, layers=wanted.layers
        )
        found = of_result(result, _places(group, result), wanted.names)
        if group.padded is None:
            return found
        cut = [group.padded.cut(record, row, result.spaces) for row, record in enumerate(found)]
        without = [record for record in cut if record is not None]
        if len(without) < len(cut):
            padding[group.padded.kind] = False
        elif _is_seen(traced, alone, group.padded, without, wanted, padding):
            return without
    except FxplainError as error:
        if len(group.members) == 1 and group.padded is None:
            return [_failed(*group.members[0][:2], error, wanted)]
    return [record for one in alone for record in _of_group(traced, one, wanted, padding)]


def _is_seen(
    traced: Traced,
    alone: list[Group],
    padded: Padded,
    found: list[Explained],
    wanted: Wanted,
    padding: dict[str, bool],
) -> bool:
    """Whether samples of this kind are explained alike with padding and without: of the first batch, the
    shortest is."""
    if padded.kind not in padding:
        shortest = padded.lengths.index(min(padded.lengths))
        (record,) = _of_group(traced, alone[shortest], wanted, padding)
        padding[padded.kind] = same(found[shortest], record)
    return padding[padded.kind]


def _places(group: Group, result: Result) -> list[tuple[int, int, str, str]]:
    if len(group.members) == 1:
        index, sample, own = group.members[0]
        return [(index, row, sample.key, own) for row in range(result.batch)]
    if result.batch != len(group.members):
        raise InputError("the model does not take these samples together", found=f"{result.batch} samples")
    return [(index, 0, sample.key, own) for index, sample, own in group.members]


def job_of(model: Any, wanted: Wanted) -> dict[str, Any]:
    """What makes two runs the same job."""
    target = wanted.target
    named = getattr(target, "__qualname__", None) if callable(target) else repr(target)
    return {
        "model": fingerprint(model),
        "method": wanted.method,
        "target": named,
        "output": wanted.output,
        "layers": repr(wanted.layers),
    }


def fingerprint(model: Any) -> str:
    """Sixteen letters that a model with other weights does not have: from some numbers of every tensor."""
    from fxplain.traced import Traced

    model = model.model if isinstance(model, Traced) else model
    named = [*model.named_parameters(), *model.named_buffers()] if hasattr(model, "named_parameters") else []
    few = [
        t.detach().reshape(-1)[:: max(t.numel() // 16, 1)]
        for _, t in sorted(named, key=lambda entry: entry[0])
    ]
    return digest([*few, torch.tensor([t.numel() for _, t in named])])


def _check_same(dataset: Any, wanted: Wanted, known: Explanations) -> None:
    """Look at one entry that is done: what stands at its place must be what was explained.

    Raises:
        InputError: it is not.
    """
    first = next(iter(known), None)
    if first is None or iter(dataset) is dataset:  # what can be read once only is not read for this
        return
    own = next(iter(entries(dataset, lambda index: index == first, wanted.prepare, None)), None)
    found = digest_of(own[1].inputs) if own is not None and isinstance(own[1], Sample) else ""
    if found != known.digest(first):
        raise InputError(
            "the dataset is not the one that the folder's explanations are of",
            where=f"entry {first}",
            expected="the same entries in the same order",
            found="no such entry" if own is None else "other inputs",
            hint="take another folder, or a dataset that does not shuffle or draw random numbers",
        )


@contextmanager
def _bar(total: int | None, shown: bool | None) -> Iterator[Callable[[int], Any]]:
    from tqdm import tqdm

    disable = None if shown is None else not shown  # None: where there is no terminal
    with tqdm(total=total, disable=disable, unit="entry", desc="explained") as bar:
        yield bar.update
