"""Datasets: samples of mixed sizes, results on disk, and jobs that are killed and go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dataset_job
import pytest
import torch
from dataset_job import COUNT, Reader, dataset, reader
from torch import Tensor, nn

import fxplain
from fxplain.errors import InputError, LoadError, OutputError, TargetError
from fxplain.many import store
from fxplain.many.workers import part_of_environment
from fxplain.maps.products import Elsewhere


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return reader()


def check(found: Any, model: nn.Module, data: Sequence[Tensor], target: Any = None) -> None:
    """Every entry is there once, and is what it is by itself."""
    traced = fxplain.trace(model, data[0])
    assert list(found) == list(range(len(data)))
    for index, ids in enumerate(data):
        (record,) = found[index]
        alone = traced.explain(ids, target)
        torch.testing.assert_close(record.relevance["ids"], alone.relevance["ids"][0], rtol=1e-4, atol=1e-6)
        assert record.score == pytest.approx(alone.score.item(), rel=1e-5)
        assert (record.target, record.output) == (alone.target[0], "output")


def check_no_repetition(found: Any) -> None:
    """No entry is in two files."""
    records = [record["index"] for facts in found._facts.values() for record in facts["records"]]
    assert sorted(records) == list(found)


def test_mixed_sizes_are_grouped_and_every_sample_comes_once(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    explain = fxplain.Traced.explain

    def counted(self: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        batches.append(len(inputs if isinstance(inputs, Tensor) else inputs[0]))
        return explain(self, inputs, *args, **kwargs)

    monkeypatch.setattr(fxplain.Traced, "explain", counted)
    data = dataset(10)
    found = fxplain.explain_dataset(model, data, tmp_path / "out", batch_size=4, per_file=3)
    assert sorted(batches) == [1, 1, 4, 4]
    check(found, model, data)
    names = sorted(path.name for path in (tmp_path / "out").iterdir() if path.name[0] != ".")
    assert names == [
        "index.json",
        "job.json",
        "part-0000-000000.safetensors",
        "part-0000-000001.safetensors",
        "part-0000-000002.safetensors",
    ]
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert [entry["index"] for entry in index["records"]] == list(range(10))


def test_the_iterator_needs_no_folder_and_takes_traced_models(model: nn.Module) -> None:
    data = dataset(5)
    traced = fxplain.trace(model, data[0])
    found = list(fxplain.explain_all(traced, data, target=1, batch_size=1))
    assert [record.index for record in found] == [0, 1, 2, 3, 4]
    assert {record.target for record in found} == {(1,)}
    assert list(fxplain.explain_all(model, [])) == []


def test_targets_and_keys_of_single_samples(model: nn.Module, tmp_path: Path) -> None:
    data = dataset(4, (4,))

    def prepare(item: tuple[int, Tensor]) -> fxplain.Sample:
        return fxplain.Sample((item[1],), target=item[0] % 2, key=f"text {item[0]}")

    found = fxplain.explain_dataset(model, list(enumerate(data)), tmp_path / "out", prepare=prepare)
    assert [(record.target, record.key) for (record,) in found.values()] == [
        ((i % 2,), f"text {i}") for i in range(4)
    ]

    def margin(output: Tensor) -> Tensor:
        return output[:, 0] - output[:, 1]

    (record, *_) = fxplain.explain_all(model, data, target=margin)
    assert record.target == "margin"


def test_batches_of_a_loader_stay_together(model: nn.Module, tmp_path: Path) -> None:
    data = torch.stack([torch.arange(i, i + 4) for i in range(5)])
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data), batch_size=2)
    found = fxplain.explain_dataset(model, loader, tmp_path / "out", prepare=lambda batch: batch[0])
    assert [(r.index, r.sample) for records in found.values() for r in records] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
        (2, 0),
    ]
    shuffled = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data), shuffle=True)
    with pytest.raises(InputError, match="the DataLoader shuffles"):
        fxplain.explain_dataset(model, shuffled, tmp_path / "other")


@pytest.mark.parametrize("nothing", [None, 3])
def test_what_has_no_entries_is_no_dataset(nothing: object, model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="this is no dataset"):
        fxplain.explain_dataset(model, nothing, tmp_path / "out")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="this is no dataset"):
        list(fxplain.explain_all(model, nothing))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_sample_that_cannot_be_explained(model: nn.Module, tmp_path: Path) -> None:
    data = [
        fxplain.Sample(ids, target=9 if i == 2 else 0, key=f"text {i}")
        for i, ids in enumerate(dataset(4, (4,)))
    ]
    with pytest.raises(TargetError, match=r"out of range[\s\S]*entry of the dataset: 2 \(text 2\)"):
        fxplain.explain_dataset(model, data, tmp_path / "out")
    assert list(store.Explanations(tmp_path / "out")) == [0, 1] or not list(
        store.Explanations(tmp_path / "out")
    )
    found = fxplain.explain_dataset(model, data, tmp_path / "out", keep_errors=True)
    assert list(found) == [0, 1, 2, 3]
    assert list(found.errors) == [2]
    assert "out of range" in found[2][0].error
    assert not found[2][0].relevance


def test_errors_of_the_first_sample_and_of_its_preparation(model: nn.Module, tmp_path: Path) -> None:
    def prepare(item: Any) -> Any:
        if item is None:
            raise InputError("a damaged file")
        return item

    data = [torch.zeros(1, 3), None, *dataset(2), "text"]  # the first are no ids, none, and no inputs
    with pytest.raises(InputError, match=r"the model raised[\s\S]*entry of the dataset: 0"):
        list(fxplain.explain_all(model, data))
    found = fxplain.explain_dataset(model, data, tmp_path / "out", prepare=prepare, keep_errors=True)
    assert [bool(record.error) for (record,) in found.values()] == [True, True, False, False, True]
    nothing = fxplain.explain_dataset(model, [None], tmp_path / "none", prepare=prepare, keep_errors=True)
    assert nothing.errors == {0: "a damaged file"}


def test_a_folder_of_another_job_or_dataset_is_refused(model: nn.Module, tmp_path: Path) -> None:
    data = dataset(3)
    fxplain.explain_dataset(model, data, tmp_path, target=1)
    with pytest.raises(OutputError, match=r"another job[\s\S]*target '0'[\s\S]*target '1'"):
        fxplain.explain_dataset(model, data, tmp_path, target=0)
    torch.manual_seed(1)
    with pytest.raises(OutputError, match="another job"):
        fxplain.explain_dataset(Reader().eval(), data, tmp_path, target=1)
    with pytest.raises(InputError, match="not the one that the folder's explanations are of"):
        fxplain.explain_dataset(model, data[::-1], tmp_path, target=1)
    (tmp_path / "part-0000-000000.safetensors").write_bytes(b"cut off")
    with pytest.raises(LoadError, match="cannot be read"):
        fxplain.explain_dataset(model, data, tmp_path, target=1)


def test_parts_make_a_whole(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(7)
    for number in (0, 1):
        found = fxplain.explain_dataset(model, data, tmp_path, part=(number, 2))
        assert list(found) == ([0, 2, 4, 6] if number == 0 else list(range(7)))
    check(found, model, data)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert part_of_environment() == (1, 3)
    assert [record.index for record in fxplain.explain_all(model, data, batch_size=1)] == [1, 4]
    with pytest.raises(InputError, match="no such part"):
        fxplain.explain_dataset(model, data, tmp_path, part=(2, 2))


def test_two_processes_of_one_part(model: nn.Module, tmp_path: Path) -> None:
    with store.only_worker(tmp_path, 0), pytest.raises(OutputError, match="another process works"):
        fxplain.explain_dataset(model, dataset(2), tmp_path)


def test_at_most_so_many_entries_are_held(model: nn.Module) -> None:
    read: list[int] = []

    def endless() -> Any:
        for index in range(1000):
            read.append(index)
            yield torch.randint(0, 20, (1, 4 + index % 50))

    first = next(iter(fxplain.explain_all(model, endless(), batch_size=2)))
    assert len(read) <= 2 * 16 + 1
    assert first.index == 0


def started(folder: Path, seconds: float, *launcher: str) -> subprocess.Popen[bytes]:
    """The job as a process, with a launcher of several or alone."""
    command = [sys.executable, *launcher, dataset_job.__file__, str(folder), str(seconds)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})


def wait_for_files(folder: Path, count: int, process: subprocess.Popen[bytes], worker: int = 0) -> None:
    for _ in range(3600):
        if len(list(folder.glob(f"part-{worker:04d}-*.safetensors"))) >= count or process.poll() is not None:
            return
        time.sleep(0.05)
    raise AssertionError("nothing was written")


def test_a_killed_job_goes_on_without_loss_or_repetition(model: nn.Module, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    process = started(folder, 0.1)
    wait_for_files(folder, 2, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = {path: path.read_bytes() for path in folder.glob("part-*.safetensors")}
    done = list(fxplain.Explanations(folder))
    assert 4 <= len(done) < COUNT
    data = dataset(COUNT, (4,))
    found = fxplain.explain_dataset(model, data, folder, batch_size=1, per_file=2)
    check(found, model, data)
    assert all(path.read_bytes() == content for path, content in before.items())
    check_no_repetition(found)


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1")
ACCELERATE = (
    *(
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes=2",
        "--num_machines=1",
        "--max_restarts=1",
    ),
    *("--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0", "--monitor_interval=0.1"),
)


@pytest.mark.parametrize(
    "launcher", [TORCHRUN, pytest.param(ACCELERATE, marks=pytest.mark.slow)], ids=["torchrun", "accelerate"]
)
def test_two_workers_one_of_which_is_killed(
    model: nn.Module, tmp_path: Path, launcher: Sequence[str]
) -> None:
    """The launcher starts both again, and they go on."""
    pytest.importorskip(launcher[0].partition(".")[0])
    folder = tmp_path / "out"
    process = started(folder, 0.3, "-m", *launcher)
    wait_for_files(folder, 1, process, worker=1)
    killed = int((tmp_path / "pid-1").read_text())
    os.kill(killed, signal.SIGKILL)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said.decode()[-2000:]
    assert int((tmp_path / "pid-1").read_text()) != killed
    found = fxplain.Explanations(folder)
    check(found, model, dataset(COUNT, (4,)))
    check_no_repetition(found)
    assert (folder / "index.json").exists()


def make_once_killed(marker: Path) -> Any:
    """The model and dataset for an actor, which dies at the sixth entry if no other has died of it."""

    class Deadly(dataset_job.Slow):
        def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
            if index == 5 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(index)

    return lambda: (reader(), Deadly(dataset(COUNT, (4,))))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_actors_of_ray_one_of_which_is_killed(model: nn.Module, tmp_path: Path) -> None:
    """Ray gives the chunk of the one that died to another."""
    ray = pytest.importorskip("ray")
    tests = {"env_vars": {"PYTHONPATH": os.path.dirname(dataset_job.__file__)}}  # workers import the dataset
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        ray.init(
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=80_000_000,
            runtime_env=tests,
            _temp_dir=folder,  # tmp_path is too long for Ray's sockets
        )
        try:
            make = make_once_killed(tmp_path / "died")
            found = fxplain.explain_dataset_on_ray(make, tmp_path / "out", batch_size=1, chunk=4)
        finally:
            ray.shutdown()
    assert (tmp_path / "died").exists()
    check(found, model, dataset(COUNT, (4,)))
    check_no_repetition(found)


def test_a_dispatched_model_is_explained_through_its_hooks(model: nn.Module) -> None:
    """accelerate's hooks move tensors between modules: on one device that changes nothing, and they stay."""
    hooks = pytest.importorskip("accelerate.hooks")
    data, own = dataset(1), reader()
    hooks.attach_align_device_hook_on_blocks(
        own, execution_device={"": "cpu", "embed": "cpu", "layer": "cpu"}
    )
    forward = own.layer.forward  # type: ignore[union-attr]
    found, plain = fxplain.explain(own, data[0], target=1), fxplain.explain(model, data[0], target=1)
    torch.testing.assert_close(found.relevance["ids"], plain.relevance["ids"])
    assert own.layer.forward is forward  # type: ignore[union-attr]


def test_maps_on_another_device_get_their_vectors_there() -> None:
    class Doubled:
        def left(self, rows: Tensor) -> Tensor:
            assert rows.is_meta
            return rows.new_empty(2, 3)

        right = left

    far = Elsewhere(Doubled(), torch.device("meta"))
    with pytest.raises(NotImplementedError, match="meta"):  # there is no way back from this one
        far.left(torch.ones(2, 3))
