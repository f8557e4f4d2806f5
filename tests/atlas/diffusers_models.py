"""diffusers: every denoiser (its transformers and U-nets), shrunk by the names of its constructor's arguments
and called with inputs guessed from the names of its forward's. No architecture is named."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice, product
from typing import Any

import diffusers
import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from atlas.cases import Case, NotBuiltError
from atlas.weights import enliven

IMPLEMENTATIONS: tuple[str | None, ...] = (None,)

BATCH, WORDS, SIDE, WIDE = 2, 5, 8, 32
HEADS = 2
PLANS = ("widths of other models", "own widths", "all widths", "channels filled", "filled", "all filled")
"""Which widths shrink besides those that follow from the number of heads; at last, what has no default is
filled in: what is named below, then every width."""
FILLED = {
    "in_channels": 4,
    "num_attention_heads": HEADS,
    "attention_head_dim": 16,
    "patch_size": 2,
    "sample_size": SIDE,
    "cross_attention_dim": WIDE,
    "caption_channels": WIDE,
    "num_key_value_heads": HEADS,
    "n_kv_heads": HEADS,
}
"""What an argument is that has no value by default."""
LARGEST = 40_000_000
TRIES = 40

DEPTH = re.compile(r"(layers|blocks|depth|layers_per_block)$")
MANY = re.compile(r"^(num_.*heads|n_heads|.*_attention_heads|num_heads)$")
KEY_HEADS = re.compile(r"(kv|key_value)_heads$")
HEAD = re.compile(r"^(attention_head_dim|head_dim)$")
INNER = re.compile(r"^(ffn_dim|d_ff|intermediate_size|ff_dim|feed_forward_dim)$")
OUTER = re.compile(
    r"(joint_attention|cross_attention|caption|text|pooled_projection|cap_feat|image|context_in|condition"
    r"|encoder_hid|encoder_hidden|in_text|in_context|vec_in|projection_class_embeddings_input)"
    r".*(dim|channels|size|dim2|dim_t5)$"
)
WIDTH = re.compile(r"(dim|size|channels|width|features)$")
GROUPS = re.compile(r"norm.*groups$")
SAMPLE = re.compile(r"^sample_(size|height|width)$")
TEXT_LENGTH = re.compile(r"^(max_text_seq_length|text_len(_.*)?|num_embeddings)$")
LATENTS = re.compile(r"^(hidden_states|sample|x|latents?)$")
WORD_STATES = re.compile(r"^(encoder_hidden_states(_.*)?|cap_feats|prompt_embeds)$")
OPTIONAL = re.compile(
    r"^(encoder_hidden_states|pooled_projections|guidance|img_ids|txt_ids|timestep|class_labels|num_frames)$"
)


def names() -> list[str]:
    return sorted(_classes())


def _classes() -> dict[str, type[nn.Module]]:
    kinds = {name: getattr(diffusers, name, None) for name in dir(diffusers)}
    return {
        name: kind  # type: ignore[misc]
        for name, kind in kinds.items()
        if inspect.isclass(kind)
        and issubclass(kind, ModelMixin)
        and kind.__module__.split(".")[2:3] in (["transformers"], ["unets"])
    }


def build(name: str, attention: str | None) -> Case:
    kind = _classes()[name]
    reasons = []
    for plan in PLANS:
        arguments = _small(kind, plan)
        try:
            with torch.device("meta"):
                size = sum(p.numel() for p in kind(**arguments).parameters())
            if size > LARGEST:
                reasons.append(NotBuiltError("too large", f"{size / 1e6:.0f} million parameters"))
                continue
            torch.manual_seed(0)
            model = enliven(kind(**arguments))
        except Exception as error:
            reasons.append(NotBuiltError("not constructed", f"{type(error).__name__}: {error}"))
            continue
        found = _inputs(model)
        if isinstance(found, dict):
            return Case(model, found)
        reasons.append(found)
    raise reasons[0]


def _small(kind: type[nn.Module], plan: str) -> dict[str, Any]:
    """The constructor's defaults, small; equal widths stay equal."""
    known = inspect.signature(kind.__init__).parameters
    given = {
        name: _filled(name, plan, known) if p.default is None else p.default
        for name, p in known.items()
        if p.default is not inspect.Parameter.empty
    }
    heads = next(
        (v for n, v in given.items() if MANY.match(n) and not KEY_HEADS.search(n) and type(v) is int), 0
    )
    width = heads * next((v for n, v in given.items() if HEAD.match(n) and type(v) is int), 0)
    small = {}
    if "cross_attention_dim" in given and given.get("caption_channels") and "filled" in plan:
        given["cross_attention_dim"] = width  # captions are brought to the width of all first
    for name, value in given.items():
        if heads and width and value == width and type(value) is int:
            small[name] = width // heads * HEADS
        elif (
            heads
            and not width
            and name in ("hidden_size", "dim", "model_dim", "d_model")
            and type(value) is int
        ):
            small[name] = value // heads * HEADS
        else:
            small[name] = _smaller(name, value, plan)
        if HEAD.match(name) and "block_out_channels" in given and type(value) is int:
            small[name] = min(value, WIDE // 4)  # a head is no wider than a block
    return small


def _filled(name: str, plan: str, names: Iterable[str]) -> int | None:
    """What an argument is that is None by default."""
    if "filled" not in plan:
        return None
    if name in ("in_channels", "out_channels"):  # what is normalised in groups needs a channel for each
        return WIDE if any(GROUPS.search(other) for other in names) else FILLED["in_channels"]
    if plan == "channels filled":
        return None
    if plan == "all filled" and name not in FILLED and WIDTH.search(name) and "out" not in name:
        return WIDE
    return HEADS if KEY_HEADS.search(name) else FILLED.get(name)


def _smaller(name: str, value: Any, plan: str) -> Any:
    if type(value) in (tuple, list):
        if name == "block_out_channels":
            return type(value)(WIDE for _ in value)
        if DEPTH.search(name):
            return type(value)(min(v, 1) if type(v) is int else v for v in value)
    if type(value) is not int:
        return value
    if KEY_HEADS.search(name):
        return HEADS
    if DEPTH.search(name):
        return min(value, 2)
    if MANY.match(name):
        return HEADS
    if INNER.match(name):
        return 2 * WIDE
    if SAMPLE.match(name):
        return min(value, SIDE)
    if TEXT_LENGTH.match(name):
        return WORDS
    if plan != "own widths" and OUTER.search(name):
        return WIDE
    return 2 * WIDE if plan not in PLANS[:2] and value >= 512 and WIDTH.search(name) else value


def _inputs(model: nn.Module) -> dict[str, Any] | NotBuiltError:
    """Inputs that the model runs with, or why there are none."""
    arguments = inspect.signature(model.forward).parameters
    required = [name for name, p in arguments.items() if p.default is inspect.Parameter.empty]
    optional = [name for name in arguments if OPTIONAL.match(name) and name not in required]
    reasons: dict[str, Exception] = {}
    failed: dict[str, Exception] = {}
    for more in (
        optional,
        [n for n in optional if n != "guidance"],
        [n for n in optional if "mask" not in n],
        [n for n in optional if not WORD_STATES.match(n)],
        [],
        [n for n in arguments if n not in required and [*_guesses(n, model)]],
    ):
        # latents last: their layout is what is tried first
        chosen = sorted([*required, *more], key=lambda name: bool(LATENTS.match(name)))
        guesses = [list(_guesses(name, model)) for name in chosen]
        if not all(guesses):
            missing = ", ".join(name for name, own in zip(chosen, guesses, strict=True) if not own)
            return NotBuiltError("inputs unknown", f"no guess for {missing}")
        for values in islice(product(*guesses), TRIES):
            found = _mended(model, dict(zip(chosen, values, strict=True)), failed)
            if isinstance(found, dict):
                return found
            reasons[str(found)] = found
    why = "; ".join(f"{type(error).__name__}: {error}" for error in reasons.values())
    return NotBuiltError("inputs unknown", why[:1500])


def _mended(
    model: nn.Module, inputs: dict[str, Any], failed: dict[str, Exception], more: int = 6
) -> dict[str, Any] | Exception:
    """Run the model; where it says what is missing, or which width is right, believe it, so many times.

    What failed is not tried again, by whatever way it is reached.
    """
    known = str(sorted((name, _looks(value)) for name, value in inputs.items()))
    if known in failed:
        return failed[known]
    try:
        with torch.no_grad():
            output = next(iter(model(**inputs).values()))
        if isinstance(output, Tensor) and not bool(output.isfinite().all()):
            return ValueError("the output is not finite")
        return inputs
    except Exception as error:
        failure = failed[known] = error
    changes = [*_given_more(model, inputs, failure), *_right_width(inputs, failure)] if more else []
    found = (_mended(model, {**inputs, **change}, failed, more - 1) for change in changes)
    return next((each for each in found if isinstance(each, dict)), failure)


def _looks(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else str(value)


def _right_width(inputs: Mapping[str, Any], error: Exception) -> Iterator[dict[str, Any]]:
    """The input that seems to be too wide or too narrow, as the message wants it."""
    found = re.search(r"shapes cannot be multiplied \((\d+)x(\d+) and (\d+)x\d+\)", str(error))
    if found is None:
        return
    rows, width, right = map(int, found.groups())
    wide = {n: v for n, v in inputs.items() if isinstance(v, Tensor) and v.shape[-1:] == (width,)}
    named = [name for name in reversed(wide) if wide[name].numel() == rows * width]
    for name in [*named, *reversed(wide)][:1]:
        yield {name: _numbers(*wide[name].shape[:-1], right)}


def _given_more(model: nn.Module, inputs: Mapping[str, Any], error: Exception) -> Iterator[dict[str, Any]]:
    """Guesses of an argument that was not given, where a line that failed has it."""
    if not re.search("None|required|must be", str(error)):
        return
    lines = " ".join(frame.line or "" for frame in traceback.extract_tb(error.__traceback__)) + str(error)
    for name in inspect.signature(model.forward).parameters:
        guesses = list(_guesses(name, model)) if name not in inputs and re.search(rf"\b{name}", lines) else []
        if guesses:
            yield from ({name: guess} for guess in guesses)
            return


def _numbers(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _setting(model: nn.Module, pattern: str, default: int) -> int:
    for name, value in model.config.items():  # type: ignore[union-attr, operator]
        if re.search(pattern, name) and type(value) is int:
            return value
    return default


def _guesses(name: str, model: nn.Module) -> Iterator[Any]:
    channels = _setting(model, "^in_channels$", _setting(model, "in_channels|in_visual_dim|latent_dim", 4))
    side = max(_setting(model, "^sample_size$", SIDE), SIDE)
    if LATENTS.match(name) or name == "image_latents":
        yield _numbers(BATCH, channels, side, side)
        yield _numbers(BATCH, channels, 2, side, side)
        yield _numbers(BATCH, 2, channels, side, side)
        yield _numbers(BATCH, 16, channels)
        yield _numbers(BATCH, channels, 16)
        yield _numbers(BATCH, channels, 256)
        yield _numbers(BATCH, _setting(model, "^embedding_dim$", channels))
    for pattern, guesses in _TABLE.items():
        if re.match(pattern, name):
            yield from guesses(model)
            return


def _words(model: nn.Module) -> Iterator[Any]:
    width = _setting(model, r"joint_attention_dim|cross_attention_dim|caption_channels|text", WIDE)
    yield _numbers(BATCH, WORDS, width, seed=2)
    yield _numbers(BATCH, WORDS, width, seed=2).repeat_interleave(2, 0)  # for each of two frames


def _axes(model: nn.Module) -> int:
    axes = [v for n, v in model.config.items() if "axes" in n and isinstance(v, (tuple, list))]  # type: ignore[union-attr, operator]
    return len(axes[0]) if axes else 3


_TABLE: Mapping[str, Callable[[nn.Module], Iterator[Any]]] = {
    WORD_STATES.pattern: _words,
    "pooled|image_embeds$": lambda m: iter(
        _numbers(*shape, _setting(m, "pooled|image", WIDE), seed=3) for shape in ((BATCH,), (BATCH, 3))
    ),
    "proj_embedding": lambda m: iter([_numbers(BATCH, _setting(m, "^embedding_dim$", WIDE), seed=3)]),
    "padding_mask": lambda m: iter([torch.ones(1, 1, SIDE, SIDE)]),
    "condition_mask": lambda m: iter([torch.ones(BATCH, 1, 2, SIDE, SIDE)]),
    r"timestep_ratio|r_timestep|timestep_r": lambda m: iter([torch.tensor([0.3, 0.6])]),
    "timestep_cond": lambda m: iter([None]),
    "timestep|^t$": lambda m: iter(
        [torch.tensor([3.0, 7.0]), torch.tensor([3, 7]), torch.tensor([[3.0, 5.0], [7.0, 9.0]])]
    ),
    "guidance": lambda m: iter([torch.tensor([3.0, 4.0])]),
    "img_ids": lambda m: iter([torch.arange(16.0)[:, None].repeat(1, _axes(m))]),
    "txt_ids": lambda m: iter([torch.zeros(WORDS, _axes(m))]),
    "class_labels": lambda m: iter([torch.tensor([1, 2])]),
    ".*attention_mask|.*_mask": lambda m: iter(
        [torch.ones(BATCH, WORDS, dtype=torch.bool), torch.ones(BATCH, WORDS)]
    ),
    "clip_text_pooled|global_hidden_states": lambda m: iter(
        [_numbers(BATCH, 1, _setting(m, "pooled|global_states_input|clip_text", WIDE), seed=4)]
    ),
    "added_time_ids": lambda m: iter([torch.tensor([[6.0, 7, 0], [5, 3, 0]])]),
    "added_cond_kwargs": lambda m: iter([{"resolution": None, "aspect_ratio": None}, {}]),
    "target_size|crop_coords|original_size": lambda m: iter([torch.full((BATCH, 2), 8.0)]),
    "img_shapes": lambda m: iter([[[(1, 4, 4)]] * BATCH]),
    "(num_)?frames": lambda m: iter([2, 1]),
    "height|width": lambda m: iter([4, SIDE]),
    "fps": lambda m: iter([torch.tensor([8, 8])]),
    "input_ids": lambda m: iter([torch.arange(2 * WORDS).view(2, WORDS)]),
    "position_ids": lambda m: iter([torch.arange(WORDS).expand(BATCH, WORDS)]),
    "image_rotary_emb|kv_cache|kv_cache_mode": lambda m: iter([None]),
}
