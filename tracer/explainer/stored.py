"""Explanations read back from the files that :meth:`fxplain.Explanation.save` writes: plain data."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fxplain.attention.records import Attention, Stream, TokenSpace
from fxplain.display import Display, Laid, Series
from fxplain.errors import FxplainError, LoadError, first_line
from fxplain.questions import Axis, Part, Question, Spot
from fxplain.render.save import FORMAT, member
from fxplain.render.words import TokenText
from fxplain.result import Relevance, Result
from fxplain.run.combined import Combined, Term

Arrays = Callable[[str], Any]
"""From a member's name to its array."""


def read(path: Path) -> tuple[Result, Display, dict[str, Any]]:
    """A result, what is shown beside it, and all facts of the file.

    Raises:
        LoadError: no such file, another suffix, damaged, or of another format or version.
    """
    if not path.is_file():
        raise LoadError("there is no such explanation", where=str(path))
    reader = READERS[path.suffix.lower()]
    try:
        facts, arrays = reader(path)
        if facts["format"] != FORMAT:
            raise LoadError(
                "the file is of another format or version",
                where=str(path),
                expected=FORMAT,
                found=str(facts["format"]),
                hint="explain again and save, or read the numbers: it is plain data",
            )
        return _result(facts, arrays), _display(facts, arrays), facts
    except FxplainError:
        raise
    except Exception as error:  # of a damaged file each reader says what it likes
        raise LoadError(
            "the file holds no explanation, or is damaged",
            where=str(path),
            expected=f"a {path.suffix} file that fxplain wrote",
            found=first_line(error),
        ) from error


def _read_json(path: Path) -> tuple[dict[str, Any], Arrays]:
    facts = json.loads(path.read_text(encoding="utf-8"))
    spaces = {f"relevance/{member(space['name'])}": space["relevance"] for space in facts["spaces"]}
    arrays = spaces | {f"inputs/{member(name)}": values for name, values in facts["inputs"].items()}
    pictures = {
        f"image/{member(name)}/{place}": _picture(one)
        for name, several in facts["images"].items()
        for place, one in enumerate(several)
    }
    pictures |= {
        f"line/{member(name)}/{place}": _values(one)
        for name, several in facts.get("lines", {}).items()
        for place, one in enumerate(several)
    }
    kind = np.dtype(facts["dtype"])

    def array(name: str) -> Any:
        if name in pictures:
            return pictures[name]
        values = facts["score"] if name == "score" else arrays[name]
        return np.array(values, dtype=np.float64).astype(kind)

    facts["members"] = [*arrays, *pictures, "score"]
    return facts, array


def _picture(drawn: Any) -> Any:
    from PIL import Image

    if isinstance(drawn, list):
        return np.stack([_picture(frame) for frame in drawn])
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn.partition(",")[2]))))


def _values(letters: Mapping[str, Any]) -> Any:
    return np.frombuffer(base64.b64decode(letters["float32"]), "<f4").reshape(letters["shape"])


def _read_npz(path: Path) -> tuple[dict[str, Any], Arrays]:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    facts = json.loads(str(arrays.pop("facts")))
    return facts | {"members": [*arrays]}, arrays.__getitem__


