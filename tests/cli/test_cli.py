"""The command line, end to end on toy models: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import networkx as nx
import pytest
import torch
import toy_folders as toys
import typer
from typer.testing import CliRunner

import fxplain
from fxplain.adapters.names import file_stem
from fxplain.cli.commands import app
from fxplain.cli.inspect import shorter, table
from fxplain.cli.options import reported, working
from fxplain.errors import FxplainError, LoadError, TargetError
from fxplain.explainer.names import parse_target

HOSTILE = "</span><script>alert(1)</script>"


def run(*arguments: object, code: int = 0) -> str:
    """What the command prints, on both streams."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for make in (toys.vit, toys.bert, toys.clip, toys.t5):
        make(folder / make.__name__)
    toys.python_file(folder)
    toys.program(folder / "attend.pt2")
    toys.picture(folder / "halves.png")
    return folder


# -- inspect


def test_inspect_lists_attentions_and_streams(models: Path) -> None:
    text = run("inspect", models / "t5")
    lines = [line.split() for line in text.splitlines()]
    kinds = [(line[1], line[2]) for line in lines if len(line) > 4 and line[0].isdigit()]
    assert kinds == [("0", "self"), ("0", "self"), ("0", "encoder-decoder")]
    assert "3 attentions" in text
    assert "encoder.block.0.layer.0.SelfAttention" in text
    assert re.search(r"^ +1 +decoder_input_ids$", text, re.MULTILINE)


@pytest.mark.parametrize("form", [(), ("--format", "json")])
def test_what_was_done_to_the_inputs_is_said(form: tuple[str, ...], models: Path) -> None:
    cut = "note: the text is cut: it has 32 tokens, and the model takes 12"
    assert cut in run("inspect", models / "bert", "--text", "cat " * 30, *form)
    told = run("diff", models / "bert", models / "bert", "--text", "cat " * 30)
    assert told.count("the text is cut") == 2
    texts = [word for _ in range(2) for word in ("--text", "cat " * 30)]
    assert "text 1 is cut" in run("evaluate", models / "bert", *texts, "--method", "random")


@pytest.mark.parametrize("name", ["vit", "bert", "clip", "factories.py:with_inputs", "attend.pt2"])
def test_inspect_needs_no_inputs(name: str, models: Path) -> None:
    text = run("inspect", models / name)
    assert re.search(r"^ +0 +0 +self ", text, re.MULTILINE), text


def test_inspect_takes_inputs(models: Path) -> None:
    assert "6 x 6" in run("inspect", models / "bert", "--text", "the movie was good")
    torch.save(torch.rand(1, 7, 8), "x.pt")
    assert "7 x 7" in run("inspect", f"{models}/factories.py:alone", "--input", "x.pt")


def test_inspect_tells_what_is_not_attention() -> None:
    Path("router.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)\n"
        "    def forward(self, x):\n"
        "        y = torch.softmax(x @ x.transpose(1, 2), -1) @ self.a(x)\n"
        "        return torch.softmax(self.b(y), -1)\n"
        "def net():\n    return Net(), torch.rand(1, 3, 4)\n"
    )
    text = run("inspect", "router.py:net")
    assert "1 attention\n" in text
    assert "Not attention" in text
    assert re.search(r"softmax.*: .+", text.partition("Not attention")[2])
    assert "router.py:9" in text.partition("Not attention")[2]


@pytest.mark.parametrize("form", ["json", "dot", "graphml", "html"])
def test_inspect_writes_the_graph(form: str, models: Path) -> None:
    run("inspect", models / "vit", "--format", form, "--out", f"graph.{form}")
    text = Path(f"graph.{form}").read_text()
    if form == "json":
        graph = nx.node_link_graph(json.loads(text), edges="edges")
        assert sum(data["type"] == "attention" for _, data in graph.nodes(data=True)) == 2
    elif form == "graphml":
        assert nx.read_graphml(io.BytesIO(text.encode())).number_of_nodes() >= 3
        ElementTree.fromstring(text)
    else:
        assert text.lower().startswith("digraph" if form == "dot" else "<!doctype html>")


