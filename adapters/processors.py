"""Tokenizers, image processors and processors that lie beside a model, and what they know."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fxplain.adapters.show import Show
from fxplain.adapters.tensors import argument
from fxplain.adapters.text import Speller
from fxplain.errors import first_line

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
_VIDEO_FILES = ("video_preprocessor_config.json",)
_IMAGE_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True, eq=False)
class Processors:
    """What lies beside the model: each part may be missing.

    Args:
        joint: one object that takes pictures and texts together.
        image: turns pictures into pixels.
        tokenizer: turns texts into ids.
        audio: turns sounds into what the model takes.
        video: turns videos into pixels, where ``image`` does not.
        notes: what could not be loaded, and why.
    """

    joint: Any = None
    image: Any = None
    tokenizer: Any = None
    audio: Any = None
    notes: tuple[str, ...] = ()
    video: Any = None

    @staticmethod
    def of(one: Any) -> Processors | None:
        """The parts of a tokenizer, of a processor of pictures or sounds, or of what holds several; None of
        anything else."""
        if type(one).__module__.partition(".")[0] == "tokenizers":
            one = importlib.import_module("transformers").PreTrainedTokenizerFast(tokenizer_object=one)
        parts = [getattr(one, name, None) for name in ("image_processor", "tokenizer", "feature_extractor")]
        image, tokenizer, audio = parts
        audio = audio if hasattr(audio, "sampling_rate") else None
        video = getattr(one, "video_processor", None)
        if any(part is not None for part in (image, tokenizer, audio, video)):
            both = one if image is not None and tokenizer is not None else None
            return Processors(both, image, tokenizer, audio, video=video)
        if hasattr(one, "convert_ids_to_tokens") and hasattr(one, "decode"):
            return Processors(tokenizer=one)
        if hasattr(one, "sampling_rate") and callable(one):
            return Processors(audio=one)
        if not (hasattr(one, "image_mean") and callable(one)):
            return None
        return Processors(video=one) if hasattr(one, "do_sample_frames") else Processors(image=one)

    def show(self, model: Any = None) -> Show:
        """How to undo the normalisation and spell the tokens."""
        spell = Speller(self.tokenizer) if self.tokenizer is not None else None
        ids = "input_ids" if model is None else argument(model, "input_ids")
        seen = self.image if self.image is not None else self.video
        if seen is None:
            return Show(spell=spell, ids=ids)
        mean, std = getattr(seen, "image_mean", None), getattr(seen, "image_std", None)
        if not getattr(seen, "do_normalize", True) or mean is None or std is None:
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        if any(getattr(seen, name, None) is True for name in ("offset", "rescale_offset")):
            mean = tuple(one + 1 for one in _floats(mean))  # scaled to -1..1 before it is normalised
        rescale = float(getattr(seen, "rescale_factor", None) or 1 / 255)
        scale = 255 * rescale if getattr(seen, "do_rescale", True) else 255.0
        return Show(_floats(mean), _floats(std), scale, spell, ids)


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
    audio = getattr(joint, "feature_extractor", None)
    if has_image and image is None and audio is None:
        audio = _attempt(transformers.AutoFeatureExtractor, where, common, None)
    audio = audio if hasattr(audio, "sampling_rate") else None
    video = getattr(joint, "video_processor", None)
    if video is None and any(_has(where, name, local) for name in _VIDEO_FILES):
        video = _attempt(getattr(transformers, "AutoVideoProcessor", None), where, common, None)
    both = joint if hasattr(joint, "image_processor") and hasattr(joint, "tokenizer") else None
    return Processors(both, image, tokenizer, audio, tuple(notes), video)


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
