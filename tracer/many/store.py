"""Results on disk: files of some records each, written whole or not at all. The files are their own index.

A sample is done if, and only if, a file holds it: there is nothing that could disagree after an interruption.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from fxplain.errors import LoadError, OutputError, first_line
from fxplain.files import replacing, write_whole
from fxplain.many.records import Explained

FORMAT = "fxplain explanations 1"
JOB, INDEX = "job.json", "index.json"
_FACTS = (
    "index",
    "sample",
    "key",
    "score",
    "target",
    "output",
    "question",
    "verified",
    "error",
    "digest",
    "read",
)


class Writer:
    """Writes records into a folder.

    Args:
        folder: where; made if it is not there.
        worker: a name that no other process has that writes into the folder.
        size: how many records a file holds.
        seconds: a file is written at the latest when its first record is so old.
    """

    def __init__(self, folder: Path, worker: str, size: int = 64, seconds: float = 30.0) -> None:
        self.folder, self.worker, self.size, self.seconds = folder, worker, size, seconds
        self._waiting: list[Explained] = []
        self._since = 0.0

    def add(self, records: list[Explained]) -> None:
        """Take the records of one or more whole entries of the dataset."""
        self._since = self._since if self._waiting else time.monotonic()
        self._waiting += records
        if len(self._waiting) >= self.size or time.monotonic() - self._since > self.seconds:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if not self._waiting:
            return
        own = self.folder.glob(f"part-{self.worker}-*.safetensors")
        number = max((int(path.stem.split("-")[2]) for path in own), default=-1) + 1
        path = self.folder / f"part-{self.worker}-{number:06d}.safetensors"
        write_records(path, self._waiting)
        self._waiting = []


def write_records(path: Path, records: list[Explained]) -> None:
    """One file of records."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    notes = list(dict.fromkeys(note for record in records for note in record.notes))
    facts = []
    for number, record in enumerate(records):
        named = {name: f"{number}.{place}" for place, name in enumerate(record.relevance)}
        tensors |= {named[name]: tensor.contiguous() for name, tensor in record.relevance.items()}
        own = {name: getattr(record, name) for name in _FACTS}
        facts.append(own | {"relevance": named, "notes": [notes.index(note) for note in record.notes]})
    text = json.dumps({"format": FORMAT, "records": facts, "notes": notes})
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"fxplain": text})


class Explanations(Mapping[int, "tuple[Explained, ...]"]):
    """The results in a folder, by place in the dataset; read when they are asked for.

    An entry that was a batch has several records, any other one. ``keys`` are in order. What ``before`` has
    read of the same folder is not read again.

    Raises:
        LoadError: no such folder, or a file in it is damaged.

    Example:
        >>> import tempfile, torch
        >>> from fxplain.many.records import Explained
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_records(Path(folder) / "part-0000-000000.safetensors", [Explained(3, score=2.0)])
        ...     Explanations(folder)[3][0].score
        2.0
    """

    def __init__(self, folder: str | os.PathLike[str], before: Explanations | None = None) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise LoadError("there is no such folder of explanations", where=str(folder))
        self._where: dict[int, list[tuple[Path, int]]] = {}
        self._facts: dict[Path, dict[str, Any]] = {}
        for path in sorted(self.folder.glob("part-*.safetensors")):
            facts = before._facts.get(path) if before is not None else None
            self._facts[path] = facts = facts or _facts_of(path)
            own: dict[int, list[tuple[Path, int]]] = {}
            for number, record in enumerate(facts["records"]):
                own.setdefault(record["index"], []).append((path, number))
            self._where = own | self._where
        self._where = dict(sorted(self._where.items()))

    def __getitem__(self, index: int) -> tuple[Explained, ...]:
        return tuple(self._read(path, number) for path, number in self._where[index])

    def __iter__(self) -> Iterator[int]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def digest(self, index: int) -> str:
        """What says whether an entry's inputs are still the same."""
        path, number = self._where[index][0]
        return str(self._facts[path]["records"][number]["digest"])

    @property
    def errors(self) -> dict[int, str]:
        """The entries that could not be explained, and why."""
        found = {}
        for index, places in self._where.items():
            texts = [self._facts[path]["records"][number]["error"] for path, number in places]
            if any(texts):
                found[index] = next(text for text in texts if text)
        return found

    def write_index(self) -> None:
        """Write ``index.json``: for each entry its file and what is no tensor, to be read without fxplain."""
        entries = [
            {"file": path.name} | self._facts[path]["records"][number]
            for places in self._where.values()
            for path, number in places
        ]
        write_whole(self.folder / INDEX, json.dumps({"format": FORMAT, "records": entries}, indent=1) + "\n")

    def _read(self, path: Path, number: int) -> Explained:
        from safetensors import safe_open

        facts = self._facts[path]
        record = facts["records"][number]
        with safe_open(path, "pt") as file:
            relevance = {name: file.get_tensor(place) for name, place in record["relevance"].items()}
        target = record["target"]
        own = {name: record.get(name, "") for name in _FACTS}
        own |= {"target": tuple(target) if isinstance(target, list) else target}
        own["read"] = tuple((str(name), int(place)) for name, place in own["read"] or ())
        return Explained(relevance=relevance, notes=tuple(facts["notes"][n] for n in record["notes"]), **own)


def _facts_of(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            facts: dict[str, Any] = json.loads(file.metadata()["fxplain"])
        if facts["format"] != FORMAT:
            raise ValueError(f"the format {facts['format']!r}")
    except Exception as error:  # safetensors has errors of its own for damaged files
        raise LoadError(
            "a file of explanations cannot be read",
            where=str(path),
            expected="a file that fxplain wrote",
            found=first_line(error),
            hint="delete the file; what it held is explained again when the job is run again",
        ) from error
    return facts


def claim_job(folder: Path, job: Mapping[str, Any]) -> None:
    """Make the folder, or see that what lies in it are results of the same job.

    Raises:
        OutputError: they are of another one.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {str(folder)!r} cannot be made", found=str(error)) from error
    wanted = json.loads(json.dumps({"format": FORMAT, **job}))
    if not (folder / JOB).exists():
        write_whole(folder / JOB, json.dumps(wanted, indent=1) + "\n")
    found = json.loads((folder / JOB).read_text(encoding="utf-8"))
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    if differing:
        raise OutputError(
            "the folder holds explanations of another job",
            where=str(folder),
            expected=", ".join(f"{name} {wanted[name]!r}" for name in differing),
            found=", ".join(f"{name} {found.get(name)!r}" for name in differing),
            hint="take another folder, or delete this one",
        )


@contextmanager
def only_worker(folder: Path, worker: int) -> Iterator[None]:
    """A region that no other process on this machine is in for the same part; a killed process leaves none.

    Raises:
        OutputError: another one is.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        yield
        return
    with (folder / f".worker-{worker:04d}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                "another process works on the same part of this job",
                where=str(folder),
                found=f"worker {worker}",
                hint="wait for it, or give each process a part of its own: part=(number, count)",
            ) from error
        except OSError:  # a file system without locks
            pass
        yield
