"""Texts, conversations, pictures and sounds as the inputs of a model, and where parts of texts lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from fxplain.adapters.loaded import Encode, Request
from fxplain.adapters.media.audio import sound_of, under
from fxplain.adapters.media.images import encode_images, picture_of, spec_of
from fxplain.adapters.media.video import count_of, frames_of
from fxplain.adapters.processors import Processors
from fxplain.adapters.tensors import MAIN_INPUTS, accepted, argument, mapped_tensors, takes_no
from fxplain.errors import InputError, first_line

Message = Mapping[str, Any]
"""``{"role": "user", "content": "..."}``."""
Turn = tuple[int, int, str]
"""First token, the one after the last, and whose turn it is."""
FIRST, SECOND = "first text", "second text"


def is_chat(given: Any) -> bool:
    """Whether this is a list of messages.

    Example:
        >>> is_chat([{"role": "user", "content": "Hi"}]), is_chat(["Hi"])
        (True, False)
    """
    listed = isinstance(given, Sequence) and not isinstance(given, str) and len(given) > 0
    return listed and all(isinstance(one, Mapping) and "role" in one for one in given)


def written(templater: Any, messages: Sequence[Message], answer: bool = True) -> str:
    """The conversation by the template of a tokenizer or processor; with what begins the answer.

    Raises:
        InputError: there is no template, or it refuses these messages.
    """
    if not getattr(templater, "chat_template", None):
        raise InputError(
            "the tokenizer has no chat template, so messages cannot become a text",
            expected="tokenizer.chat_template, as models for chats bring it",
            found=f"{type(templater).__name__} without one",
            hint="write the conversation as one text",
        )
    try:
        return str(
            templater.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=answer)
        )
    except Exception as error:  # templates are programs of their own, and raise whatever they like
        raise InputError("the chat template refuses these messages", found=first_line(error)) from error


def turns(templater: Any, tokenizer: Any, messages: Sequence[Message], count: int) -> tuple[Turn, ...]:
    """The turns of a conversation among its tokens; none where the template does not tell them apart.

    A turn goes as far as the conversation does that ends with it.

    Args:
        templater: what has the template.
        tokenizer: what made the tokens, and tells which letters each covers.
        messages: the conversation.
        count: how many tokens it has.
    """
    if not getattr(tokenizer, "is_fast", False):
        return ()
    whole = written(templater, messages)
    read = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    starts = [start for start, _ in read["offset_mapping"]]
    found: list[Turn] = []
    first = 0
    for place in range(len(messages)):
        try:
            until = written(templater, messages[: place + 1], answer=False)
        except InputError:  # some templates want a user's message
            return ()
        if not whole.startswith(until) or len(starts) != count:
            return ()
        last = sum(start < len(until) for start in starts)
        if last > first:
            found.append((first, last, str(messages[place]["role"])))
        first = max(first, last)
    return (*found, (first, count, "assistant")) if first < count else tuple(found)


def pair_turns(encoded: Any) -> tuple[tuple[Turn, ...], ...]:
    """Of texts that were read as pairs: where each of the two lies, for every sample; none if unknown."""
    if not getattr(encoded, "is_fast", False):
        return ()
    found = []
    for row in range(len(encoded["input_ids"])):
        owners = encoded.sequence_ids(row)
        places = [[i for i, owner in enumerate(owners) if owner == which] for which in (0, 1)]
        if not all(places):
            return ()
        found.append(
            tuple((own[0], own[-1] + 1, name) for own, name in zip(places, (FIRST, SECOND), strict=True))
        )
    return tuple(found)


def as_one_text(processors: Processors, request: Request) -> Request:
    """The conversation as the one text of a request."""
    text = written(_templater(processors), request.chat)
    request.learned.texts["input_ids"] = (None,)  # marks of the template are no text of the user's
    return replace(request, texts=(text,), special=False)


def _templater(processors: Processors) -> Any:
    return processors.joint if getattr(processors.joint, "chat_template", None) else processors.tokenizer


def learn_turns(processors: Processors, request: Request, found: Mapping[str, Any]) -> None:
    """Where the turns of a conversation lie."""
    if request.chat and torch.is_tensor(found.get("input_ids")):
        count = found["input_ids"].shape[-1]
        marked = turns(_templater(processors), processors.tokenizer, request.chat, count)
        if marked:
            request.learned.turns["input_ids"] = (marked,)


def encode_texts(model: Any, processors: Processors, request: Request) -> dict[str, Any]:
    texts = list(request.texts)
    if not texts:
        return {}
    if request.pairs and len(request.pairs) != len(texts):
        raise InputError(
            "to each text belongs one second text", expected=str(len(texts)), found=str(len(request.pairs))
        )
    if argument(model, "input_ids") not in accepted(model):
        raise takes_no("text", model, "--text")
    if processors.tokenizer is None:
        raise InputError(
            "no tokenizer lies beside the model, so texts cannot become its inputs",
            expected="tokenizer files in the folder",
            hint="save the tokenizer there with save_pretrained, or give token ids with --input FILE.pt",
        )
    try:
        given = (texts, list(request.pairs)) if request.pairs else (texts,)
        length = length_of(model, processors, texts) | (
            {} if request.special else {"add_special_tokens": False}
        )
        found = processors.tokenizer(*given, return_tensors="pt", **length)
        note_cut(found, length, request, lambda whole: processors.tokenizer(*given, **whole))
        if request.pairs and (blocks := pair_turns(found)):
            request.learned.turns[argument(model, "input_ids")] = blocks
    except Exception as error:  # a tokenizer without a padding token, for instance
        raise InputError(
            "the model's tokenizer cannot turn the text into inputs", found=first_line(error)
        ) from error
    return dict(found)


def length_of(model: Any, processors: Processors, texts: Any) -> dict[str, Any]:
    """Padding for several texts, and truncation to what the model can take."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit = getattr(processors.tokenizer, "model_max_length", None)
    limits = (limit, getattr(config, "max_position_embeddings", None))
    finite = [limit for limit in limits if isinstance(limit, int) and 0 < limit < 10**6]
    options: dict[str, Any] = {"padding": True} if len(texts) > 1 else {}
    return {**options, "truncation": True, "max_length": min(finite)} if finite else options


def note_cut(
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


@contextmanager
def _turning(by: str, what: str) -> Iterator[None]:
    """A region in which whatever a processor raises is an error of our own: it checks little itself."""
    try:
        yield
    except Exception as error:
        raise InputError(
            f"the model's {by} cannot turn {what} into inputs", found=first_line(error)
        ) from error


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
    with _turning("processor", "the picture and the text"):
        length = length_of(model, processors, texts)
        length |= {} if request.special else {"add_special_tokens": False}
        found = dict(processors.joint(**given, text=texts, return_tensors="pt", **length))
        note_cut(found, length, request, lambda whole: processors.joint(**given, text=texts, **whole))
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
    with _turning("image processor", "the picture"):
        return dict(processors.image(images, return_tensors="pt"))


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

    with _turning("feature extractor", "the sound"):
        found = extract(sounds)
        lies = under(extract, sounds, rate)
        request.learned.series.update({argument(model, name): own for name, own in lies.items()})
        return found


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
    with _turning("processor", "the video"):
        if processors.video is not None:
            found = dict(processor(videos=frames, return_tensors="pt", do_sample_frames=False))
        else:
            found = dict(processor([list(one) for one in frames], return_tensors="pt"))
    if "pixel_values_videos" in found and "pixel_values_videos" not in accepted(model):
        found["pixel_values"] = found.pop("pixel_values_videos")
    request.learned.times.update({argument(model, name): times for name in found})
    return found