def test_inspect_shows_windows_and_mixing() -> None:
    Path("net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n        self.first = nn.Linear(4, 4)\n"
        "    def forward(self, x):\n"
        "        w = self.first(x).unflatten(1, (3, 2))\n"
        "        w = torch.softmax(w @ w.mT, -1) @ w\n"
        "        x = w.mean(2)\n"
        "        return torch.softmax(x @ x.mT, -1) @ x\n"
        "def net():\n    return Net(), torch.rand(1, 6, 4)\n"
    )
    text = run("inspect", "net.py:net")
    assert re.search(r"^ +0 +0 +self .* 6 x 6 +3 of 2 x 2 +softmax", text, re.MULTILINE)
    assert re.search(r"^ +~ +mixing .* 3 x 6 +mean", text, re.MULTILINE)
    assert "~ approximate" in text


def test_inspect_takes_the_form_from_the_suffix(models: Path) -> None:
    run("inspect", models / "vit", "-o", "graph.json")
    assert json.loads(Path("graph.json").read_text())
    run("inspect", models / "vit", "-o", "table.txt")
    assert "2 attentions" in Path("table.txt").read_text()
    assert "suffix" in run("inspect", models / "vit", "-o", "graph.xyz", code=1)


def test_inspect_prints_a_graph_and_writes_a_page(models: Path) -> None:
    assert json.loads(run("inspect", models / "vit", "--format", "json"))
    assert "wrote vit-attentions.html" in run("inspect", models / "vit", "--format", "html")
    assert Path("vit-attentions.html").is_file()
    run("inspect", models / "vit", "--image", models / "halves.png", "-o", "seen.html")
    assert '"maps": {"attention:0"' in Path("seen.html").read_text()


# -- explain


def test_a_picture_gets_an_overlay(models: Path) -> None:
    text = run("explain", models / "vit", "--image", models / "halves.png", "--target", "dog, hound")
    assert "target    1 (dog, hound) of logits" in text
    assert re.search(r"score +-?\d", text)
    stem = "vit-halves-relevancy"
    assert {path.name for path in Path().iterdir()} == {f"{stem}.png", f"{stem}.json"}
    assert toys.picture_size(f"{stem}.png")[0] > 200
    facts = json.loads(Path(f"{stem}.json").read_text())
    assert facts["target_names"] == ["1 (dog, hound)"]
    assert facts["captions"] == ["halves.png"]


def test_a_text_gets_coloured(models: Path) -> None:
    run("explain", models / "bert", "--text", "the movie was good", "--target", "Positive")
    assert {path.name for path in Path().iterdir()} == {"bert-relevancy.html", "bert-relevancy.json"}
    assert "movie" in Path("bert-relevancy.html").read_text()
    facts = json.loads(Path("bert-relevancy.json").read_text())
    assert facts["tokens"]["input_ids"][0][0] == "[CLS]"
    relevance = next(space for space in facts["spaces"] if space["name"] == "input_ids")["relevance"]
    assert len(relevance[0]) == 6


def test_picture_and_text_get_both(models: Path) -> None:
    text = run("explain", models / "clip", "--image", models / "halves.png", "--text", "a cat")
    assert {path.suffix for path in Path().iterdir()} == {".png", ".html", ".json"}
    assert text.count("wrote") == 3


def test_one_picture_is_shown_with_every_text(models: Path) -> None:
    arguments = ["--image", models / "halves.png", "--text", "a cat", "--text", "a dog"]
    text = run("explain", models / "clip", *arguments, "-t", "1", "-o", "pair.html")
    assert "target    1 of logits_per_image" in text
    page = Path("pair.html").read_text()
    assert "cat" in page
    assert "dog" in page


def test_a_picture_inside_a_text(tmp_path: Path, models: Path) -> None:
    toys.llava(tmp_path / "chat")
    run(
        "explain",
        "chat",
        "--image",
        models / "halves.png",
        "--text",
        "what is it",
        "-t",
        "-1,cat",
        "-o",
        "out",
    )
    facts = json.loads(Path("out.json").read_text())
    relevance = {space["name"]: torch.tensor(space["relevance"]) for space in facts["spaces"]}
    assert relevance["pixel_values"].shape == (1, 16)
    assert relevance["pixel_values"].abs().sum() > 0
    assert relevance["input_ids"].abs().sum() > 0
    assert facts["tokens"]["input_ids"][0].count("<image>") == 16
    assert Path("out.png").is_file()
    assert Path("out.html").is_file()


