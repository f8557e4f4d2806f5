"""Tokenizers, image processors and processors that lie beside a model, and what they know."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fxplain.adapters.images import encode_images, open_image, spec_of
from fxplain.adapters.loaded import Encode, Request
from fxplain.adapters.show import Show
from fxplain.adapters.tensors import mapped_tensors
from fxplain.adapters.text import Speller
from fxplain.errors import InputError, first_line

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "source.spm",
)
_IMAGE_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True, eq=False)
class Processors:
    """What lies beside the model: each part may be missing.

    Args:
        joint: one object that takes pictures and texts together.
        image: turns pictures into pixels.
        tokenizer: turns texts into ids.
        notes: what could not be loaded, and why.
    """

    joint: Any = None
    image: Any = None
    tokenizer: Any = None
    notes: tuple[str, ...] = ()

    def show(self) -> Show:
        """How to undo the normalisation and spell the tokens."""
        spell = Speller(self.tokenizer) if self.tokenizer is not None else None
        if self.image is None:
            return Show(spell=spell)
        mean, std = getattr(self.image, "image_mean", None), getattr(self.image, "image_std", None)
        if not getattr(self.image, "do_normalize", True) or mean is None or std is None:
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        rescale = float(getattr(self.image, "rescale_factor", None) or 1 / 255)
        scale = 255 * rescale if getattr(self.image, "do_rescale", True) else 255.0
        return Show(_floats(mean), _floats(std), scale, spell)


def _floats(value: Any) -> tuple[float, ...]:
    return tuple(float(one) for one in value) if isinstance(value, (list, tuple)) else (float(value),) * 3


def load_processors(where: str, model: Any, common: Mapping[str, Any]) -> Processors:
    """Load the parts whose files are there: without a look at them an empty tokenizer is invented."""
    import transformers

    local = {"local_files_only": common["local_files_only"]}
    has_image = any(_has(where, name, local) for name in _IMAGE_FILES)
    has_tokenizer = any(_has(where, name, local) for name in _TOKENIZER_FILES)
    notes: list[str] = []
    joint = _attempt(transformers.AutoProcessor, where, common, None) if has_image else None
    image = getattr(joint, "image_processor", None)
    tokenizer = getattr(joint, "tokenizer", None)
    if has_image and image is None:
        image = _attempt(transformers.AutoImageProcessor, where, common, None)
    if has_tokenizer and tokenizer is None:
        tokenizer = _attempt(transformers.AutoTokenizer, where, common, notes)
    both = joint if hasattr(joint, "image_processor") and hasattr(joint, "tokenizer") else None
    return Processors(both, image, tokenizer, tuple(notes))


def _attempt(auto: Any, where: str, common: Mapping[str, Any], notes: list[str] | None) -> Any:
    try:
        return auto.from_pretrained(where, **common)
    except Exception as error:  # a part that cannot be loaded is missing; who needs it is told
        if notes is not None:
            notes.append(f"{auto.__name__} could not be loaded: {first_line(error)}")
        return None


def _has(where: str, name: str, local: Mapping[str, Any]) -> bool:
    utils: Any = importlib.import_module("transformers.utils")
    return (
        utils.cached_file(
            where,
            name,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **local,
        )
        is not None
    )


def accepted(model: Any) -> frozenset[str]:
    """Names of forward's own parameters, without ``**kwargs``."""
    parameters = inspect.signature(model.forward).parameters.values()
    return frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))


def encoder(model: Any, processors: Processors) -> Encode:
    """Pictures and texts -> the inputs that the model's forward names, in the model's own precision."""

    def encode(request: Request) -> dict[str, Any]:
        if request.images and request.texts and processors.joint is not None:
            found = _joint(model, processors, request)
        else:
            found = {**_images(model, processors, request), **_texts(model, processors, request)}
        found |= _decoder(model, processors, request.decoder_text, found)
        names = accepted(model)
        kept = {name: value for name, value in found.items() if name in names and torch.is_tensor(value)}
        return cast(kept, model)

    return encode


