"""What a stranger may do to any public call: wrong types, threads, forks, a model that changed meanwhile."""

from __future__ import annotations

import copy
import pickle
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from typer.testing import CliRunner

import fxplain
from fxplain.cli import app
from fxplain.errors import FxplainError, VerificationError

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def model() -> nn.Sequential:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 3)).eval()


TRACED = fxplain.trace(model(), X)
WRONG: dict[str, Callable[[], Any]] = {
    "method none": lambda: TRACED.explain(X, 1, method=None),  # type: ignore[arg-type]
    "method number": lambda: TRACED.explain(X, 1, method=3),  # type: ignore[arg-type]
    "methods none": lambda: TRACED.compare(X, [None], 1),  # type: ignore[list-item]
    "methods text": lambda: TRACED.compare(X, "relevancy", 1),
    "methods number": lambda: fxplain.compare(model(), X, 3, 1),  # type: ignore[arg-type]
    "targets number": lambda: TRACED.explain_targets(X, 3),  # type: ignore[arg-type]
    "targets none": lambda: TRACED.explain_targets(X, None),  # type: ignore[arg-type]
    "memory none": lambda: TRACED.explain_targets(X, [1], memory=None),  # type: ignore[arg-type]
    "target floats": lambda: TRACED.explain(X, torch.tensor([1.0, 2.0])),
    "target text": lambda: TRACED.explain(X, "cat"),
    "target texts": lambda: TRACED.explain(X, ("cat",)),
    "result to number": lambda: TRACED.explain(X, 1).save(3),  # type: ignore[arg-type]
    "traced to none": lambda: TRACED.save(None),  # type: ignore[arg-type]
    "load none": lambda: fxplain.load(None),  # type: ignore[arg-type]
    "maps of none": lambda: TRACED.maps(None),
    "points of text": lambda: TRACED.points("text"),
    "inputs none": lambda: TRACED.explain(None),
    "model text": lambda: fxplain.trace("model", X),
}


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_wrong_types_are_errors_of_our_own(call: Callable[[], Any]) -> None:
    with pytest.raises(FxplainError):
        call()


def replaced(own: nn.Sequential) -> None:
    own[0] = nn.Identity()


def resized(own: nn.Sequential) -> None:
    own[2] = nn.Linear(40, 7)


def removed(own: nn.Sequential) -> None:
    del own[2]


def widened(own: nn.Sequential) -> None:
    own.double()


@pytest.mark.parametrize("change", [replaced, resized, removed, widened])
def test_a_model_that_changed_since_it_was_traced(change: Callable[[nn.Sequential], None]) -> None:
    own = model()
    traced = fxplain.trace(own, X)
    change(own)
    with pytest.raises(VerificationError, match="has changed since it was traced") as caught:
        traced.explain(X, target=1)
    assert "trace it again" in str(caught.value)


def test_several_threads_explain_one_model() -> None:
    own = model()
    alone = [fxplain.explain(own, X, target=target).relevance["input"] for target in range(3)]
    found: dict[int, Tensor] = {}

    def work(number: int) -> None:
        found[number] = fxplain.explain(own, X, target=number % 3).relevance["input"]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 9
    for number, relevance in found.items():
        torch.testing.assert_close(relevance, alone[number % 3])


def _score(output: Tensor) -> Tensor:
    return output[:, 1]


IN_A_FORK: tuple[Callable[[], Any], ...] = (
    lambda: fxplain.explain(model(), X, target=1),
    lambda: TRACED.explain(X, 1, method="gradient_x_input"),
    lambda: TRACED.explain(X, 1, method="legrad"),
    lambda: TRACED.explain(X, 1, method="attnlrp"),
    lambda: TRACED.explain(X, _score, method="rollout"),
    lambda: TRACED.explain_targets(X, [0, 1]),
    lambda: TRACED.explain(X, 1, mode="checkpoint"),
)


class Explained(Dataset[str]):
    """Explains in whatever process it is asked in, and says what came of it."""

    def __len__(self) -> int:
        return len(IN_A_FORK)

    def __getitem__(self, index: int) -> str:
        try:
            IN_A_FORK[index]()
        except FxplainError as error:
            return f"{type(error).__name__}: {error}"
        return "explained"


def test_a_forked_worker_says_that_it_cannot() -> None:
    fxplain.explain(model(), X, target=1)  # gradients in the parent
    loader = DataLoader(Explained(), num_workers=1, multiprocessing_context="fork", collate_fn=list)
    for (said,) in loader:
        assert "DeviceError" in said
        assert "spawn" in said