def test_a_word_at_a_position_is_a_target(models: Path) -> None:
    text = run("explain", models / "t5", "--text", "good movie", "--decoder-text", "it was", "-t", "-1,good")
    index = toys.WORDS.index("good")
    assert f"target    2, {index} (' good') of logits" in text


def test_tensors_alone_get_a_report(models: Path) -> None:
    torch.save({"sequence": torch.rand(2, 5, 8)}, "x.pt")
    text = run("explain", f"{models}/factories.py:alone", "--input", "x.pt", "--target", "2")
    assert text.count("target    2 of output") == 2
    assert {"alone-relevancy.html", "alone-relevancy.json"} <= {path.name for path in Path().iterdir()}


@pytest.mark.parametrize("name", ["factories.py:with_inputs", "attend.pt2"])
def test_models_that_bring_inputs_need_none(name: str, models: Path) -> None:
    run("explain", models / name, "-o", "out.json")
    assert json.loads(Path("out.json").read_text())["score"]


def test_a_program_is_explained_as_its_model(models: Path) -> None:
    torch.save(torch.linspace(-1, 1, 80).view(2, 5, 8), "x.pt")
    run("explain", models / "attend.pt2", "--input", "x.pt", "-t", "1", "-o", "program.json")
    run("explain", f"{models}/factories.py:alone", "--input", "x.pt", "-t", "1", "-o", "model.json")
    program, model = (json.loads(Path(f"{name}.json").read_text()) for name in ("program", "model"))
    assert program["score"] == pytest.approx(model["score"])
    values = [torch.tensor(facts["spaces"][0]["relevance"]) for facts in (program, model)]
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("method", ["rollout", "raw_attention"])
def test_other_methods(method: str, models: Path) -> None:
    assert f"method    {method}" in run(
        "explain", models / "vit", "--image", models / "halves.png", "--method", method, "-o", "out"
    )
    assert Path("out.png").is_file()
    assert Path("out.json").is_file()


def test_several_methods_side_by_side(models: Path) -> None:
    text = run("explain", models / "vit", "--image", models / "halves.png", "-m", "relevancy, rollout,random")
    assert "methods   relevancy, rollout, random" in text
    names = {path.suffix: path for path in Path().iterdir()}
    assert set(names) == {".png", ".html", ".json"}
    assert all("-comparison" in path.name for path in names.values())
    facts = json.loads(names[".json"].read_text())
    assert list(facts["methods"]) == ["relevancy", "rollout", "random"]
    page = names[".html"].read_text()
    assert all(f'alt="{method} over' in page for method in facts["methods"])


def test_a_refusal_is_told_beside_the_others(models: Path) -> None:
    text = run(
        "explain",
        models / "t5",
        "--text",
        "good movie",
        "-m",
        "relevancy,legrad",
        "-o",
        "a.html",
        "-o",
        "a.png",
    )
    assert "refused   legrad: legrad is not defined here" in text
    assert "refused: legrad" in Path("a.html").read_text()


def test_a_range_of_layers(models: Path) -> None:
    text = run("explain", models / "vit", "--image", models / "halves.png", "--layers=-1", "-o", "a.json")
    assert re.search(r"1 of \d attentions take part", text)


def test_several_files_at_once(models: Path) -> None:
    outs = [part for suffix in ("npz", "html", "json") for part in ("--out", f"a.{suffix}")]
    run("explain", models / "bert", "--text", "good", *outs)
    assert {path.name for path in Path().iterdir()} == {"a.npz", "a.html", "a.json"}