def _read_safetensors(path: Path) -> tuple[dict[str, Any], Arrays]:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        facts = json.loads(file.metadata()["fxplain"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    return facts | {"members": [*arrays]}, arrays.__getitem__


READERS: Mapping[str, Callable[[Path], tuple[dict[str, Any], Arrays]]] = {
    ".json": _read_json,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
}
"""Suffix -> how the file is read."""


def _result(facts: dict[str, Any], arrays: Arrays) -> Result:
    spaces = tuple(
        TokenSpace(s["name"], s["size"], s["start"], tuple(s["grid"]), s["origin"], s["source"])
        for s in facts["spaces"]
    )
    streams = tuple(Stream(s["name"], tuple(s["tokens"]), tuple(s["spaces"])) for s in facts["streams"])
    by_name = {stream.name: stream for stream in streams}
    values = {space.name: torch.from_numpy(arrays(f"relevance/{member(space.name)}")) for space in spaces}
    inputs = [name for name in facts["members"] if name.startswith("inputs/")]
    return Result(
        method=facts["method"],
        score=torch.from_numpy(np.asarray(arrays("score"))),
        target=_target(facts["target"]),
        output=facts["output"],
        relevance=Relevance(values, spaces),
        relevancy=None,
        spaces=spaces,
        streams=streams,
        readout=tuple(tuple((int(t), float(w)) for t, w in rows) for rows in facts["readout"]),
        attentions=tuple(_attention(one, by_name) for one in facts["attentions"]),
        verified=facts["verified"],
        notes=tuple(note for note in facts["notes"] if note not in facts["shown_notes"]),
        aside=facts["aside"],
        inputs={name.partition("/")[2]: torch.from_numpy(arrays(name)) for name in inputs},
        mode=facts["mode"],
        questions=tuple(_question(one) for one in facts["asked"]),
    )


def _attention(facts: Mapping[str, Any], streams: Mapping[str, Stream]) -> Attention:
    own = {"queries": streams[facts["queries"]], "keys": streams[facts["keys"]]}
    return Attention(**{**facts, **own, "window": tuple(facts["window"])})


def _target(target: Any) -> Any:
    if isinstance(target, Mapping):
        return Combined(tuple(Term(_target(t["target"]), t["weight"], t["log"]) for t in target["sum"]))
    return tuple(_target(one) for one in target) if isinstance(target, list) else target


def _question(facts: Mapping[str, Any]) -> Question:
    axes = tuple(Axis(**axis) for axis in facts["axes"])
    parts = tuple(Part(p["weight"], p["log"], _question(p["question"])) for p in facts["parts"])
    spot = (
        None if facts["spot"] is None else Spot(*(tuple(facts["spot"][k]) for k in ("box", "grid", "runs")))
    )
    read = {"index": tuple(facts["index"]), "axes": axes, "parts": parts, "spot": spot}
    return Question(**{**facts, **read})


def _display(facts: dict[str, Any], arrays: Arrays) -> Display:
    images: dict[str, list[Any]] = {}
    for space in facts["spaces"]:
        start = f"image/{member(space['name'])}/"
        count = sum(name.startswith(start) for name in facts["members"])
        if count:
            images[space["name"]] = [arrays(f"{start}{place}") for place in range(count)]
    tokens = {
        name: [_texts(texts, marks) for texts, marks in zip(samples, facts["marks"][name], strict=True)]
        for name, samples in facts["tokens"].items()
    }
    turns = {
        name: [tuple((int(a), int(b), str(what)) for a, b, what in sample) for sample in samples]
        for name, samples in facts["turns"].items()
    }
    seen = {name: [(float(high), float(wide)) for high, wide in each] for name, each in facts["seen"].items()}
    return Display(
        series={
            name: [_series(one, arrays(f"line/{member(name)}/{i}")) for i, one in enumerate(several)]
            for name, several in facts.get("series", {}).items()
        },
        laid={
            name: [Laid(_picture(one["picture"]), np.asarray(one["tokens"])) for one in pictures]
            for name, pictures in facts.get("laid", {}).items()
        },
        times={name: tuple(seconds) for name, seconds in facts.get("times", {}).items()},
        seen=seen,
        frames=facts["frames"],
        images=images,
        tokens=tokens,
        labels={int(index): name for index, name in facts["labels"].items()},
        title=facts["title"],
        captions=facts["captions"],
        notes=tuple(facts["shown_notes"]),
        turns=turns,
    )


def _series(facts: Mapping[str, Any], values: Any) -> Series:
    pairs = {name: None if facts[name] is None else tuple(facts[name]) for name in ("covers", "shape")}
    return Series(values, **{**facts, **pairs, "names": tuple(facts["names"])})


def _texts(texts: list[str], marks: Mapping[str, Any] | None) -> list[str]:
    if marks is None:
        return texts
    special, read_as = set(marks["special"]), marks["read_as"]
    return [TokenText(text, i in special, read_as.get(str(i), "")) for i, text in enumerate(texts)]