def cast(inputs: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Floating tensors in the model's dtype; the rest as it is."""
    dtype = model.dtype
    return {
        name: mapped_tensors(value, lambda t: t.to(dtype) if t.is_floating_point() else t)
        for name, value in inputs.items()
    }


def _joint(model: Any, processors: Processors, request: Request) -> dict[str, Any]:
    images = [open_image(path, request.notes) for path in request.images]
    marker = getattr(processors.joint, "image_token", None)
    texts = [marker + text if marker and marker not in text else text for text in request.texts]
    try:
        length = _length(model, processors, texts)
        found = dict(processors.joint(images=images, text=texts, return_tensors="pt", **length))
        _note_cut(found, length, request, lambda whole: processors.joint(images=images, text=texts, **whole))
        return found
    except Exception as error:  # processors check little, and raise whatever comes
        raise InputError(
            "the model's processor cannot turn the picture and the text into inputs", found=first_line(error)
        ) from error


def _images(model: Any, processors: Processors, request: Request) -> dict[str, Any]:
    if not request.images:
        return {}
    if "pixel_values" not in accepted(model):
        raise _takes_no("picture", model, "--image")
    images = [open_image(path, request.notes) for path in request.images]
    if processors.image is None:
        request.notes.append(_NO_PROCESSOR)
        return {"pixel_values": encode_images(images, spec_of(model))}
    try:
        return dict(processors.image(images, return_tensors="pt"))
    except Exception as error:  # as above
        raise InputError(
            "the model's image processor cannot turn the picture into inputs", found=first_line(error)
        ) from error


def _texts(model: Any, processors: Processors, request: Request) -> dict[str, Any]:
    texts = list(request.texts)
    if not texts:
        return {}
    if "input_ids" not in accepted(model):
        raise _takes_no("text", model, "--text")
    if processors.tokenizer is None:
        raise InputError(
            "no tokenizer lies beside the model, so texts cannot become its inputs",
            expected="tokenizer files in the folder",
            hint="save the tokenizer there with save_pretrained, or give token ids with --input FILE.pt",
        )
    try:
        length = _length(model, processors, texts)
        found = processors.tokenizer(texts, return_tensors="pt", **length)
        _note_cut(found, length, request, lambda whole: processors.tokenizer(texts, **whole))
    except Exception as error:  # a tokenizer without a padding token, for instance
        raise InputError(
            "the model's tokenizer cannot turn the text into inputs", found=first_line(error)
        ) from error
    return dict(found)


_NO_PROCESSOR = "no image processor lies beside the model: pictures are cropped and scaled to 0..1 only"


def _takes_no(what: str, model: Any, flag: str) -> InputError:
    return InputError(
        f"the model takes no {what}",
        expected=", ".join(sorted(accepted(model) & _INPUTS)) or "other inputs",
        found=flag,
    )


_INPUTS = frozenset({"input_ids", "pixel_values", "input_features", "input_values", "pixel_values_videos"})


def _length(model: Any, processors: Processors, texts: Any) -> dict[str, Any]:
    """Padding for several texts, and truncation to what the model can take."""
    config = model.config.get_text_config()
    limit = getattr(processors.tokenizer, "model_max_length", None)
    limits = (limit, getattr(config, "max_position_embeddings", None))
    finite = [limit for limit in limits if isinstance(limit, int) and 0 < limit < 10**6]
    options: dict[str, Any] = {"padding": True} if len(texts) > 1 else {}
    return {**options, "truncation": True, "max_length": min(finite)} if finite else options


def _note_cut(
    found: Mapping[str, Any],
    length: Mapping[str, Any],
    request: Request,
    encode: Callable[[dict[str, Any]], Mapping[str, Any]],
) -> None:
    """Say which texts are longer than what the model takes, and by how much."""
    limit = length.get("max_length")
    if limit is None or "input_ids" not in found or found["input_ids"].shape[-1] < limit:
        return
    for number, ids in enumerate(encode({"truncation": False})["input_ids"]):
        if len(ids) > limit:
            which = f"text {number}" if len(request.texts) > 1 else "the text"
            request.notes.append(f"{which} is cut: it has {len(ids)} tokens, and the model takes {limit}")


def _decoder(
    model: Any, processors: Processors, text: str | None, found: Mapping[str, Any]
) -> dict[str, Any]:
    """What the decoder has said so far: its start token, then the text; for models that generate."""
    if "decoder_input_ids" not in accepted(model):
        if text is not None:
            raise _takes_no("decoder text", model, "--decoder-text")
        return {}
    if text is None and not model.can_generate():  # such a model makes its decoder's input from the encoder's
        return {}
    ids = [decoder_start(model)]
    if text:
        if processors.tokenizer is None:
            raise InputError("no tokenizer lies beside the model", expected="tokenizer files in the folder")
        ids += processors.tokenizer(text, add_special_tokens=False)["input_ids"]
    batch = next((value.shape[0] for value in found.values() if torch.is_tensor(value)), 1)
    return {"decoder_input_ids": torch.tensor([ids] * batch)}


def decoder_start(model: Any) -> int:
    """Id of the token a decoder starts from."""
    places = (getattr(model, "generation_config", None), model.config, model.config.get_text_config())
    names = ("decoder_start_token_id", "bos_token_id", "pad_token_id")
    values = (getattr(place, name, None) for name in names for place in places)
    return next((value for value in values if isinstance(value, int)), 0)


def target_names(model: Any, processors: Processors) -> dict[int, str]:
    """Names of the last axis of the output: words for a language model, classes for a classifier."""
    if model.get_output_embeddings() is not None and processors.tokenizer is not None:
        size = len(processors.tokenizer)
        pieces = processors.tokenizer.convert_ids_to_tokens(list(range(size)))
        speller = Speller(processors.tokenizer)
        after = processors.tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        return {
            index: str(piece)
            if index in speller.marks or index == speller.unknown
            else speller.word(index, after)
            for index, piece in enumerate(pieces)
            if piece is not None
        }
    names = dict(getattr(model.config, "id2label", None) or {})
    if all(name == f"LABEL_{index}" for index, name in names.items()):  # what every configuration starts from
        return {}
    return {int(index): str(name) for index, name in names.items()}
