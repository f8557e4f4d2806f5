"""For models that bring no preprocessing: pictures of the size the model takes, by the plain way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fxplain.adapters.images import ImageSpec, encode_images, open_image, spec_of
from fxplain.adapters.loaded import Encode, Loaded, Request
from fxplain.adapters.show import Show, is_picture
from fxplain.adapters.tensors import tensor_items
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


def picture_input(model: Any, inputs: Any) -> tuple[str, Tensor] | None:
    """Name and tensor of the first input that looks like a picture."""
    if inputs is None:
        return None
    return next(((name, t) for name, t in tensor_items(model, inputs) if is_picture(t) and t.ndim == 4), None)


def image_encoder(key: str, spec: ImageSpec, rest: Mapping[str, Any] | None = None) -> Encode:
    """An encoder for models that take one picture tensor under ``key``, and always the same other inputs."""

    def encode(request: Request) -> dict[str, Any]:
        _refuse_text(request)
        images = [open_image(path, request.notes) for path in request.images]
        if images and not spec.mean:
            request.notes.append(PLAIN)
        return {key: encode_images(images, spec), **(rest or {})}

    return encode


def transform_encoder(key: str, transform: Callable[[Any], Tensor]) -> Encode:
    """An encoder for models whose ecosystem tells how one picture becomes a tensor [C, H, W]."""

    def encode(request: Request) -> dict[str, Any]:
        _refuse_text(request)
        return {key: torch.stack([transform(open_image(path, request.notes)) for path in request.images])}

    return encode


def _refuse_text(request: Request) -> None:
    if request.texts or request.decoder_text is not None:
        raise InputError(
            "the model comes with no tokenizer that could turn the text into its inputs",
            expected="a picture (--image) or tensors (--input)",
            found="a text",
        )
