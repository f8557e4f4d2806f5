"""Picture files, and the plain preprocessing for models that bring none of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fxplain.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

DEFAULT_SIZE = 224
"""Pixels; used when a model says nothing of the size of its pictures."""


@dataclass(frozen=True)
class ImageSpec:
    """What a model takes as a picture: size in pixels, channels, and the normalisation of pixels in 0..1."""

    height: int = DEFAULT_SIZE
    width: int = DEFAULT_SIZE
    channels: int = 3
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def open_image(path: Path, notes: list[str] | None = None) -> Image:
    """A picture file, upright, as RGB with 8 bits.

    Deeper pictures are scaled to 8 bits, transparent places become white, and of several frames the first is
    taken. A line about each of these is added to ``notes``.

    Raises:
        InputError: no such file, or not a picture that Pillow can read.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not path.is_file():
        raise InputError("there is no such picture", where=str(path))
    said: list[str] = []
    try:
        with Image.open(path) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1:
                said.append(f"only the first of its {frames} frames is explained")
            found = _rgb(ImageOps.exif_transpose(image), said, deep=image.format == "PNG")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            "the file cannot be read as a picture",
            where=str(path),
            expected="a whole picture file, such as PNG or JPEG",
            found=f"{type(error).__name__}: {error}",
        ) from error
    if notes is not None:
        notes += [f"{path.name}: {one}" for one in said]
    return found


def picture_of(given: Any, notes: list[str] | None = None) -> Image:
    """A picture as RGB with 8 bits, of a file or of what is in memory.

    Args:
        given: a path, a picture of Pillow, or an array or tensor uint8 [H, W, 3] or [H, W].
        notes: lines about what was changed are added here.

    Raises:
        InputError: it is no picture.
    """
    from PIL import Image

    if isinstance(given, (str, Path)):
        return open_image(Path(given), notes)
    if not isinstance(given, Image.Image):
        import numpy as np

        array = np.asarray(given)
        if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] == 3)):
            raise InputError(
                "this is no picture",
                expected="a file, a picture of Pillow, or an array uint8 [height, width, 3]",
                found=f"{type(given).__name__} {array.dtype} {list(array.shape)}",
                hint="tensors as the model is called with go by name: explainer({'pixel_values': ...})",
            )
        given = Image.fromarray(array)
    return _rgb(given, notes if notes is not None else [], deep=False)


def _rgb(image: Image, said: list[str], deep: bool) -> Image:
    """What Pillow's own conversion clips, drops or guesses is done here, and said."""
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image, said, deep)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] != 255:
            said.append("its transparent places are taken as white")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode in ("CMYK", "YCCK"):
        said.append("its CMYK colours are converted to RGB without a colour profile")
    return image.convert("RGB")


def _eight_bits(image: Image, said: list[str], deep: bool) -> Image:
    """Grey values of 16 or 32 bits or floats on 0..255; by the range of the type where it has one.

    ``deep``: whole numbers are of 16 bits, whatever type holds them (older Pillow reads PNG so).
    """
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("the picture holds values that are not finite")
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I;16") or (deep and low >= 0 and high <= 65535):
        low, high, how = 0.0, 65535.0, "its 16-bit values are scaled to 8 bits"
    elif image.mode == "F" and low >= 0 and high <= 1:
        low, high, how = 0.0, 1.0, "its floats in 0..1 are scaled to 8 bits"
    elif low >= 0 and high <= 255:
        low, high, how = 0.0, 255.0, "its values in 0..255 are rounded to 8 bits"
    else:
        how = f"its values, {low:g} to {high:g}, are stretched to 8 bits"
    said.append(how)
    scaled = (values - low) / max(high - low, 1e-12) * 255
    return Image.fromarray(scaled.round().astype(np.uint8))


def encode_images(images: Sequence[Image], spec: ImageSpec) -> Tensor:
    """Pictures -> [batch, C, H, W] float32: centre cropped, resized, scaled to 0..1, normalised."""
    batch = torch.stack([_pixels(fitted(image, spec.height, spec.width), spec.channels) for image in images])
    if spec.mean:
        shape = (1, -1, 1, 1)
        batch = (batch - torch.tensor(spec.mean).view(shape)) / torch.tensor(spec.std).view(shape)
    return batch


def fitted(image: Image, height: int, width: int) -> Image:
    """The largest centred part of the picture that has the wanted shape, resized to it."""
    from PIL import Image, ImageOps

    return ImageOps.fit(image, (width, height), method=Image.Resampling.BICUBIC)


def _pixels(image: Image, channels: int) -> Tensor:
    import numpy as np

    array = np.asarray(image.convert("L") if channels == 1 else image, dtype=np.float32) / 255
    return torch.from_numpy(array if array.ndim == 3 else array[..., None]).movedim(-1, 0).contiguous()


def sample_image(height: int, width: int) -> Image:
    """A smooth colour gradient to trace a model with."""
    import numpy as np
    from PIL import Image

    rows, columns = np.linspace(0, 255, height)[:, None], np.linspace(0, 255, width)[None, :]
    planes = [rows + 0 * columns, 0 * rows + columns, (rows + columns) / 2]
    return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))


def spec_of(model: Any, example: Tensor | None = None) -> ImageSpec:
    """The picture a model takes: from an example tensor, else its config, else its first convolution."""
    if example is not None:
        return ImageSpec(int(example.shape[-2]), int(example.shape[-1]), int(example.shape[-3]))
    config = getattr(model, "config", None)
    config = getattr(config, "vision_config", None) or config
    size = _size(getattr(config, "image_size", None) or getattr(model, "image_size", None))
    channels = getattr(config, "num_channels", None) or _first_conv_channels(model)
    return ImageSpec(*size, channels=int(channels))


def _size(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    if isinstance(value, (tuple, list)) and len(value) >= 2:
        return int(value[-2]), int(value[-1])
    return DEFAULT_SIZE, DEFAULT_SIZE


def _first_conv_channels(model: Any) -> int:
    modules = model.modules() if isinstance(model, torch.nn.Module) else ()
    convolutions = (module for module in modules if isinstance(module, torch.nn.Conv2d))
    return next((conv.in_channels for conv in convolutions if conv.in_channels in (1, 3)), 3)
