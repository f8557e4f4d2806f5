"""For models of no ecosystem: a person's own processor, or pictures of the size the model takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxplain.adapters.encoding import encoder
from fxplain.adapters.loaded import Encode, Loaded, Request
from fxplain.adapters.media.images import ImageSpec, encode_images, picture_of, spec_of
from fxplain.adapters.names import target_names
from fxplain.adapters.processors import Processors
from fxplain.adapters.show import Show, Spell, is_picture
from fxplain.adapters.tensors import argument, tensor_items
from fxplain.capture.inputs import positional_names
from fxplain.errors import InputError

PLAIN = "pictures are cropped to the centre and scaled to 0..1; for other preprocessing give --input FILE.pt"


def loaded_from(model: Any, name: str, inputs: Any = None) -> Loaded:
    """A model and, if they are known, inputs that fit it; pictures go where the inputs hold one."""
    example = picture_input(model, inputs)
    if inputs is not None and example is None:  # it takes no pictures, as far as can be seen
        return Loaded(model, name, inputs=inputs)
    key, tensor = example or (positional_names(model, 1)[0], None)
    rest = dict(tensor_items(model, inputs)) if inputs is not None else {}
    encode = image_encoder(key, spec_of(model, tensor), {k: v for k, v in rest.items() if k != key})
    return Loaded(model, name, encode=encode, show=Show(), inputs=inputs)


def own(
    model: Any,
    processor: Any = None,
    labels: Mapping[int, str] | Sequence[str] = (),
    spell: Spell | None = None,
    name: str = "",
) -> Loaded:
    """Any module, and anything that makes its inputs.

    Args:
        model: the module.
        processor: a tokenizer, a processor of pictures or sounds, what holds several of them, or a function
            of what a person hands over. A function gives inputs as the model is called with; or a pair of
            them and a :class:`fxplain.Display`, by the names of inputs, of what is to be shown.
        labels: names of the targets.
        spell: ids of tokens -> the text of each.
        name: how to call the model.

    Raises:
        InputError: the processor is none of these.
    """
    named = dict(labels) if isinstance(labels, Mapping) else dict(enumerate(labels))
    title = name or Path(getattr(model, "name_or_path", "")).name or type(model).__name__
    parts = None if processor is None else Processors.of(processor)
    if parts is not None:
        show = parts.show(model)
        show = show if spell is None else replace(show, spell=spell)
        names = named or target_names(model, parts)
        return Loaded(model, title, encoder(model, parts), show, labels=names, processors=parts)
    if processor is not None and not callable(processor):
        raise InputError(
            "the processor can make no inputs",
            expected="a tokenizer, a processor of transformers, or a function",
            found=type(processor).__name__,
        )
    encode = None if processor is None else Function(processor)
    names = named or target_names(model, Processors())
    return Loaded(model, title, encode, Show(spell=spell, ids=argument(model, "input_ids")), labels=names)


@dataclass(frozen=True)
class Function:
    """A person's own function that makes inputs: of the one kind of thing that was handed over, or of several
    by name (``text``, ``text_pair``, ``images``, ``audio``, ``messages``)."""

    make: Callable[..., Any]

    def __call__(self, request: Request) -> Any:
        kinds = {
            "text": request.texts,
            "text_pair": request.pairs,
            "images": tuple(picture_of(one, request.notes) for one in request.images),
            "audio": request.sounds,
        }
        one = {
            name: several[0] if len(several) == 1 else list(several)
            for name, several in kinds.items()
            if several
        }
        one |= {"messages": list(request.chat)} if request.chat else {}
        if request.given is not None:
            return self.make(request.given, **one)
        return self.make(*one.values()) if len(one) == 1 else self.make(**one)


def picture_input(model: Any, inputs: Any) -> tuple[str, Tensor] | None:
    """Name and tensor of the first input that looks like a picture."""
    if inputs is None:
        return None
    return next(((name, t) for name, t in tensor_items(model, inputs) if is_picture(t) and t.ndim == 4), None)


def image_encoder(key: str, spec: ImageSpec, rest: Mapping[str, Any] | None = None) -> Encode:
    """An encoder for models that take one picture tensor under ``key``, and always the same other inputs."""

    def encode(request: Request) -> dict[str, Any]:
        _refuse_text(request)
        images = [picture_of(one, request.notes) for one in request.images]
        if images and not spec.mean:
            request.notes.append(PLAIN)
        return {key: encode_images(images, spec), **(rest or {})}

    return encode


def transform_encoder(key: str, transform: Callable[[Any], Tensor]) -> Encode:
    """An encoder for models whose ecosystem tells how one picture becomes a tensor [C, H, W]."""

    def encode(request: Request) -> dict[str, Any]:
        _refuse_text(request)
        return {key: torch.stack([transform(picture_of(one, request.notes)) for one in request.images])}

    return encode


def _refuse_text(request: Request) -> None:
    if request.texts or request.decoder_text is not None:
        raise InputError(
            "the model comes with no tokenizer that could turn the text into its inputs",
            expected="a picture (--image) or tensors (--input)",
            found="a text",
        )