def test_hostile_names_are_escaped(models: Path) -> None:
    picture = Path("<img src=x onerror=alert(1)>.png")
    picture.write_bytes((models / "halves.png").read_bytes())
    run("explain", models / "clip", "--image", picture, "--text", HOSTILE, "-o", "out.html")
    page = Path("out.html").read_text()
    assert "<script>alert" not in page
    assert "<img src=x" not in page


# -- what goes wrong


def test_errors_are_told_in_plain_words(models: Path) -> None:
    text = run("explain", models / "vit", "--image", "none.png", code=1)
    assert text.startswith("fxplain: InputError: there is no such picture")
    assert "Traceback" not in text
    with pytest.raises(FxplainError):
        run("explain", models / "vit", "--image", "none.png", "--debug")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "3000"], "TargetError"),
        (["--target", "catt"], "did you mean 'cat'"),
        (["--method", "relevanc"], "did you mean 'relevancy'"),
        (["--method", "rollout+libra"], "takes no gradient"),
        (["--method", "relevancy,rollout", "--out", "a.svg"], "a comparison cannot be written"),
        (["--layers", "some"], "these are no layers"),
        (["--layers", "99"], "no attention in the layers"),
        (["--layers", "0", "--method", "random"], "no layers to choose from"),
        (["--output", "nothing"], "nothing"),
        (["--out", "out.bmp"], "out.bmp"),
        (["--out", "none/out.png"], "none"),
        (["--device", "nonsense"], "cannot be moved"),
        (["--text", "a cat"], "takes no text"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, models: Path) -> None:
    text = run("explain", models / "vit", "--image", models / "halves.png", *arguments, code=1)
    assert message in text
    assert not list(Path().iterdir())


def test_nothing_to_explain(models: Path) -> None:
    assert "nothing to explain" in run("explain", models / "vit", code=1)


@pytest.mark.parametrize("command", ["inspect", "explain"])
def test_models_that_are_none(command: str) -> None:
    Path("notes.txt").write_text("hello")
    Path("empty").mkdir()
    (Path("cut.pt2")).write_bytes(b"PK\x03\x04")
    for name, message in {
        "notes.txt": "is no model",
        "empty": "no configuration",
        "cut.pt2": "truncated",
        "./none": "no such file or folder",
        "none.py:f": "no such Python file",
        "torchvision:vit_b16": "did you mean",
    }.items():
        assert message in run(command, name, code=1)


# -- check and diff


def test_check_says_what_is_understood(models: Path) -> None:
    text = run("check", models / "t5", "--text", "good movie", "--decoder-text", "good")
    assert "explained, understood" in text
    assert re.search(r"^attentions +ok +2 self; 1 encoder-decoder$", text, re.MULTILINE)
    assert re.search(r"^relevancy +ok ", text, re.MULTILINE)
    assert "understood" in run("check", models / "attend.pt2")
    assert "note: the weights are random" in run("check", "torchvision:resnet18", "--random-weights")


def test_check_exits_with_one_where_something_is_not_understood() -> None:
    Path("net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def forward(self, x):\n"
        "        x = torch.nn.functional.linear(x, torch.eye(4))\n"
        "        return torch.linalg.svd(x)[0]\n"
        "def net():\n    return Net(), torch.rand(1, 5, 4)\n"
    )
    text = run("check", "net.py:net", code=1)
    assert "not understood" in text
    assert "net.py:6" in text
    assert re.search(r"^labels +failed ", text, re.MULTILINE)


def test_check_takes_a_target(models: Path) -> None:
    assert "TargetError" not in run("check", models / "vit", "--target", "dog, hound")
    text = run("check", models / "vit", "--target", "99", code=1)
    assert re.search(r"^relevancy +failed .*\n.*expected.*\n.*99", text, re.MULTILINE), text


def test_diff_of_a_model_and_itself(models: Path) -> None:
    assert "no difference" in run("diff", models / "vit", models / "vit")
    run("inspect", models / "vit", "--out", "vit.json")
    assert "no difference" in run("diff", "vit.json", models / "vit")


