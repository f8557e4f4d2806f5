"""``torchvision:NAME``: a model of torchvision with its published weights, or with random ones."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from fxplain.adapters.generic import image_encoder, transform_encoder
from fxplain.adapters.loaded import Loaded, LoadOptions
from fxplain.adapters.media.images import ImageSpec, encode_images, sample_image
from fxplain.adapters.names import near
from fxplain.adapters.show import Show
from fxplain.capture.inputs import positional_names
from fxplain.errors import LoadError, first_line

SEED = 0
"""Random weights are the same in every run."""


def load(text: str, options: LoadOptions) -> Loaded:
    """Build the architecture, with the default published weights unless random ones were asked for.

    The weights come from torch's own cache, or are fetched as torchvision itself does; either way they are
    checked against their hash and read as tensors only.

    Raises:
        LoadError: no such model (near names are offered), or its weights cannot be had.
    """
    models = _models()

    name = text.partition(":")[2]
    if name not in models.list_models():
        hint = near(name, models.list_models())
        raise LoadError(
            "torchvision has no model of that name",
            expected="a name of torchvision.models.list_models()",
            found=repr(name),
            hint=f"did you mean {hint}?" if hint else None,
        )
    published = _default_weights(name)
    if options.random_weights:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            model = models.get_model(name, weights=None)
    else:
        model = _with_weights(name, published)
    return _loaded(model, name, published, options.random_weights)


def _models() -> Any:
    # by name, as the library carries no types
    return importlib.import_module("torchvision.models")


def _default_weights(name: str) -> Any:
    models = _models()

    published = models.get_model_weights(name)
    return published["DEFAULT"] if len(published) else None


def _with_weights(name: str, published: Any) -> Any:
    if published is None:
        raise LoadError("torchvision publishes no weights for it", where=name, hint="try --random-weights")
    try:
        state = published.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # whatever the network, the cache or the file raises
        raise LoadError(
            "the published weights cannot be had",
            where=f"torchvision:{name}, {published}",
            expected=f"{published.url} in torch's cache, or a way to fetch it",
            found=first_line(error),
            hint="for the architecture alone add --random-weights",
        ) from error
    return _filled(name, published, state)


def _filled(name: str, published: Any, state: dict[str, Any]) -> Any:
    """The architecture the weights were made for: some differ from the default in the size of the picture."""
    models = _models()

    meta = published.meta
    classes = {"num_classes": len(meta["categories"])} if meta.get("categories") else {}
    for more in ({}, {"image_size": meta.get("min_size", (0,))[0]}):
        try:
            model = models.get_model(name, weights=None, **classes, **more)
            model.load_state_dict(state)
        except (RuntimeError, TypeError) as error:
            problem = error
        else:
            return model
    raise LoadError(
        "the published weights do not fit the architecture",
        where=f"torchvision:{name}, {published}",
        found=first_line(problem),
    ) from problem


def _loaded(model: Any, name: str, published: Any, random: bool) -> Loaded:
    key = positional_names(model, 1)[0]
    transforms = published.transforms() if published is not None else None
    crop = getattr(transforms, "crop_size", None)
    mean, std = tuple(getattr(transforms, "mean", ())), tuple(getattr(transforms, "std", ()))
    size = int(crop[0]) if crop else ImageSpec().height
    spec = ImageSpec(size, size, mean=mean, std=std)
    categories = published.meta.get("categories", []) if published is not None else []
    # with random weights too the preset of the published ones is the right one for size and normalisation
    return Loaded(
        model,
        name,
        encode=transform_encoder(key, transforms) if transforms and crop else image_encoder(key, spec),
        show=Show(mean, std),
        dummy=lambda: {key: encode_images([sample_image(size, size)], spec)},
        labels={} if random else dict(enumerate(categories)),
        notes=("the weights are random",) if random else (),
    )
