"""Tokenizers, image processors and processors that lie beside a model, and what they know."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fxplain.adapters.loaded import Encode, Request
from fxplain.adapters.media.audio import sound_of, under
from fxplain.adapters.media.images import encode_images, picture_of, spec_of
from fxplain.adapters.media.video import count_of, frames_of
from fxplain.adapters.show import Show
from fxplain.adapters.tensors import MAIN_INPUTS, accepted, argument, mapped_tensors, takes_no
from fxplain.adapters.text import Speller
from fxplain.adapters.tokenizing import as_one_text, encode_texts, learn_turns, length_of, note_cut
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


def encoder(model: Any, processors: Processors) -> Encode:
    """Pictures, texts and sounds -> the inputs that the model's forward names, in its own precision."""

    def encode(request: Request) -> dict[str, Any]:
        if request.chat:
            request = as_one_text(processors, request)
        if (request.images or request.videos) and request.texts and processors.joint is not None:
            found = _joint(model, processors, request)
        else:
            found = {
                **_images(model, processors, request),
                **encode_texts(model, processors, request),
                **_sounds(model, processors, request),
                **_videos(model, processors, request),
            }
        learn_turns(processors, request, found)
        found |= _decoder(model, processors, request.decoder_text, found)
        names = accepted(model)
        renamed = {
            argument(model, name) if name in MAIN_INPUTS else name: value for name, value in found.items()
        }
        kept = {name: value for name, value in renamed.items() if name in names and torch.is_tensor(value)}
        return cast(kept, model)

    return encode


def cast(inputs: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Floating tensors in the model's dtype; the rest as it is."""
    floating = (p.dtype for p in model.parameters() if p.is_floating_point())
    dtype = getattr(model, "dtype", None) or next(floating, torch.float32)
    return {
        name: mapped_tensors(value, lambda t: t.to(dtype) if t.is_floating_point() else t)
        for name, value in inputs.items()
    }


def _joint(model: Any, processors: Processors, request: Request) -> dict[str, Any]:
    images = [picture_of(one, request.notes) for one in request.images]
    given: dict[str, Any] = {"images": images} if images else {}
    texts = list(request.texts)
    if images:
        texts = _marked(texts, getattr(processors.joint, "image_token", None))
    if request.videos:
        frames, times = _frames(model, request)
        given |= {"videos": frames, "do_sample_frames": False}
        request.learned.times["pixel_values_videos"] = times
        texts = _marked(texts, getattr(processors.joint, "video_token", None))
    try:
        length = length_of(model, processors, texts)
        length |= {} if request.special else {"add_special_tokens": False}
        found = dict(processors.joint(**given, text=texts, return_tensors="pt", **length))
        note_cut(found, length, request, lambda whole: processors.joint(**given, text=texts, **whole))
        return found
    except Exception as error:  # processors check little, and raise whatever comes
        raise InputError(
            "the model's processor cannot turn the picture and the text into inputs", found=first_line(error)
        ) from error


def _marked(texts: Sequence[str], marker: str | None) -> list[str]:
    """Texts with the mark that keeps the place of a picture or a video, where they have none."""
    return [marker + text if marker and marker not in text else text for text in texts]


def _frames(model: Any, request: Request) -> tuple[list[Any], tuple[float, ...]]:
    """The frames of every video, and the seconds at which those of the first stand."""
    read = [frames_of(one, count_of(model), request.notes) for one in request.videos]
    return [frames for frames, _ in read], read[0][1]


def _videos(model: Any, processors: Processors, request: Request) -> dict[str, Any]:
    if not request.videos:
        return {}
    names = [argument(model, name) for name in ("pixel_values_videos", "pixel_values")]
    if not accepted(model) & {*names}:
        raise takes_no("video", model, "--video")
    processor = processors.video if processors.video is not None else processors.image
    if processor is None:
        raise InputError(
            "no processor of videos lies beside the model, so videos cannot become its inputs",
            expected="preprocessor_config.json or video_preprocessor_config.json in the folder",
            hint="save the processor there with save_pretrained, or give tensors (--input)",
        )
    frames, times = _frames(model, request)
    try:
        if processors.video is not None:
            found = dict(processor(videos=frames, return_tensors="pt", do_sample_frames=False))
        else:
            found = dict(processor([list(one) for one in frames], return_tensors="pt"))
    except Exception as error:  # as above
        raise InputError(
            "the model's processor cannot turn the video into inputs", found=first_line(error)
        ) from error
    if "pixel_values_videos" in found and "pixel_values_videos" not in accepted(model):
        found["pixel_values"] = found.pop("pixel_values_videos")
    request.learned.times.update({argument(model, name): times for name in found})
    return found


def _images(model: Any, processors: Processors, request: Request) -> dict[str, Any]:
    if not request.images:
        return {}
    if argument(model, "pixel_values") not in accepted(model):
        raise takes_no("picture", model, "--image")
    images = [picture_of(one, request.notes) for one in request.images]
    if processors.image is None:
        request.notes.append(_NO_PROCESSOR)
        return {"pixel_values": encode_images(images, spec_of(model))}
    try:
        return dict(processors.image(images, return_tensors="pt"))
    except Exception as error:  # as above
        raise InputError(
            "the model's image processor cannot turn the picture into inputs", found=first_line(error)
        ) from error


def _sounds(model: Any, processors: Processors, request: Request) -> dict[str, Any]:
    if not request.sounds:
        return {}
    if processors.audio is None:
        raise InputError(
            "no feature extractor lies beside the model, so sounds cannot become its inputs",
            expected="preprocessor_config.json in the folder",
            hint="save the feature extractor there with save_pretrained, or give tensors (--input)",
        )
    rate = int(processors.audio.sampling_rate)
    sounds = [sound_of(one, rate, request.notes) for one in request.sounds]

    def extract(some: Sequence[Any]) -> dict[str, Any]:
        several: dict[str, Any] = {"padding": True} if len({len(sound) for sound in some}) > 1 else {}
        return dict(processors.audio(some, sampling_rate=rate, return_tensors="pt", **several))

    try:
        found = extract(sounds)
        lies = under(extract, sounds, rate)
        request.learned.series.update({argument(model, name): own for name, own in lies.items()})
        return found
    except Exception as error:  # as above
        raise InputError(
            "the model's feature extractor cannot turn the sound into inputs", found=first_line(error)
        ) from error


_NO_PROCESSOR = "no image processor lies beside the model: pictures are cropped and scaled to 0..1 only"


def _decoder(
    model: Any, processors: Processors, text: str | None, found: Mapping[str, Any]
) -> dict[str, Any]:
    """What the decoder has said so far: its start token, then the text; for models that generate."""
    if "decoder_input_ids" not in accepted(model):
        if text is not None:
            raise takes_no("decoder text", model, "--decoder-text")
        return {}
    if (
        text is None and not getattr(model, "can_generate", lambda: False)()
    ):  # such a model makes its decoder's input from the encoder's
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
    config = getattr(model, "config", None)
    places = (
        getattr(model, "generation_config", None),
        config,
        getattr(config, "get_text_config", lambda: None)(),
    )
    names = ("decoder_start_token_id", "bos_token_id", "pad_token_id")
    values = (getattr(place, name, None) for name in names for place in places)
    return next((value for value in values if isinstance(value, int)), 0)