def test_diff_lists_what_changed(models: Path) -> None:
    text = run("diff", models / "bert", models / "t5", "--text", "good", code=1)
    assert re.search(r"^ +encoder-decoder +0 +1$", text, re.MULTILINE)
    found = json.loads(run("diff", models / "bert", models / "t5", "--text", "good", "--json", code=1))
    assert not found["equal"]
    assert found["counts"]["encoder_decoder"] == [0, 1]
    assert {"what", "a", "b", "facts"} == set(found["changes"][0])


def test_diff_exits_with_two_on_trouble(models: Path) -> None:
    Path("no.json").write_text('{"nodes": 3}')
    assert "no attention graph" in run("diff", "no.json", models / "vit", code=2)
    assert "LoadError" in run("diff", models / "vit", "./none", code=2)


def test_wrong_use_exits_with_two() -> None:
    for arguments in (
        ["explain"],
        ["explain", "x", "--nonsense"],
        ["inspect", "x", "--format", "bmp"],
        ["nope"],
    ):
        run(*arguments, code=2)


def test_no_attention_is_said() -> None:
    Path("net.py").write_text(
        "import torch\ndef net():\n    return torch.nn.Linear(4, 3), torch.rand(1, 4)\n"
    )
    assert "NoAttentionError" in run("explain", "net.py:net", code=1)
    assert "0 attentions" in run("inspect", "net.py:net")


# -- the rest


def test_methods_are_listed() -> None:
    lines = run("methods").splitlines()
    assert lines[0].startswith("relevancy ")
    listed = [line for line in lines[: lines.index("")] if line]
    assert all(re.fullmatch(r"\w+ +\S.* \(.+\)", line) for line in listed), "name, one line, paper"
    assert any("+libra" in line for line in lines)


def test_version_and_help() -> None:
    assert re.fullmatch(r"fxplain \d+\.\d+\.\d+\n", run("--version"))
    assert "inspect" in run("--help")


def test_python_m_fxplain_is_the_same_and_light() -> None:
    code = (
        "import sys; from fxplain.cli.commands import app\n"
        "heavy = {'transformers', 'torchvision', 'timm', 'matplotlib', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    shown = subprocess.run([sys.executable, "-m", "fxplain", "--version"], check=True, capture_output=True)
    assert shown.stdout.startswith(b"fxplain ")


def test_targets() -> None:
    names = {0: "cat", 1: "dog, hound", 2: "Ġbird", 3: "Cat", 4: "7"}
    assert parse_target("-2", names) == -2
    assert parse_target(" dog, hound ", names) == 1
    assert parse_target("bird", names) == 2
    assert parse_target("Cat", names) == 3
    assert parse_target("CAT", names) == 0
    assert parse_target("7", names) == 7
    assert parse_target("5, Cat", names) == (5, 3)
    assert parse_target("1,2,3", {}) == (1, 2, 3)
    for wrong in ("", "brid", "1,", "1;2", "3.5"):
        with pytest.raises(TargetError):
            parse_target(wrong, names)


def test_tables_are_aligned() -> None:
    assert table(("a", "bb"), [("ccc", "d")]) == ["  a    bb", "  ccc  d"]
    assert table(("a",), []) == ["  a"]


def test_dotted_names_are_cut_where_they_stay_apart() -> None:
    assert shorter(("a.token", "x", "b.c.d", "e.d")) == {
        "a.token": "token",
        "x": "x",
        "b.c.d": "b.c.d",
        "e.d": "e.d",
    }


def test_only_our_own_errors_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), reported(debug=False):
        1 / 0  # noqa: B018
    with pytest.raises(typer.Exit), reported(debug=False):
        raise LoadError("nothing there", found="air")
    assert capsys.readouterr().err == "fxplain: LoadError: nothing there\n  found: air\n"


def test_signs_of_life_where_a_person_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, seen in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with working("thinking"):
            pass
        assert ("thinking" in stream.getvalue()) is seen


def test_default_names_are_safe() -> None:
    from fxplain.cli.explain import default_stem

    assert default_stem("a/b:c", (Path("x y.z.png"),), "rollout") == "a-b-c-x-y-z-rollout"
    assert file_stem("..") == "model"


# -- answers, chats, pairs, contrasts


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from explainer.test_explainer import chatty
    from explainer.test_generated import gpt2

    return toys.saved(tmp_path_factory.mktemp("writer") / "writer", gpt2(), chatty())


