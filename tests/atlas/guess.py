"""Guesses inputs from the signature of ``forward`` and the configuration: no architecture is named.

Every argument has one or more guesses; those of a model are tried together until it runs. Where the model
says how many placeholders its pictures or sounds need, or what else it must have, its message is believed.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from itertools import islice, product
from typing import Any

import torch
from torch import Tensor, nn

from atlas.arguments import BATCH, GUESSES, Facts

TRIES = 24

OFFERED = (
    "input_ids",
    "pixel_values",
    "input_values",
    "input_features",
    "bbox",
    "past_values",
    "decoder_input_ids",
)
"""Given whenever the model takes them: what its modalities come in by."""

WITH = {
    "pixel_values": (
        "image_grid_thw",
        "grid_thw",
        "spatial_shapes",
        "image_sizes",
        "aspect_ratio_ids",
        "aspect_ratio_mask",
        "image_position_ids",
        "image_attention_mask",
        "noise",
        "qformer_input_ids",
        "task_inputs",
        "mm_token_type_ids",
    ),
    "input_ids": ("visual_feats", "visual_pos", "visual_embeds", "flattened_patches"),
    "past_time_features": ("future_values", "future_time_features"),
    "states": ("actions", "rewards", "returns_to_go", "timesteps"),
    "input_features": ("input_features_mask",),
}
"""Argument -> what is given along with it."""

INSTEAD = (
    "inputs_embeds",
    "hidden_states",
    "encoder_hidden_states",
    "attention_mask",
    "pixel_values_videos",
    "query_embeds",
)
"""Takes the place of something else: not given because something, it is not said what, is missing."""

PLACEHOLDERS = {
    "pixel_values": ("image_token_id", "image_token_index", "img_token_id", "image_patch_id", "im_patch_id"),
    "input_features": ("audio_token_id", "audio_token_index", "sound_token_id"),
    "input_values": ("audio_token_id", "audio_token_index"),
    "pixel_values_videos": ("video_token_id", "video_token_index"),
}

MISMATCH = re.compile(r"tokens:?\s*(?:tensor\()?(\d+)\D+features:?\s*(?:tensor\()?(\d+)")


class NoInputsError(Exception):
    """No guess ran; the message is the model's own on the first."""


def guess(
    model: nn.Module, config: Any, image: int, works: Callable[[dict[str, Tensor]], None]
) -> dict[str, Tensor]:
    """Inputs that the model runs with.

    Args:
        config: the model's own configuration.
        image: the side of a picture where the configuration names none.
        works: runs the model and raises where it does not work.

    Raises:
        NoInputsError: none of the guesses ran.
    """
    facts = _facts(model, config, image)
    given = list(dict.fromkeys(_given(model, facts)))
    messages: list[str] = []
    for _ in range(3):
        try:
            return _first_that_works(given, facts, works, messages)
        except NoInputsError:
            named = [
                n
                for n in facts.names
                if n in GUESSES and n not in given and any(_names(m, n) for m in messages)
            ]
            if not named and any("NoneType" in message for message in messages):
                named = [n for n in facts.names if n in GUESSES and n not in given and n not in INSTEAD]
            if not named:
                break
            given += named  # the model asks for them
    towers = [n for n in given if n in OFFERED[1:] and n not in facts.required]
    for without in [*([name] for name in towers), towers]:  # those that the default configuration lacks
        left_out = {*without, *(other for name in without for other in WITH.get(name, ()))}
        try:
            return _first_that_works([n for n in given if n not in left_out], facts, works, [])
        except NoInputsError:
            continue
    raise NoInputsError(messages[0] if messages else f"nothing is known of {sorted(facts.required)}")


def _names(message: str, argument: str) -> bool:
    return re.search(rf"\b{argument}\b", message) is not None


def _first_that_works(
    given: list[str], facts: Facts, works: Callable[[dict[str, Tensor]], None], messages: list[str]
) -> dict[str, Tensor]:
    """Try the likeliest sets of guesses; their errors are added to ``messages``."""
    choices = [list(_alternatives(name, facts)) for name in given]
    sets = sorted(product(*(range(len(c)) for c in choices)), key=lambda p: _cost(p, given, choices))
    for places in islice(sets, TRIES):
        values = [choice[place] for choice, place in zip(choices, places, strict=True)]
        inputs = {name: value for name, value in zip(given, values, strict=True) if value is not None}
        try:
            return _with_placeholders(inputs, facts, works)
        except Exception as error:
            messages.append(f"{type(error).__name__}: {error}")
    raise NoInputsError(messages[-1])


def _cost(places: tuple[int, ...], given: list[str], choices: list[list[Tensor | None]]) -> int:
    """How unlikely a set of guesses is: to leave out a modality is the last resort."""
    left_out = [
        name for place, name, choice in zip(places, given, choices, strict=True) if choice[place] is None
    ]
    return sum(places) + sum(5 for name in left_out if name in OFFERED)


def _facts(model: nn.Module, config: Any, image: int) -> Facts:
    parameters = inspect.signature(model.forward).parameters
    plain = {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    required = frozenset(n for n, p in plain.items() if p.default is inspect.Parameter.empty)
    return Facts(config, tuple(plain), required, image)


def _given(model: nn.Module, facts: Facts) -> Iterator[str]:
    main = getattr(model, "main_input_name", None)
    offered = [n for n in facts.names if n in facts.required or n == main or n in OFFERED]
    if (
        "pixel_values" in offered
        and "pixel_values_videos" in offered
        and "pixel_values_videos" not in facts.required
    ):
        offered.remove("pixel_values_videos")
    for name in offered:
        yield name
        yield from (other for other in WITH.get(name, ()) if other in facts.names)


def _alternatives(name: str, facts: Facts) -> Iterator[Tensor | None]:
    if name not in GUESSES:
        raise NoInputsError(f"nothing is known of the argument {name!r}")
    yield from GUESSES[name](facts)
    if name not in facts.required:
        yield None


def _with_placeholders(
    inputs: dict[str, Tensor], facts: Facts, works: Callable[[dict[str, Tensor]], None]
) -> dict[str, Tensor]:
    """Inputs with as many placeholder words as the model says that it needs."""
    try:
        works(inputs)
        return inputs
    except Exception as error:
        wanted = MISMATCH.search(str(error))
        if wanted is None or "input_ids" not in inputs:
            raise
        failure = error
    tokens = {facts.find(*ids) for name, ids in PLACEHOLDERS.items() if name in inputs} - {None}
    count = int(wanted[2]) // BATCH
    widths = {facts.find(n) for n in ("hidden_size", "d_model", "text_hidden_size")} - {None}
    # some models count tokens, some the numbers in them
    for each in [count // width for width in widths if isinstance(width, int) and count >= width] + [count]:
        for token in tokens:
            longer = _placed(inputs, token, max(each, 1))
            try:
                works(longer)
                return longer
            except Exception as error:
                failure = error
    raise failure


def _placed(inputs: dict[str, Tensor], token: int, count: int) -> dict[str, Tensor]:
    ids = inputs["input_ids"]
    pictures = torch.full((len(ids), count), token)
    longer = {**inputs, "input_ids": torch.cat([ids[:, :1], pictures, ids[:, 1:]], 1)}
    if "attention_mask" in longer:
        longer["attention_mask"] = torch.ones_like(longer["input_ids"])
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in longer:
            longer[name] = (longer["input_ids"] == token).long()
    return longer
