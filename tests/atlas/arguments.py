"""What is known of the arguments of ``forward``: one or more guesses for each, by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from atlas.attributes import VOCABULARY, configurations

BATCH = 2
WORDS = 10
FRAMES = 4


@dataclass
class Facts:
    """What guesses are made of."""

    config: Any
    names: tuple[str, ...]
    required: frozenset[str]
    image: int

    def find(self, *names: str, default: Any = None) -> Any:
        """The first of these attributes that any configuration of the model has."""
        for name in names:
            for config in configurations(self.config):
                value = vars(config).get(name)
                if value is not None and not hasattr(value, "to_diff_dict"):
                    return value
        return default

    def size(self) -> tuple[int, int]:
        size = self.find("image_size", "img_size", "input_size", default=self.image)
        if isinstance(size, dict):
            size = tuple(size.values())
        pair = (size, size) if isinstance(size, int) else tuple(size)[-2:]
        return pair if len(pair) == 2 and min(pair) >= 8 else (self.image, self.image)

    def channels(self) -> int:
        found = self.find("num_channels", "in_channels", "in_chans", "num_input_channels", default=3)
        return found if isinstance(found, int) and found < 16 else 3

    def vocabulary(self) -> int:
        sizes = [vars(config).get("vocab_size") for config in configurations(self.config)]
        return min([size for size in sizes if isinstance(size, int) and size > 5], default=VOCABULARY)

    def patch(self) -> int:
        patch = self.find("patch_size", default=8)
        return patch if isinstance(patch, int) else int(tuple(patch)[-1])


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=_generator(seed))


def words(facts: Facts, length: int = WORDS, seed: int = 1) -> Tensor:
    highest = max(min(facts.vocabulary(), VOCABULARY - 45), 6)
    return torch.randint(5, highest, (BATCH, length), generator=_generator(seed))


def _pixels(facts: Facts) -> Iterator[Tensor]:
    channels, (high, wide), patch = facts.channels(), facts.size(), facts.patch()
    frames = facts.find("num_frames", "frames_per_clip", default=FRAMES)
    video = "num_frames" in str(vars(facts.config)) or facts.find("tubelet_size") is not None
    packed = {"image_grid_thw", "grid_thw"} & set(facts.names)
    spatial = {"spatial_shapes"} & set(facts.names)
    if packed:
        temporal = facts.find("temporal_patch_size", default=None)
        flat = channels * patch * patch * (temporal or 1)
        yield numbers(BATCH * 16, flat)
        yield numbers(BATCH * 16, channels, patch, patch)
        yield numbers(BATCH * 16, channels * patch * patch)
        yield numbers(BATCH * 16, 2 * channels * patch * patch)
        if temporal:
            yield numbers(BATCH * 16, channels, temporal, patch, patch)
    if "image_sizes" in facts.names:
        yield numbers(BATCH, 3, channels, high, wide)
        yield numbers(BATCH, 5, channels, high, wide)
    if spatial:
        yield numbers(BATCH, 16, channels * patch * patch)
    if video:
        yield numbers(BATCH, frames, channels, high, wide)
    yield numbers(BATCH, channels, high, wide)
    yield numbers(BATCH, 1, channels, high, wide)
    yield numbers(BATCH, 1, 1, channels, high, wide)
    yield numbers(BATCH, frames, channels, high, wide)
    yield numbers(BATCH, 2, channels, high, wide)
    yield numbers(BATCH * 16, channels, patch, patch)
    yield numbers(BATCH, 16, channels * patch * patch)


def _grid(facts: Facts) -> Iterator[Tensor]:
    yield torch.tensor([[1, 4, 4]] * BATCH)
    yield torch.tensor([[4, 4]] * BATCH)


def _features(facts: Facts) -> Iterator[Tensor]:
    bins = facts.find(
        "num_mel_bins",
        "input_feat_per_channel",
        "feature_projection_input_dim",
        "n_mels",
        "mel_dim",
        "feature_size",
        "input_dim",
        "num_mels",
        default=32,
    )
    longest = facts.find("max_source_positions", default=32)
    length = 2 * longest if isinstance(longest, int) and longest <= 128 else 64
    yield numbers(BATCH, 64, bins)
    yield numbers(BATCH, bins, length)
    yield numbers(BATCH, bins, 64)
    yield numbers(BATCH, 1, 64, bins)
    yield numbers(BATCH, 1, 128, bins)
    yield numbers(BATCH, length, bins)
    yield numbers(BATCH, 200, bins)


def _waves(facts: Facts) -> Iterator[Tensor]:
    bins = facts.find("num_mel_bins", default=32)
    length = facts.find("max_length", default=64)
    yield numbers(BATCH, 2400)
    yield numbers(BATCH, 1, 2400)
    yield numbers(BATCH, 3840)
    yield numbers(BATCH, length if isinstance(length, int) else 64, bins)
    yield numbers(BATCH, 1, 19200)
    yield words(facts)


def _boxes(facts: Facts) -> Iterator[Tensor]:
    corner = torch.randint(0, 40, (BATCH, WORDS, 2), generator=_generator(3))
    yield torch.cat([corner, corner + 5], -1)
    yield torch.rand(BATCH, WORDS, 8, generator=_generator(3))
    yield torch.cat([corner, corner + 5], -1) / 50


def _ids(facts: Facts) -> Iterator[Tensor]:
    yield words(facts)
    yield words(facts, 32)
    books = facts.find("num_codebooks", "n_codebooks", "num_quantizers")
    if isinstance(books, int):
        yield torch.stack([words(facts, seed=seed) for seed in range(books)], 1)
        yield torch.stack([words(facts, seed=seed) for seed in range(books)], -1)


def _series(facts: Facts) -> Iterator[Tensor]:
    length = facts.find("context_length", default=32)
    lags = facts.find("lags_sequence", default=[0])
    channels = facts.find("num_input_channels", default=1)
    if "past_time_features" in facts.names:
        yield numbers(BATCH, length + max(lags)).abs()
    yield numbers(BATCH, length, channels)
    yield numbers(BATCH, length)


def _time_features(length: Callable[[Facts], int]) -> Callable[[Facts], Iterator[Tensor]]:
    def guesses(facts: Facts) -> Iterator[Tensor]:
        yield numbers(BATCH, length(facts), facts.find("num_time_features", default=1))

    return guesses


def _past(facts: Facts) -> int:
    return int(facts.find("context_length", default=32) + max(facts.find("lags_sequence", default=[0])))


def _future(facts: Facts) -> int:
    return int(facts.find("prediction_length", default=8))


def _one(make: Callable[[Facts], Tensor]) -> Callable[[Facts], Iterator[Tensor]]:
    return lambda facts: iter([make(facts)])


def _hidden(facts: Facts, *names: str) -> int:
    found = facts.find(*names, "hidden_size", "d_model", default=64)
    return found if isinstance(found, int) else 64


ROBOT = 5

GUESSES: dict[str, Callable[[Facts], Iterator[Tensor]]] = {
    "input_ids": _ids,
    "decoder_input_ids": _one(lambda f: words(f, 6, 4)),
    "pixel_values": _pixels,
    "pixel_values_videos": lambda f: (
        v
        for v in [
            numbers(BATCH, f.find("num_frames", "frames_per_clip", default=FRAMES), f.channels(), *f.size())
        ]
    ),
    "image_grid_thw": _grid,
    "grid_thw": _grid,
    "spatial_shapes": _one(lambda f: torch.tensor([[4, 4]] * BATCH)),
    "pixel_attention_mask": _one(lambda f: torch.ones(BATCH, 16, dtype=torch.long)),
    "input_features": _features,
    "input_values": _waves,
    "audio_values": _waves,
    "bbox": _boxes,
    "token_type_ids": _one(lambda f: torch.zeros(BATCH, WORDS, dtype=torch.long)),
    "mm_token_type_ids": _one(lambda f: torch.zeros(BATCH, WORDS, dtype=torch.long)),
    "attention_mask": _one(lambda f: torch.ones(BATCH, WORDS, dtype=torch.long)),
    "inputs_embeds": _one(lambda f: numbers(BATCH, WORDS, _hidden(f))),
    "hidden_states": lambda f: (
        _pixels(f) if "grid_thw" in f.names else iter([numbers(BATCH, WORDS, _hidden(f))])
    ),
    "noise": _one(lambda f: numbers(BATCH, (f.size()[0] // f.patch()) * (f.size()[1] // f.patch()), seed=11)),
    "image_attention_mask": _one(lambda f: torch.ones(BATCH, WORDS, 1, dtype=torch.long)),
    "encoder_hidden_states": _one(lambda f: numbers(BATCH, 7, _hidden(f, "encoder_hidden_size"), seed=5)),
    "query_embeds": _one(lambda f: numbers(BATCH, 6, _hidden(f), seed=6)),
    "inputs": lambda f: iter([numbers(BATCH, WORDS, f.find("d_model", default=64)), words(f)]),
    "past_values": _series,
    "past_time_features": _time_features(_past),
    "past_observed_mask": _one(lambda f: torch.ones(BATCH, _past(f))),
    "future_values": _one(lambda f: numbers(BATCH, _future(f)).abs()),
    "future_time_features": _time_features(_future),
    "past_values_padding": _one(lambda f: torch.zeros(BATCH, _past(f), dtype=torch.long)),
    "freq": _one(lambda f: torch.zeros(BATCH, 1, dtype=torch.long)),
    "states": _one(lambda f: numbers(BATCH, ROBOT, f.find("state_dim", default=17))),
    "actions": _one(lambda f: numbers(BATCH, ROBOT, f.find("act_dim", default=4))),
    "rewards": _one(lambda f: numbers(BATCH, ROBOT, 1)),
    "returns_to_go": _one(lambda f: numbers(BATCH, ROBOT, 1)),
    "timesteps": _one(lambda f: torch.arange(ROBOT).repeat(BATCH, 1)),
    "image_sizes": _one(lambda f: torch.tensor([list(f.size())] * BATCH)),
    "aspect_ratio_ids": _one(lambda f: torch.ones(BATCH, 1, dtype=torch.long)),
    "aspect_ratio_mask": _one(
        lambda f: torch.ones(BATCH, 1, f.find("max_num_tiles", default=4), dtype=torch.long)
    ),
    "flattened_patches": _one(
        lambda f: torch.cat(
            [
                torch.stack(torch.meshgrid(torch.arange(1, 5), torch.arange(1, 5), indexing="ij"), -1)
                .reshape(1, 16, 2)
                .float()
                .repeat(BATCH, 1, 1),
                numbers(BATCH, 16, f.find("patch_embed_hidden_size", default=f.channels() * f.patch() ** 2)),
            ],
            -1,
        )
    ),
    "visual_feats": _one(lambda f: numbers(BATCH, 7, f.find("visual_feat_dim", default=64))),
    "visual_pos": _one(lambda f: numbers(BATCH, 7, f.find("visual_pos_dim", default=4))),
    "visual_embeds": _one(lambda f: numbers(BATCH, 7, f.find("visual_embedding_dim", default=64))),
    "qformer_input_ids": _one(lambda f: words(f, 6, 7)),
    "input_points": _one(lambda f: torch.full((BATCH, 1, 1, 2), 9.0)),
    "task_inputs": _one(lambda f: words(f, f.find("task_seq_len", default=77))),
    "sample": _one(lambda f: numbers(BATCH, f.channels(), *f.size())),
    "char_input_ids": _one(lambda f: words(f, seed=8)),
    "lang_id": _one(lambda f: torch.tensor(1)),
    "patch_input": _one(
        lambda f: numbers(
            BATCH, f.find("num_input_channels", default=7), 4, f.find("patch_length", default=8)
        )
    ),
    "aspect_ratios": _one(lambda f: torch.ones(BATCH, 1)),
    "image_position_ids": _one(
        lambda f: (
            torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij"), -1)
            .reshape(1, 16, 2)
            .repeat(BATCH, 1, 1)
        )
    ),
    "pixel_position_ids": _one(
        lambda f: (
            torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij"), -1)
            .reshape(1, 16, 2)
            .repeat(BATCH, 1, 1)
        )
    ),
    "prompt_pixel_values": _one(lambda f: numbers(BATCH, f.channels(), *f.size(), seed=9)),
    "prompt_masks": _one(lambda f: numbers(BATCH, f.channels(), *f.size(), seed=10)),
    "spectrogram": _one(lambda f: numbers(BATCH, 32, f.find("model_in_dim", "num_mel_bins", default=80))),
    "input_features_mask": _one(lambda f: torch.ones(BATCH, 64, dtype=torch.long)),
    "feature_attention_mask": _one(lambda f: torch.ones(BATCH, 64, dtype=torch.long)),
    "merge_sizes": _one(lambda f: torch.ones(BATCH, dtype=torch.long)),
    "image_merge_sizes": _one(lambda f: torch.ones(BATCH, dtype=torch.long)),
    "target_sizes": _one(lambda f: torch.tensor([[4, 4]] * BATCH)),
    "latents": lambda f: iter([numbers(BATCH, _hidden(f), 12), numbers(BATCH, 12, _hidden(f))]),
    "state": _one(lambda f: numbers(BATCH, f.find("max_state_dim", "state_dim", default=32))),
    "noise_embeds": _one(lambda f: numbers(BATCH, WORDS, _hidden(f), seed=12)),
    "context_hidden_states": _one(lambda f: numbers(BATCH, 7, _hidden(f), seed=13)),
    "audio_mel": _features,
    "audio_mel_mask": _one(lambda f: torch.zeros(BATCH, 64, dtype=torch.bool)),
    "audio_feature_lengths": _one(lambda f: torch.tensor([64] * BATCH)),
}
"""Argument -> guesses, the likelier first."""