def test_an_answer_gets_a_page(writer: Path) -> None:
    text = run("explain", writer, "--text", "where is paris", "--generate", 3)
    assert text.startswith("answer    ")
    assert len(re.findall(r"^ +'.*'  0\.\d\d  '.* \d+%", text, re.MULTILINE)) == 3
    assert {path.name for path in Path().iterdir()} == {"writer-answer.html", "writer-answer.json"}
    assert len(fxplain.load("writer-answer.json")) == 3
    again = fxplain.Explainer.from_pretrained(writer).generate("where is paris", max_new_tokens=3)
    assert again.to_dict()["answer"] == fxplain.load("writer-answer.json").to_dict()["answer"]


def test_a_chat_is_what_a_user_says_or_a_file(writer: Path) -> None:
    messages = [{"role": "system", "content": "in france"}, {"role": "user", "content": "where is paris"}]
    Path("chat.json").write_text(json.dumps(messages))
    run("explain", writer, "--chat", "chat.json", "--generate", 2, "-o", "a.npz")
    assert {c.turn for c in fxplain.load("a.npz").columns if c.part == "prompt"} == {
        "system",
        "user",
        "assistant",
    }
    run("explain", writer, "--chat", "where is paris", "-t", "france", "-o", "b.json")
    assert fxplain.load("b.json").display.turns["input_ids"] == [((0, 4, "user"), (4, 5, "assistant"))]
    Path("bad.json").write_text("{}")
    assert "holds no conversation" in run("explain", writer, "--chat", "bad.json", code=1)
    assert "cannot be read" in run("explain", writer, "--chat", "none.json", code=1)


def test_a_contrast_and_a_pair(writer: Path, models: Path) -> None:
    text = run(
        "explain", writer, "--text", "where is paris", "-t", "france", "--contrast", "italy", "-o", "a.json"
    )
    assert "' france' against ' italy' as the next token" in text
    text = run("explain", models / "bert", "--text", "a cat", "--pair", "the dog", "-o", "b.json")
    assert [who for _, _, who in fxplain.load("b.json").display.turns["input_ids"][0]] == [
        "first text",
        "second text",
    ]
    run("explain", writer, "--text", "where is paris", "--mode", "matrix", "-o", "c.json")
    assert fxplain.load("c.json").result.mode == "matrix"


def test_what_does_not_go_with_an_answer_is_refused(writer: Path) -> None:
    common = ["explain", writer, "--text", "where is paris", "--generate", 2]
    assert "every token of the answer is explained" in run(*common, "-t", "france", code=1)
    assert "several methods" in run(*common, "-m", "relevancy,rollout", code=1)
    assert "an answer cannot be written" in run(*common, "-o", "a.txt", code=1)


def test_an_answer_that_is_given_and_how_it_is_explained(writer: Path) -> None:
    asked = ["explain", writer, "--text", "where is paris"]
    text = run(*asked, "--answer", " in france", "--log-probability", "-o", "given.json")
    assert "answer     in france" in text
    given = fxplain.load("given.json")
    assert [str(one) for one in given.answer.texts] == [" in", " france"]
    assert given.questions[0].startswith("the log-probability of")
    settings = json.dumps({"num_beams": 2, "min_new_tokens": 2})
    run(*asked, "--generate", 2, "--settings", settings, "--into", "input_ids", "-o", "beams.json")
    assert fxplain.load("beams.json").answer.space == "input_ids"
    assert "--settings is no JSON" in run(*asked, "--generate", 2, "--settings", "beams", code=1)
    assert "--settings and --into are of an answer" in run(*asked, "--settings", settings, code=1)
    assert "which input the answer goes on" in run(*asked, "--generate", 2, "--into", "said", code=1)


def test_the_graph_of_a_target_that_is_named(models: Path) -> None:
    run(
        "inspect", models / "bert", "--text", "the movie was good", "--target", "negative", "-o", "graph.html"
    )
    assert "the score of class 0 &#39;negative&#39;" in Path("graph.html").read_text()
