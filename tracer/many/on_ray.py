"""The same job on a Ray cluster, by Ray Data: ``pip install 'fxplain[ray]'``."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fxplain.attention.layers import Layers
from fxplain.many.run import Wanted, fill, job_of
from fxplain.many.store import Explanations, Writer, claim_job


def explain_dataset_on_ray(
    make: Callable[[], tuple[Any, Any]],
    folder: str | os.PathLike[str],
    target: Any = None,
    method: str = "relevancy",
    output: str | None = None,
    layers: Layers | None = None,
    batch_size: int = 8,
    prepare: Callable[[Any], Any] | None = None,
    keep_errors: bool = False,
    workers: int = 2,
    chunk: int = 64,
    resources: Mapping[str, Any] | None = None,
) -> Explanations:
    """:func:`fxplain.explain_dataset` by several actors of Ray Data; a chunk whose actor dies goes on
    in another.

    Args:
        make: called once in every actor, and once here: the model, where it is to lie, and the dataset, which
            has places and a length.
        folder: one that all machines see.
        workers: how many actors.
        chunk: how many entries an actor is given at a time, and writes into one file.
        resources: of an actor, as Ray's ``map_batches`` takes them: ``{"num_gpus": 1}``.
        target, method, output, layers, batch_size, prepare, keep_errors: as for :func:`explain_dataset`.

    Raises:
        ImportError: Ray is not installed.
        OutputError: the folder holds explanations of another job.
        Exception: what an actor raised, as Ray tells it.
    """
    import ray.data

    wanted = Wanted(target, method, output, layers, batch_size, keep_errors, prepare)
    model, dataset = make()
    folder = Path(folder).resolve()
    claim_job(folder, job_of(model, wanted))
    done = Explanations(folder)
    left = [{"entry": index} for index in range(len(dataset)) if index not in done]
    if left:
        ray.data.from_items(left).map_batches(
            Worker,
            batch_size=chunk,
            compute=ray.data.ActorPoolStrategy(size=workers),
            fn_constructor_args=(make, str(folder), wanted),
            **(resources or {}),
        ).materialize()
    done = Explanations(folder, done)
    done.write_index()
    return done


class Worker:
    """An actor: a model of its own, and files of its own."""

    def __init__(self, make: Callable[[], tuple[Any, Any]], folder: str, wanted: Wanted) -> None:
        self.model, self.dataset = make()
        self.folder, self.wanted = Path(folder), wanted
        self.name = f"ray{uuid.uuid4().hex[:12]}"
        self.known = Explanations(folder)

    def __call__(self, batch: Mapping[str, Iterable[Any]]) -> dict[str, Any]:
        self.known = Explanations(self.folder, self.known)  # another actor may have died after it wrote
        mine = [index for index in map(int, batch["entry"]) if index not in self.known]
        # whole chunks go into one file: what Ray takes for done is done, and what it gives again is not there
        writer = Writer(self.folder, self.name, size=len(mine) + 1, seconds=float("inf"))
        self.model = fill(self.model, self.dataset, self.wanted, mine, writer)
        return {"entry": batch["entry"]}