class Dropping(nn.Module):
    """Keeps some tokens at random."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.randperm(x.shape[1])[:4]
        out: Tensor = self.head(self.layer(x[:, kept]).mean(1))
        return out


class Kept(nn.Module):
    """The same with the tokens that are kept written down."""

    def __init__(self, own: Any, kept: Tensor) -> None:
        super().__init__()
        self.own, self.kept = own, kept

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.own.head(self.own.layer(x[:, self.kept]).mean(1))
        return out


@pytest.mark.parametrize("seed", range(6))
def test_maps_are_those_of_one_draw_and_leave_the_random_state(seed: int) -> None:
    torch.manual_seed(seed)
    traced = fxplain.trace(Dropping().eval(), X)
    before = torch.get_rng_state()
    one, other = (traced.maps(X)[0] for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(one.sum(-1), torch.ones(one.shape[:-1]))


@pytest.mark.parametrize("seed", range(6))
def test_an_explanation_is_of_the_tokens_that_its_run_drew(seed: int) -> None:
    traced = fxplain.trace(Dropping().eval(), X)
    torch.manual_seed(seed)
    kept = torch.randperm(5)[:4]
    torch.manual_seed(seed)
    result = traced.explain(X, target=1)
    with torch.no_grad():
        torch.manual_seed(seed)
        torch.testing.assert_close(result.score, traced.model(X)[:, 1])
    (attention,) = result.attentions
    torch.manual_seed(seed)
    alone = fxplain.explain(Kept(traced.model, kept), X, target=1)
    torch.testing.assert_close(
        result.relevance["x"].flatten().sort().values, alone.relevance["x"].flatten().sort().values
    )
    assert attention.queries.size == 4


class Scaled(nn.Module):
    """A picture and a number, both positional."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 3)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, pixel_values: Tensor, scale: Tensor) -> Tensor:
        x = self.patches(pixel_values).flatten(2).mT * scale
        out: Tensor = self.head(self.layer(x).mean(1))
        return out


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("program")
    inputs = torch.rand(1, 3, 16, 16), torch.ones(1)
    torch.export.save(torch.export.export(Scaled().eval(), inputs, strict=False), folder / "model.pt2")
    torch.save(inputs, folder / "inputs.pt")
    Image.new("RGB", (20, 16), (200, 30, 30)).save(folder / "picture.png")
    return folder


@pytest.mark.parametrize("given", [("--image", "picture.png"), ("--input", "inputs.pt")])
def test_a_program_with_positional_inputs_keeps_their_names(program: Path, given: tuple[str, str]) -> None:
    flag, name = given
    out = program / "out.png"
    command = ["explain", str(program / "model.pt2"), flag, str(program / name), "--target", "1"]
    run = CliRunner().invoke(app, [*command, "--out", str(out)])
    assert run.exit_code == 0, run.output
    assert "is not drawn" not in run.output
    assert out.is_file()


def test_an_archive_whose_records_leave_it_is_refused(program: Path) -> None:
    evil = program / "evil.pt2"
    with zipfile.ZipFile(program / "model.pt2") as good, zipfile.ZipFile(evil, "w") as bad:
        for name in good.namelist():
            bad.writestr(name, good.read(name))
        bad.writestr("../../evil.txt", "out")
    command = ["explain", str(evil), "--image", str(program / "picture.png")]
    for allowed in ([], ["--allow-pickle"]):
        run = CliRunner().invoke(app, [*command, *allowed])
        assert run.exit_code != 0
        assert "UnsafeFileError" in run.output
        assert "add --allow-pickle" not in run.output  # it would not help
        assert "Traceback" not in run.output


def test_what_was_found_in_a_model_is_data() -> None:
    found = (*TRACED.attentions, *TRACED.mixings, *TRACED.streams, *TRACED.spaces, *TRACED.census)
    for record in found:
        assert pickle.loads(pickle.dumps(record)) == record


def test_one_picture_is_a_dataset(program: Path, tmp_path: Path) -> None:
    command = ["explain-all", str(program / "model.pt2"), str(program / "picture.png"), "--target", "1"]
    run = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out")])
    assert run.exit_code == 0, run.output
    assert "explained 1 of 1" in run.output


def test_a_file_of_no_text_is_no_dataset(program: Path, tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(b"\xff\xfe\x80")
    command = ["explain-all", str(program / "model.pt2"), str(tmp_path / "data.bin")]
    run = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out")])
    assert run.exit_code != 0
    assert "the file holds no text" in run.output


def test_a_full_disk_is_an_error_of_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch
    from safetensors import SafetensorError

    def full(*given: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(fxplain.OutputError, match="could not be written"):
        fxplain.explain_dataset(copy.deepcopy(model()), [X[:1]], tmp_path / "out", 1)
