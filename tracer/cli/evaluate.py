"""``fxplain evaluate``: how far methods can be trusted, on the demo's model or on your own inputs."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from torch import Tensor

from fxplain.cli.methods import parse_methods
from fxplain.cli.options import Ask, tell, working
from fxplain.errors import InputError, MethodError, OutputError
from fxplain.explainer.names import parse_target

if TYPE_CHECKING:
    from fxplain.adapters import Loaded
    from fxplain.display import Display
    from fxplain.evaluate import Removal, Table
    from fxplain.traced import Traced

SUFFIXES = (".json", ".md", ".png")
_SPECIAL = re.compile(r"\[[A-Z]+\]|<[^<> ]+>")
"""How tokenizers spell tokens that are no words: [CLS], </s>, <|endoftext|>."""


@dataclass(frozen=True)
class Wanted:
    """What is to be evaluated, as it was written on the command line."""

    methods: str
    steps: str
    score: str
    target: str | None
    output: str | None
    count: int
    batch: int
    seed: int

    def common(self) -> dict[str, Any]:
        """What every table takes."""
        return {"batch": self.batch, "seed": self.seed}


def run_evaluate(ask: Ask | None, wanted: Wanted, out: Sequence[Path]) -> None:
    """Evaluate, print the tables, and write them."""
    from fxplain.evaluate.curves import protocol

    methods = parse_methods(wanted.methods)
    protocol(wanted.steps)
    for path in out:
        _check(path)
    tables = list(_demo(methods, wanted) if ask is None else _own(ask, methods, wanted))
    typer.echo("\n\n".join(table.text() for table in tables))
    for path in out:
        for place, table in enumerate(tables):
            # the first table has the name that was given, others say what they are
            file = path if not place else path.with_name(f"{path.stem}-{_slug(table)}{path.suffix}")
            table.save(file)
            typer.echo(f"wrote {file}")


def _slug(table: Table) -> str:
    return table.title.split()[0]


def _check(path: Path) -> None:
    from fxplain.files import check_folder

    if path.suffix.lower() not in SUFFIXES:
        raise OutputError(
            f"an evaluation cannot be written as {path.name!r}",
            expected=f"a name that ends in {', '.join(SUFFIXES)}",
            found=path.suffix or "no suffix",
        )
    check_folder(path)


def _demo(methods: Sequence[str], wanted: Wanted) -> Iterator[Table]:
    """The demo's model on canvases with known masks: perturbation, then localisation."""
    import fxplain
    from fxplain import evaluate
    from fxplain.demo import load_demo
    from fxplain.demo.held_out import BLACK, questions

    with working("loading the demo's model"):
        model, asked = load_demo().model, questions(wanted.count)
    inputs = {"pixel_values": asked.pixel_values}
    with working("capturing the model and finding its attentions"):
        traced = fxplain.trace(model, {"pixel_values": asked.pixel_values[: wanted.batch]})

    def score(output: Any, part: slice) -> Tensor:
        return asked.named_right(output.logits, part)

    yield evaluate.perturbation(
        traced,
        inputs,
        asked.targets,
        methods,
        removal=evaluate.Pixels(value=BLACK),
        steps=wanted.steps,
        score=score if wanted.score == "accuracy" else "target",
        **wanted.common(),
    )
    try:
        yield evaluate.localisation(traced, inputs, asked.masks, asked.targets, methods, **wanted.common())
    except MethodError as error:  # scikit-learn is an extra; the curves need none
        typer.echo(f"no localisation: {error}", err=True)


def _own(ask: Ask, methods: Sequence[str], wanted: Wanted) -> Iterator[Table]:
    """A user's model on the inputs that were given: perturbation."""
    import fxplain
    from fxplain import evaluate

    if not ask.has_inputs:
        raise InputError(
            "there is nothing to evaluate on",
            expected="pictures (--image), texts (--text) or a file of tensors (--input), many of them",
            hint="without MODEL the demo's model is evaluated on the demo's canvases",
        )
    if wanted.score not in ("accuracy", "target"):
        raise InputError("this cannot be scored", expected="accuracy or target", found=wanted.score)
    loaded = ask.load()
    inputs, display = ask.prepare(loaded)
    tell((*loaded.notes, *display.notes))
    target = parse_target(wanted.target, loaded.labels) if wanted.target is not None else None
    with working("capturing the model and finding its attentions"):
        traced = fxplain.trace(loaded.model, inputs)
    removal = chosen_removal(traced, inputs, display, loaded, ask.images)
    yield evaluate.perturbation(
        traced,
        inputs,
        target,
        methods,
        removal=removal,
        steps=wanted.steps,
        score="accuracy" if wanted.score == "accuracy" else "target",
        output=wanted.output,
        **wanted.common(),
    )


def chosen_removal(
    traced: Traced, inputs: Any, display: Display, loaded: Loaded, images: Sequence[Path]
) -> Removal:
    """What can be removed from these inputs: pixels of a picture are blackened, else tokens are deleted.

    Raises:
        InputError: no token was born from an input by itself.
    """
    from fxplain.evaluate import Delete, Pixels
    from fxplain.evaluate.removal import named

    tensors = {name: value for name, value in named(inputs).items() if isinstance(value, Tensor)}
    spaces = [space for space in traced.spaces if space.origin == "input" and space.name in tensors]
    for space in spaces:
        if len(space.grid) == 2 and tensors[space.name].ndim == 4:
            return Pixels(space.name, _black(loaded, images, space.name))
    for space in spaces:
        tokens = tensors[space.name]
        if tokens.ndim >= 2 and tokens.shape[1] == space.size:
            alike = [n for n, v in tensors.items() if v.shape[:2] == tokens.shape[:2] and n != space.name]
            mask = next((n for n in alike if "mask" in n), None)
            first, last = _special(display, space.name)
            others = tuple(name for name in alike if name != mask)
            return Delete(space.name, others, mask, first, last)
    raise InputError(
        "there is nothing to remove",
        expected="a picture with a grid of tokens, or a sequence with one token per place, by name",
        found=", ".join(f"{name} {list(value.shape)}" for name, value in tensors.items()),
        hint="fxplain.evaluate.perturbation takes a removal of your own",
    )


def _black(loaded: Loaded, images: Sequence[Path], name: str) -> float | tuple[float, ...]:
    """What the model's own processor makes of black; 0 where the picture came as a tensor."""
    if not images:
        return 0.0
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder, Image.open(images[0]) as image:
        file = Path(folder) / "black.png"
        Image.new("RGB", image.size).save(file)
        black, _ = loaded.prepare(image=[file])
    return tuple(black[name].float().mean((0, 2, 3)).tolist())


def _special(display: Display, space: str) -> tuple[int, int]:
    """How many tokens at either end of every text are no words."""
    padding = ("[PAD]", "<pad>")
    texts = [[token for token in text if token not in padding] for text in display.tokens.get(space, ())]
    if not texts or not all(texts):
        return 0, 0
    first = min(_leading(text) for text in texts)
    last = min(_leading(text[::-1]) for text in texts)
    return first, last


def _leading(tokens: Sequence[str]) -> int:
    return next((i for i, token in enumerate(tokens) if not _SPECIAL.fullmatch(token)), 0)
