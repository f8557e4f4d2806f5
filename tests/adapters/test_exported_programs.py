"""Exported programs load, and what torch would unpickle or evaluate in one is refused before it does."""

from __future__ import annotations

import copy
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_folders as toys

from fxplain.adapters import LoadOptions, load
from fxplain.capture.audit import audit
from fxplain.errors import LoadError, UnsafeFileError


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.program(tmp_path_factory.mktemp("program") / "attend.pt2")


def test_a_program_brings_its_inputs(program: Path) -> None:
    loaded = load(str(program))
    assert isinstance(loaded.model, torch.export.ExportedProgram)
    assert loaded.name == "attend"
    assert loaded.example()[0].shape == (2, 5, 8)


class Scaled(torch.nn.Module):
    def forward(
        self, x: torch.Tensor, *, scale: torch.Tensor, shift: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        n = x.shape[0]
        return {"sum": (x * scale + shift).reshape(n * 2, -1).softmax(-1), "n": x.sum() * n}


def test_keyword_inputs_and_dynamic_shapes(tmp_path: Path) -> None:
    sizes = {"x": {0: torch.export.Dim("n", min=2, max=64)}, "scale": None, "shift": None}
    kwargs = {"scale": torch.ones(1), "shift": torch.ones(1)}
    exported = torch.export.export(Scaled(), (torch.ones(4, 6),), kwargs, dynamic_shapes=sizes)
    torch.export.save(exported, str(tmp_path / "m.pt2"))
    loaded = load(str(tmp_path / "m.pt2"))
    assert {name: tuple(tensor.shape) for name, tensor in loaded.example().items()} == {
        "x": (4, 6), "scale": (1,), "shift": (1,),
    }  # fmt: skip


def test_a_picture_fits_the_programs_own(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 4), torch.nn.Flatten())
    torch.export.save(torch.export.export(net, (torch.rand(1, 3, 12, 16),)), str(tmp_path / "m.pt2"))
    inputs, display = load(str(tmp_path / "m.pt2")).prepare(image=toys.picture(tmp_path / "p.png"))
    (name,) = inputs
    assert inputs[name].shape == (1, 3, 12, 16)
    assert display.images[name][0].shape == (12, 16, 3)


def test_output_classes_of_transformers_are_known(tmp_path: Path) -> None:
    import transformers as hf

    model = hf.BertForSequenceClassification(hf.BertConfig(**toys.SMALL, vocab_size=9)).eval()
    kwargs = {"input_ids": torch.ones(1, 4, dtype=torch.int64)}
    torch.export.save(torch.export.export(model, (), kwargs, strict=False), str(tmp_path / "m.pt2"))
    loaded = load(str(tmp_path / "m.pt2"))
    assert loaded.example()["input_ids"].shape == (1, 4)


# -- what is refused


def _node(change: dict[str, Any]) -> Callable[[Any], None]:
    return lambda facts: facts["graph_module"]["graph"]["nodes"][0].update(change)


def _signature(key: str, value: Any) -> Callable[[Any], None]:
    return lambda facts: facts["graph_module"]["module_call_graph"][0]["signature"].update({key: value})


def _rename_input(facts: Any) -> None:
    """Torch pastes the names of inputs into the code of forward."""
    text = json.dumps(facts).replace('"sequence"', json.dumps("sequence=__import__('os').system('true')"))
    facts.clear()
    facts.update(json.loads(text))


def _expression(text: str) -> Callable[[Any], None]:
    def change(facts: Any) -> None:
        values = facts["graph_module"]["graph"]["tensor_values"]
        next(iter(values.values()))["sizes"][0] = {"as_expr": {"expr_str": text, "hint": None}}

    return change


def _hidden_under_a_free_key(facts: Any) -> None:
    values = facts["graph_module"]["graph"]["tensor_values"]
    evil = copy.deepcopy(next(iter(values.values())))
    evil["sizes"][0] = {"as_expr": {"expr_str": "__import__('os')", "hint": None}}
    values["metadata"] = evil


DEFAULTDICT = json.dumps([1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}])
ENUM = json.dumps(
    [1, {"type": "builtins.dict", "context": '[{"__enum__": 1, "fqn": "os:x"}]', "children_spec": []}]
)
KEY = json.dumps([1, {"type": "builtins.dict", "context": '["a=exit()"]', "children_spec": []}])

