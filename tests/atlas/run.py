"""Runs registries through worker processes, one model at a time each; writes a line of JSON for each."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from atlas.cases import registry
from atlas.judge import judge

MEMORY = 12 << 30
"""Bytes of address space that a worker may take."""
IMPORTS = 60
"""Seconds for a worker to begin."""
RECYCLE = 20
"""Models after which a worker makes place for a fresh one, for memory adds up."""
WAITING = 20
"""How many times longer a worker may take than it computes: a busy machine must not decide over a model."""

Task = tuple[str, str]
"""Registry and name of a model."""
Judge = Callable[[Any, str, str], Any]
"""(registry, its name, a model's name) -> a verdict that has ``record()``; a function of a module."""


def tasks(registries: Sequence[str], only: str | None) -> list[Task]:
    """All models of these registries whose name holds the pattern."""
    return [
        (library, name)
        for library in registries
        for name in registry(library).names()
        if only is None or re.search(only, name)
    ]


def finished(results: Path) -> dict[Task, dict[str, Any]]:
    """The last record of every model in a file of results."""
    records: dict[Task, dict[str, Any]] = {}
    if results.exists():
        for line in results.read_text().splitlines():
            record = json.loads(line)
            records[record["registry"], record["name"]] = record
    return records


def run(todo: Sequence[Task], results: Path, workers: int, timeout: float, by: Judge = judge) -> None:
    """Judge these models and append their records to ``results``.

    Args:
        timeout: seconds that a worker may **compute** for each: it does not matter how busy the machine is.
    """
    made_at = revision()
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a") as file, tqdm(total=len(todo), unit="model") as bar:
        for record in records(todo, workers, timeout, by):
            file.write(json.dumps({**record, "revision": made_at}) + "\n")
            file.flush()
            bar.set_postfix_str(f"{record['name']}: {record['outcome']}"[:60])
            bar.update()


def revision() -> str:
    """The commit that is judged, with a plus where files differ from it; empty where there is no git."""
    said = os.environ.get("ATLAS_REVISION")
    if said is not None:  # a copy of the tree, which lies in no repository
        return said
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip()


def records(todo: Sequence[Task], workers: int, timeout: float, by: Judge) -> Iterator[dict[str, Any]]:
    """Judge models in worker processes; yields records as they come."""
    queue = deque(todo)
    crew: list[_Worker] = []
    try:
        while queue or crew:
            while queue and len(crew) < workers:
                crew.append(_Worker.start(queue.popleft(), timeout, by))
            for worker in _due(crew):
                yield worker.collect()
                if queue and worker.is_fit():
                    worker.give(queue.popleft(), timeout)
                else:
                    worker.stop()
                    crew.remove(worker)
    finally:
        for worker in crew:
            worker.stop()


def _due(crew: Sequence[_Worker]) -> list[_Worker]:
    """The workers that have answered, died, or run out of time; waits for one of them."""
    soonest = min(worker.deadline for worker in crew)
    wait([worker.pipe for worker in crew], timeout=max(soonest - time.monotonic(), 0))
    return [worker for worker in crew if worker.pipe.poll() or worker.deadline <= time.monotonic()]


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    task: Task
    deadline: float
    done: int = 0
    is_busy: bool = True

    @classmethod
    def start(cls, task: Task, timeout: float, by: Judge) -> _Worker:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(there, by), daemon=True)
        process.start()
        there.close()
        worker = cls(process, here, task, 0.0)
        worker.give(task, timeout)
        return worker

    def give(self, task: Task, timeout: float) -> None:
        self.task, self.is_busy = task, True
        self.deadline = time.monotonic() + WAITING * timeout + IMPORTS
        self.pipe.send((task, timeout))

    def collect(self) -> dict[str, Any]:
        """The record of the task, also where the worker died over it."""
        self.done += 1
        self.is_busy = False
        library, name = self.task
        lost = {"registry": library, "name": name, "broken": [], "message": ""}
        try:
            if self.pipe.poll():
                record: dict[str, Any] = self.pipe.recv()
                return record
            self.process.kill()
            self.process.join()
            return {**lost, "outcome": "timeout", "reason": "the time limit"}
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            if code == -signal.SIGPROF:
                return {**lost, "outcome": "timeout", "reason": "the time limit"}
            return {**lost, "outcome": "crashed", "reason": f"the process ended with code {code}"}

    def is_fit(self) -> bool:
        self.process.join(timeout=0)
        return self.process.is_alive() and self.done < RECYCLE

    def stop(self) -> None:
        self.pipe.close()  # which ends a worker that waits for a task
        if not self.is_busy:
            self.process.join(timeout=10)
        self.process.kill()
        self.process.join()


def _end_with_parent() -> None:
    """A driver that is killed leaves no worker behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(pipe: Connection, by: Judge) -> None:
    """Judge what comes through the pipe until it closes."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    while True:
        try:
            (library, name), timeout = pipe.recv()
        except EOFError:
            return
        models = registry(library)  # imports are nobody's time
        signal.setitimer(signal.ITIMER_PROF, timeout)  # computing beyond that ends the process
        record = by(models, library, name).record()
        signal.setitimer(signal.ITIMER_PROF, 0)
        pipe.send(record)
