"""An answer of several tokens: made by the model or given, and put behind its prompt for one forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxplain.adapters.tensors import accepted
from fxplain.capture.guard import untouched
from fxplain.capture.inputs import normalise, positional_names
from fxplain.errors import InputError, first_line

Named = dict[str, Any]
"""The inputs of a model by the names of forward's arguments."""

DECODER = "decoder_input_ids"


@dataclass(frozen=True)
class Answer:
    """Where an answer lies.

    Args:
        space: the token space that it stands in, but for its last token, which the model need not read.
        first: the place in that space at which its first token stands.
        ids: of its tokens.
        texts: of its tokens.
    """

    space: str
    first: int
    ids: tuple[int, ...]
    texts: tuple[str, ...]


def named(model: Any, inputs: Any) -> Named:
    """Inputs by name, also those that were given by position."""
    args, kwargs = normalise(inputs)
    return {**dict(zip(positional_names(model, len(args)), args, strict=True)), **kwargs}


def place_of_answer(model: Any, inputs: Named, ids: str, into: str | None) -> str:
    """The input that holds the prompt's end, and that the answer goes on.

    Args:
        model: the model.
        inputs: of one sample.
        ids: what the model calls the input of a text.
        into: the input that was named, if any.

    Raises:
        InputError: there is no such input, or it holds no ids of one sample.
    """
    decodes = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    name = into or (DECODER if decodes and DECODER in accepted(model) else ids)
    found = inputs.get(name)
    if not isinstance(found, Tensor) or found.ndim != 2 or found.is_floating_point():
        raise InputError(
            "it is not known which input the answer goes on",
            expected="into=, the name of an input of ids [1, token]: what the decoder has said so far",
            found=f"{name!r} among {', '.join(inputs)}"
            if name in inputs
            else f"no {name!r} among {', '.join(inputs)}",
        )
    if len(found) != 1:
        raise InputError(
            "answers are explained one at a time", expected="a batch of 1", found=f"a batch of {len(found)}"
        )
    return name


def generated(
    model: Any, inputs: Named, into: str, count: int, settings: Mapping[str, Any]
) -> tuple[int, ...]:
    """The ids of the answer that the model gives: the likeliest next token again and again, unless
    ``settings`` for transformers' ``generate`` say otherwise.

    Raises:
        InputError: it gives none, or raises.
    """
    own = getattr(model, "generate", None)
    with untouched(model if isinstance(model, torch.nn.Module) else None), torch.no_grad():
        try:
            if own is not None and getattr(model, "can_generate", lambda: False)():
                plain = {"max_new_tokens": count, "do_sample": False, "num_beams": 1}
                ids = own(**inputs, **{**plain, **settings})
                found = behind(_ids(ids), inputs[into])
            else:
                found = _greedy(model, inputs, into, count)
        except InputError:
            raise
        except Exception as error:  # models and their processors raise whatever they like
            raise InputError("the model raised while it wrote its answer", found=first_line(error)) from error
    if not found:
        raise InputError("the model gives no answer", expected="at least one token", found="none")
    return found


def _greedy(model: Any, inputs: Named, into: str, count: int) -> tuple[int, ...]:
    found: list[int] = []
    for _ in range(count):
        scores = _scores(model(**longer(inputs, into, found)))
        found.append(int(scores[0, -1].argmax()))
    return tuple(found)


def _scores(output: Any) -> Tensor:
    """[batch, place, token]: what a language model says of the next token at every place."""
    if isinstance(output, Mapping):
        output = output.get("logits", tuple(output.values()))
    several = output if isinstance(output, (tuple, list)) else (output,)
    found = next(
        (t for t in several if isinstance(t, Tensor) and t.is_floating_point() and t.ndim == 3), None
    )
    if found is None:
        raise InputError(
            "the model does not say which token comes next",
            expected="an output [batch, place, token]",
            found=", ".join(str(list(getattr(t, "shape", ()))) for t in several),
        )
    return found


def _ids(given: Any) -> tuple[int, ...]:
    tensor = torch.as_tensor(getattr(given, "sequences", given))
    if not tensor.numel():
        return ()
    if tensor.is_floating_point() or tensor.ndim > 2 or (tensor.ndim == 2 and len(tensor) != 1):
        raise InputError(
            "these are no ids of one answer", expected="whole numbers [token]", found=str(list(tensor.shape))
        )
    return tuple(int(one) for one in tensor.reshape(-1))


def behind(given: Any, prompt: Tensor) -> tuple[int, ...]:
    """The answer's own ids, of ids that may begin with the prompt's, as ``generate`` gives them."""
    ids, before = _ids(given), tuple(int(one) for one in prompt[0])
    return ids[len(before) :] if ids[: len(before)] == before else ids


def longer(inputs: Named, into: str, answer: Sequence[int]) -> Named:
    """Inputs with an answer behind the prompt; masks and kinds of tokens that go with it grow along."""
    prompt = inputs[into]
    more = torch.tensor([list(answer)], dtype=prompt.dtype, device=prompt.device).reshape(1, -1)
    decoder = into.startswith("decoder_")
    grown = {into: torch.cat([prompt, more], -1)}
    for name, value in inputs.items():
        along = isinstance(value, Tensor) and value.shape == prompt.shape and name != into
        if (
            along
            and name.startswith("decoder_") == decoder
            and (fill := _filled(name, value, more)) is not None
        ):
            grown[name] = torch.cat([value, fill], -1)
    return {**inputs, **grown}


def _filled(name: str, value: Tensor, more: Tensor) -> Tensor | None:
    """What a mask, a kind or a place of a token is for tokens that come behind; None for other inputs."""
    if name.endswith("mask"):
        return torch.ones_like(more, dtype=value.dtype)
    if name.endswith("type_ids"):
        return torch.zeros_like(more, dtype=value.dtype)
    if name.endswith("position_ids"):
        return value[:, -1:] + 1 + torch.arange(more.shape[1], device=value.device)
    return None
