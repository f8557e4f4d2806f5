"""Inputs made up from a model's configuration, to trace it with when a person gives none.

The table knows the customary *names and shapes of inputs*; nothing about what the model does with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fxplain.adapters.encoding import cast, decoder_start
from fxplain.adapters.media.images import encode_images, sample_image, spec_of
from fxplain.adapters.processors import Processors
from fxplain.adapters.tensors import accepted

TEXT = "a photo"
_TOKENS = 8
_REGIONS = 6


def example_inputs(model: Any, processors: Processors) -> dict[str, Tensor] | None:
    """A small batch of one, by the processor where there is one; None if a needed input cannot be made up."""
    found = _processed(model, processors)
    names = accepted(model)
    for name, make in _MADE.items():
        if name in names and name not in found:
            tensor = make(model, found)
            if tensor is not None:
                found[name] = tensor
    return cast({name: value for name, value in found.items() if name in names}, model) or None


def _processed(model: Any, processors: Processors) -> dict[str, Tensor]:
    """A gradient picture and a short text through the model's own processor; {} where that does not work."""
    names = accepted(model)
    spec = spec_of(model)
    image = sample_image(spec.height, spec.width)
    try:
        if processors.joint is not None and {"pixel_values", "input_ids"} <= names:
            marker = getattr(processors.joint, "image_token", None) or ""
            made = processors.joint(images=image, text=[marker + TEXT], return_tensors="pt")
        elif processors.image is not None and "pixel_values" in names:
            made = processors.image(image, return_tensors="pt")
        elif processors.tokenizer is not None and "input_ids" in names:
            made = processors.tokenizer([TEXT], return_tensors="pt")
        else:
            return {}
    except Exception:  # the table below makes up what the processor could not
        return {}
    return {name: value for name, value in dict(made).items() if torch.is_tensor(value)}


def _ids(model: Any, found: Mapping[str, Tensor]) -> Tensor | None:
    config = model.config.get_text_config()
    size = getattr(config, "vocab_size", None)
    limit = getattr(config, "max_position_embeddings", None) or _TOKENS
    if size is None:
        return None
    ids = torch.arange(min(_TOKENS, int(limit))) % int(size)
    last = getattr(config, "eos_token_id", None)
    if isinstance(last, int) and last < size:  # some heads read the row of the closing token
        ids = torch.where(ids == last, (last + 1) % int(size), ids)
        ids[-1] = last
    return ids[None]


def _mask(model: Any, found: Mapping[str, Tensor]) -> Tensor | None:
    return torch.ones_like(found["input_ids"]) if "input_ids" in found else None


def _pixels(model: Any, found: Mapping[str, Tensor]) -> Tensor | None:
    spec = spec_of(model)
    return encode_images([sample_image(spec.height, spec.width)], spec)


def _spectrogram(model: Any, found: Mapping[str, Tensor]) -> Tensor | None:
    bins = getattr(model.config, "num_mel_bins", None)
    frames = getattr(model.config, "max_source_positions", None)
    return torch.zeros(1, int(bins), 2 * int(frames)) if bins and frames else None


def _wave(model: Any, found: Mapping[str, Tensor]) -> Tensor | None:
    return torch.linspace(-1, 1, 16000).sin()[None] if hasattr(model.config, "conv_kernel") else None


def _decoder_ids(model: Any, found: Mapping[str, Tensor]) -> Tensor | None:
    if not getattr(model.config, "is_encoder_decoder", False):
        return None
    if not model.can_generate() and "input_ids" in found:  # heads may look for the closing token
        return found["input_ids"].clone()
    return torch.tensor([[decoder_start(model)]])


def _regions(width: str) -> Callable[[Any, Mapping[str, Tensor]], Tensor | None]:
    def make(model: Any, found: Mapping[str, Tensor]) -> Tensor | None:
        size = getattr(model.config, width, None)
        return torch.linspace(0, 1, _REGIONS * int(size)).view(1, _REGIONS, int(size)) if size else None

    return make


_MADE: Mapping[str, Callable[[Any, Mapping[str, Tensor]], Tensor | None]] = {
    "input_ids": _ids,
    "attention_mask": _mask,
    "pixel_values": _pixels,
    "input_features": _spectrogram,
    "input_values": _wave,
    "visual_feats": _regions("visual_feat_dim"),
    "visual_pos": _regions("visual_pos_dim"),
    "visual_embeds": _regions("visual_embedding_dim"),
    "decoder_input_ids": _decoder_ids,
}
"""Name of an input -> how to make one up; in order, as later ones may look at earlier ones."""
