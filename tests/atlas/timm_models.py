"""timm: the smallest model of every module of architectures; where its source holds any attention, some more,
so that its families and the options that its factories set are seen. No architecture is named."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from functools import cache

import timm
import torch
from timm.layers import set_fused_attn  # type: ignore[attr-defined]
from torch import nn

from atlas.cases import Case, NotBuiltError
from atlas.shallow import kind_of, remade, smaller
from atlas.weights import enliven

IMPLEMENTATIONS: tuple[str | None, ...] = ("eager", "sdpa")

BATCH = 2
SIDES = (64, 96, 112, 128, 160, 192, 224, 240, 256, 384)
"""Sides of pictures, the first that works is taken. Most hierarchies end at a 32nd of it."""
ATTENTIVE = re.compile(
    r"softmax\(|scaled_dot_product|class \w*Attention|Attention\w*\(|self_attn|tokens"
    r"|vision_transformer import"
)
SIZES = """
    test zepto atto femto pico nano xxs xxt xx xxtiny micro xs xsmall xtiny tiny ti t mini lite s small d d1
    so150m m medium b base l large xl xlarge so400m h huge g giant gigantic enormous
""".split()  # noqa: SIM905
"""What sizes are called, from small to large."""


def names() -> list[str]:
    return [f"{module}/{name}" for module in timm.list_modules() for name in _chosen(module)]


def build(name: str, attention: str | None) -> Case:
    entry = name.partition("/")[2]
    set_fused_attn(attention == "sdpa")
    reasons = []
    for most in (2, None):
        for side in SIDES:
            try:
                model = _model(entry, side, most)
                inputs = torch.randn(BATCH, 3, side, side, generator=torch.Generator().manual_seed(1))
                _check(model, inputs)
            except Exception as error:
                reasons.append(f"side {side}, depth {most}: {type(error).__name__}: {error}")
                continue
            return Case(model, inputs, notes={"depth": str(most or "its own"), "side": str(side)})
    raise NotBuiltError("no size works", reasons[-1][:600])


def _check(model: nn.Module, inputs: torch.Tensor) -> None:
    with torch.no_grad():
        output = model(inputs)
    for tensor in output if isinstance(output, (tuple, list)) else (output,):
        if not bool(tensor.isfinite().all()):
            raise ValueError("the output is not finite")


def _model(entry: str, side: int, most: int | None) -> nn.Module:
    """The model for pictures of this side, with at most so many layers in each stage."""
    torch.manual_seed(0)
    kind = _kind(entry)
    return enliven(remade(timm.model_entrypoint(entry), kind, lambda given: smaller(kind, given, side, most)))


@cache
def _kind(entry: str) -> type[nn.Module]:
    return kind_of(timm.model_entrypoint(entry))


def _chosen(module: str) -> Iterator[str]:
    entries = sorted(timm.list_models(module=module), key=_size)
    if not ATTENTIVE.search(inspect.getsource(sys.modules[f"timm.models.{module}"])):
        yield entries[0]
        return
    options = {entry: _options(entry) for entry in entries}
    seen: set[str] = set()
    for entry in [entries[0]] * round(len(entries) ** 0.5):
        if seen:  # whichever shows most that is new, the smallest of these
            entry = max(entries, key=lambda other: len(options[other] - seen))
        if not options[entry] <= seen:
            yield entry
        seen |= options[entry]


def _size(entry: str) -> tuple[float, ...]:
    """How small a model is, told from its name: by words, then by numbers, then by how special it is."""
    parts = re.findall(r"[a-z]+[0-9]*m?|[0-9]+", entry)
    ranks = [SIZES.index(part) for part in parts if part in SIZES]
    numbers = [int(number) for number in re.findall(r"[0-9]+", entry)]
    return (min(ranks, default=SIZES.index("small") + 0.5), *sorted(numbers, reverse=True), len(entry))


def _options(entry: str) -> set[str]:
    """The family of a model, and all that its factory sets: numbers by name alone, the rest with the
    value."""
    family = entry.split("_")[0].rstrip("0123456789")
    found = {f"family {family} {place}" for place in range(3)}  # counts as much as three options
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(timm.model_entrypoint(entry))))):
        if isinstance(node, ast.Call):
            found |= {_option(k.arg, k.value) for k in node.keywords if k.arg not in (None, "pretrained")}
    return found


def _option(name: str | None, value: ast.expr) -> str:
    said = (ast.Name, ast.Call, ast.Dict)
    parts = list(ast.walk(value))
    constants = [part.value for part in parts if isinstance(part, ast.Constant)]
    plain = all(type(constant) in (int, float) for constant in constants)
    return (
        f"{name}" if plain and not any(isinstance(p, said) for p in parts) else f"{name}={ast.unparse(value)}"
    )
