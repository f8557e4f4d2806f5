"""``timm:NAME``: a model of timm with its published weights, or with random ones."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from fxplain.adapters.generic import transform_encoder
from fxplain.adapters.loaded import Loaded, LoadOptions
from fxplain.adapters.media.images import ImageSpec, encode_images, sample_image
from fxplain.adapters.names import near
from fxplain.adapters.show import Show
from fxplain.capture.inputs import positional_names
from fxplain.errors import LoadError, first_line

SEED = 0
"""Random weights are the same in every run."""


def load(text: str, options: LoadOptions) -> Loaded:
    """Build the architecture, with its published weights unless random ones were asked for.

    timm reads weights as tensors only, from safetensors where they are published so.

    Raises:
        LoadError: timm is not installed, it has no such model (near names are offered), or no weights.
    """
    try:
        import timm
    except ImportError as error:
        raise LoadError(
            "timm is not installed", where=text, hint="install it: pip install 'fxplain[timm]'"
        ) from error
    name = text.partition(":")[2]
    remote = name.startswith(("hf-hub:", "hf_hub:", "local-dir:"))  # timm's own ways to name a repository
    if not remote and not timm.is_model(name.partition(".")[0]):
        hint = near(name, timm.list_models())
        raise LoadError(
            "timm has no model of that name",
            expected="a name of timm.list_models()",
            found=repr(name),
            hint=f"did you mean {hint}?" if hint else None,
        )
    model = _create(name, options.random_weights)
    return _loaded(model, name, options.random_weights)


def _create(name: str, random: bool) -> Any:
    import timm

    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            return timm.create_model(name, pretrained=not random)
    except Exception as error:  # whatever the network, the cache or the file raises
        raise LoadError(
            "the model cannot be made",
            where=f"timm:{name}",
            expected="published weights in the cache, or a way to fetch them",
            found=first_line(error),
            hint=None if random else "for the architecture alone add --random-weights",
        ) from error


def _data() -> Any:
    # by name, as the library exports without saying so to type checkers
    return importlib.import_module("timm.data")


def _loaded(model: Any, name: str, random: bool) -> Loaded:
    data = _data()

    config = data.resolve_model_data_config(model)
    key = positional_names(model, 1)[0]
    channels, height, width = config["input_size"]
    spec = ImageSpec(height, width, channels, tuple(config["mean"]), tuple(config["std"]))
    return Loaded(
        model,
        name.partition(":")[2] or name,
        encode=transform_encoder(key, data.create_transform(**config, is_training=False)),
        show=Show(spec.mean, spec.std),
        dummy=lambda: {key: encode_images([sample_image(height, width)], spec)},
        labels={} if random else _labels(model),
        notes=("the weights are random",) if random else (),
    )


def _labels(model: Any) -> dict[int, str]:
    """Names of the classes, where the published configuration or timm's own ImageNet tables tell them."""
    data = _data()

    own = model.pretrained_cfg.get("label_names")
    if own:
        return dict(enumerate(own))
    subset = data.infer_imagenet_subset(model)
    if subset is None:
        return {}
    table = data.ImageNetInfo(subset)
    return {index: table.index_to_description(index) for index in range(table.num_classes())}