EVIL_PROGRAMS: dict[str, Callable[[Any], None]] = {
    "any function of torch": _node({"target": "torch.os.system"}),
    "an attribute of an operation": _node({"target": "torch.ops.aten.linear.default.__init__"}),
    "an unknown operation": _node({"target": "torch.ops.aten.never_heard_of.default"}),
    "an operation of others": _node({"target": "torch.ops.somebody.thing.default"}),
    "an operation that opens files": _node({"target": "torch.ops.aten.from_file.default"}),
    "a higher-order operation that runs objects": _node({"target": "torch.ops.higher_order.call_torchbind"}),
    "a method caller": _node({"target": "_operator.methodcaller"}),
    "a private name of math": _node({"target": "math.__loader__"}),
    "an extension": _node({"target": "#ns:op"}),
    "a name that is code": _rename_input,
    "a node's name that is code": _node({"name": "a);exit("}),
    "argument names that are code": _signature("forward_arg_names", ["x=exit()"]),
    "an expression that imports": _expression("__import__('os').system('true')"),
    "an expression in a text": _expression("Max('__import__(1)', 2)"),
    "an expression that calls anything": _expression("sympify(s0)"),
    "an expression that is a statement": _expression("x = 1"),
    "an expression behind a free key": _hidden_under_a_free_key,
    "a guard that imports": lambda facts: facts.update(guards_code=["__import__('os').system('true')"]),
    "a guard that looks around": lambda facts: facts.update(guards_code=["L['x'].__class__ is int"]),
    "a default factory": _signature("in_spec", DEFAULTDICT),
    "an enumeration": _signature("out_spec", ENUM),
    "a key that is code": _signature("in_spec", KEY),
}


@pytest.mark.parametrize("change", EVIL_PROGRAMS.values(), ids=EVIL_PROGRAMS)
def test_evil_programs(change: Callable[[Any], None], program: Path, tmp_path: Path) -> None:
    path = toys.forged(program, tmp_path / "evil.pt2", toys.edit_model(change))
    with pytest.raises(UnsafeFileError, match="--allow-pickle"):
        load(str(path))


def _records(**changes: bytes) -> Callable[[dict[str, bytes]], None]:
    return lambda records: records.update({name.replace("__", "/"): data for name, data in changes.items()})


def _pickled_weight(records: dict[str, bytes]) -> None:
    name = "data/weights/model_weights_config.json"
    config = json.loads(records[name])
    next(iter(config["config"].values()))["use_pickle"] = True
    records[name] = json.dumps(config).encode()


def _pickled_object(records: dict[str, bytes]) -> None:
    name = "data/constants/model_constants_config.json"
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    records[name] = json.dumps({"config": {"thing": entry}}).encode()


EVIL_RECORDS: dict[str, Callable[[dict[str, bytes]], None]] = {
    "a compiled library": _records(data__aotinductor__model__x=b"ELF"),
    "weights as one pickle": _records(**{"data__weights__model.pt": b"x"}),
    "a pickled object": _records(data__constants__opaque_obj_0=b"x"),
    "an object of TorchScript": _records(data__constants__custom_obj_0=b"x"),
    "a weight that says pickle": _pickled_weight,
    "a constant that says pickle": _pickled_object,
    "a record of another kind": _records(surprise=b"x"),
}


@pytest.mark.parametrize("change", EVIL_RECORDS.values(), ids=EVIL_RECORDS)
def test_evil_records(change: Callable[[dict[str, bytes]], None], program: Path, tmp_path: Path) -> None:
    path = toys.forged(program, tmp_path / "evil.pt2", change)
    with pytest.raises(UnsafeFileError, match="--allow-pickle"):
        load(str(path))


def test_sample_inputs_that_run_code(program: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    change = _records(**{"data__sample_inputs__model.pt": toys.bomb_bytes(mark)})
    path = toys.forged(program, tmp_path / "evil.pt2", change)
    with pytest.raises(UnsafeFileError, match="more than tensors"):
        load(str(path))
    assert not mark.exists()
    assert load(str(path), LoadOptions(allow_pickle=True)).inputs is None  # it holds no inputs
    assert mark.exists()


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_two_records_of_one_name(program: Path, tmp_path: Path) -> None:
    path = tmp_path / "twice.pt2"
    path.write_bytes(program.read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("attend/models/model.json", "{}")
    with pytest.raises(LoadError):
        load(str(path))


def test_good_programs_pass_the_audit(program: Path) -> None:
    audit(program)


# -- what is broken


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.95])
def test_truncated(keep: float, program: Path, tmp_path: Path) -> None:
    data = program.read_bytes()
    path = tmp_path / "cut.pt2"
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else int(keep)])
    with pytest.raises(LoadError, match="no exported program, or it is truncated") as caught:
        load(str(path))
    assert not isinstance(caught.value, UnsafeFileError)


def test_other_archives(program: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as archive:
        archive.writestr("hello/world.txt", "hi")
    with pytest.raises(LoadError):
        load(str(tmp_path / "other.pt2"))
    path = toys.forged(
        program, tmp_path / "cut.pt2", _records(**{"models__model.json": b'{"graph_module": '})
    )
    with pytest.raises(LoadError, match=r"model\.json"):
        load(str(path))
    path = toys.forged(program, tmp_path / "empty.pt2", _records(**{"models__model.json": b"{}"}))
    with pytest.raises(LoadError, match="cannot be read"):
        load(str(path))
    with pytest.raises(LoadError, match="no such exported program"):
        load(str(tmp_path / "none.pt2"))


def test_a_program_stays_on_its_device(program: Path) -> None:
    with pytest.raises(LoadError, match="stays on the device"):
        load(str(program), LoadOptions(device="cpu"))
