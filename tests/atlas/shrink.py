"""Makes a configuration small, by what its attributes are called: no architecture is named.

A *plan* says how widths shrink. All of them shrink depths, vocabularies, pictures and sequences alike; where
one plan breaks a model (a layer that wants a multiple of 32 channels, two widths that must be equal), the
next one may not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import ceil, gcd
from typing import Any

VOCABULARY = 128
HEADS = 4


@dataclass(frozen=True)
class Plan:
    """How widths shrink: to one size for all, or in proportion, in multiples of ``unit``; or not at all."""

    name: str
    width: int | None
    """The size of the widest layer; None leaves widths alone."""
    equal: bool
    """All widths that are single numbers become equal."""
    unit: int = 8
    image: int = 32
    window: int = 4
    """The side of a window of attention in a picture."""
    stage: int = 1
    """Layers in each stage of a hierarchy."""
    cache: bool = True
    """Whether a decoder gives its keys and values out, as it does by default."""


PLANS = (
    Plan("equal widths", 64, equal=True),
    Plan("equal widths, larger pictures", 64, equal=True, image=64),
    Plan("widths in proportion", 128, equal=False, unit=16, image=64),
    Plan("widths in proportion, multiples of 32", 256, equal=False, unit=32, image=64),
    Plan("equal widths, no cache", 64, equal=True, cache=False),
    Plan("own widths", None, equal=False, image=64, stage=3),
)

DEPTH = re.compile(
    r"^(n_layers?|num_layers|depth|num_blocks|n_blocks|num_hidden_layers|.*_(num_)?(hidden_)?layers|num_.*_layers"
    r"|.*_depth|num_encoder_blocks|num_hidden_groups|num_residual_layers|num_decoder_blocks|layers)$"
)
NOT_DEPTH = re.compile(
    r"feat_extract|adapter|feature_layer|window_layers|kv_shared|only_layers|replace|conv_layers|max_depth|min_depth|proj_layers"
)
HIDDEN = re.compile(
    r"^(d_model|n_embd|dim|width|channels_last|d_embed|embed_dim|hidden_dim|emb_dim|embedding_dim|model_dim|dim_model"
    r"|.*hidden_size(_per_layer_input)?|.*hidden_dim|.*embed_dim|embedding_size|.*projection_dim|.*proj_dim|.*embedding_size"
    r"|.*pooler_output_size|.*_d_model|.*latent_dim|d_latents?|bottleneck_dim|output_dim|.*_width|shared_hidden"
    r"|feature_size|fpn_feature_size|mask_feature_size|decoder_channels|.*hidden_channels|latent_channels|.*fusion_hidden_size"
    r"|d_conv_out|.*codebook_dim|true_hidden_size|out_dim|query_dim|kv_dim|.*_hidden|llm_dim|output_channels|.*initial_channel|.*base_dim)$"
)
INNER = re.compile(
    r"^(.*intermediate_size|.*intermediate_dim|.*ffn_dim|.*ff_dim|d_ff|n_inner|mlp_dim|.*mlp_hidden_size|.*mlp_dim|dim_feedforward"
    r"|.*ffn_hidden_size|.*feedforward_dim|.*feedforward_size|d_inner|.*ffn_size|inner_dim|classifier_proj_size|.*feed_forward_size)$"
)
HEAD_DIM = re.compile(
    r"^(.*head_dim|d_kv|d_head|attention_head_size|kv_channels|dim_head|.*_head_size|head_size)$"
)
KEY_HEADS = re.compile(
    r"^(.*num_(attention_)?key_value_heads|n_kv_heads|num_kv_heads|.*_kv_heads|.*num_key_heads|multi_query_group_num)$"
)
HEAD_COUNT = re.compile(r"^(n_heads?|.*num_(.*_)?heads|.*attention_heads|.*_n_heads|heads|.*nheads)$")
RANK = re.compile(r".*(lora_rank|low_rank(_dim)?|_rank)$")
VOCAB = re.compile(
    r"^(.*vocab_size(_per_layer_input)?|.*_vocab|.*vocab_sizes?|n_vocab|.*num_embeddings|codebook_size|n_tokens)$"
)
TOKEN = re.compile(r".*(token_id|token_index|_token|token_ids|_id|_ids)$")
LENGTH = re.compile(
    r"^(.*max_position_embeddings|n_positions|n_ctx|max_seq_len|max_seq(uence)?_length|seq_length|max_length|max_target_positions"
    r"|.*max_source_positions|max_.*positions|context_length|.*max_positions|sequence_length|max_sequence_length|block_size|num_position_embeddings)$"
)
IMAGE = re.compile(r"^((.*_)?image_size|img_size|.*resolution|crop_size|input_size)$")
PATCH = re.compile(r"^(patch_size|.*_patch_size|tubelet_size)$")
EXPERTS = re.compile(
    r"^(.*num_(.*_)?experts|n_routed_experts|.*num_local_experts|num_experts_.*|moe_num_experts)$"
)
QUERIES = re.compile(
    r"^(num_queries|num_query_tokens|.*num_latents|num_.*queries|num_image_tokens|query_length|num_landmarks|num_object_queries)$"
)
WINDOW = re.compile(
    r"^(.*sliding_window(_size)?|local_attention|attention_window|.*chunk_size|.*chunk_length|index_topk)$"
)
SQUARE_WINDOW = re.compile(r"^(window_size|.*window_sizes?)$")
LAYER_INDEX = re.compile(r".*(_indexes|_indices|_layers|_idx|_layer_ids|insert_layer_id|_blocks)$")
PERIOD = re.compile(r".*(_interval|_period|_pattern|_frequency|_every_n_layers|_every|_step|_layer_k)$")
CHANNELS = re.compile(
    r".*(channels|hidden_sizes?|dims?|channel_list|dim_per_stage|conv_dim|planes|embed_dim)$"
)
STAGES = re.compile(
    r"^(depths?|.*_depths|blocks_per_stage|stage_num_blocks|num_blocks|layers|num_layers|stage_numb_of_layers|num_modules)$"
)
KEPT = re.compile(
    r"^(num_channels|in_channels|out_channels|audio_channels|num_labels|.*_groups|.*dropout.*|.*_prob|.*_std|.*kernel.*|.*stride.*)$"
)
PATCHES = re.compile(r"size|grid|patches|resolution|length|seq|tokens|position")
PROBABILITY = re.compile(r".*(dropout|layerdrop|_prob|pdrop|drop_path_rate|jitter.*)$")


def shrink(config: Any, plan: Plan) -> None:
    """Make a configuration of transformers and all configurations inside it small, in place."""
    tree = list({id(each): each for each in configurations(config)}.values())
    narrow = _narrower(tree, plan)
    renumber = _Renumber()
    if any(_has_stages(each) for each in tree):
        plan = replace(plan, image=max(plan.image, 64), window=2)
    old = next((v for each in tree for n, v in vars(each).items() if n == "image_size" and type(v) is int), 0)
    for each in tree:
        before = dict(vars(each))
        for name, value in before.items():
            if TOKEN.match(name) and not VOCAB.match(name):
                _set(each, name, renumber(value))
        layers = _shrink_depths(each)
        for name, value in list(vars(each).items()):
            if not name.startswith("_") and not isinstance(value, (str, bool, type(None))):
                _set(each, name, _smaller(name, value, plan, narrow))
        for name in ("image_grid_pinpoints", "possible_resolutions"):
            if old and name in before:
                _set(each, name, _each(before[name], lambda v: max(v // old, 1) * plan.image))
        _shrink_overrides(each, layers, plan, narrow)
        _fill(each)
        _keep_relations(each, before)
        _make_heads_divide(each)
        _shrink_rotary(each, before)


def side(config: Any, plan: Plan) -> int:
    """The side of a picture for a model of this configuration: hierarchies need larger ones."""
    return max(plan.image, 64) if any(_has_stages(each) for each in configurations(config)) else plan.image


def _has_stages(config: Any) -> bool:
    facts = vars(config).items()
    return any(
        isinstance(v, (list, tuple)) and len(v) > 2 and all(type(x) is int for x in v)
        for n, v in facts
        if STAGES.match(n) or n in ("hidden_sizes", "embed_dims", "embed_dim", "stage_out_channels")
    ) or "use_timm_backbone" in dict(facts)


def configurations(config: Any) -> Iterator[Any]:
    """A configuration and all those inside it."""
    yield config
    for value in vars(config).values():
        inside = value if isinstance(value, (list, tuple)) else (value,)
        for each in inside:
            if hasattr(each, "to_diff_dict") and each is not config:
                yield from configurations(each)


def _set(config: Any, name: str, value: Any) -> None:
    if value is vars(config).get(name):
        return
    try:
        setattr(config, name, value)
    except Exception:  # a setter that refuses: the old value stays, and the model says whether it fits
        return


def _each(value: Any, change: Callable[[int], int]) -> Any:
    """Change every int in nested lists, tuples and dicts, and keep the types."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_each(v, change) for v in value)
    if isinstance(value, dict):
        return {k: _each(v, change) for k, v in value.items()}
    return value


def _floats(value: Any) -> Any:
    """Zero for every float in nested lists and tuples."""
    if isinstance(value, (list, tuple)):
        return type(value)(_floats(v) for v in value)
    return 0.0 if isinstance(value, float) else value


def _smaller(name: str, value: Any, plan: Plan, narrow: Callable[[int], int]) -> Any:
    """The small value of one attribute."""
    if PROBABILITY.match(name):
        return _floats(value)
    for pattern, change in _CAPS:
        if pattern.match(name):
            return _each(value, change)
    if SQUARE_WINDOW.match(name):
        # some count patches, some pixels
        return _each(value, lambda v: min(v, plan.window) if v < 64 else 32)
    if IMAGE.match(name):
        return _each(value, lambda v: min(v, plan.image) if v > 8 else v)
    if isinstance(value, (list, tuple)) and len(value) > 1 and STAGES.match(name):
        return _each(value, lambda v: min(v, plan.stage))
    if KEPT.match(name) and not (isinstance(value, (list, tuple)) and CHANNELS.match(name)):
        return value
    if plan.width is None:
        return value
    if isinstance(value, (list, tuple)):
        if HEAD_COUNT.match(name):
            return _each(value, lambda v: min(v, HEADS))
        return _each(value, narrow) if CHANNELS.match(name) or HIDDEN.match(name) else value
    if not isinstance(value, int):
        return value
    return _narrow_number(name, value, plan, narrow)


def _narrow_number(name: str, value: int, plan: Plan, narrow: Callable[[int], int]) -> int:
    assert plan.width is not None
    if HEAD_DIM.match(name):
        return min(value, 16)
    if KEY_HEADS.match(name):
        return min(value, 2)
    if HEAD_COUNT.match(name):
        return min(value, HEADS)
    if RANK.match(name):
        return min(value, 16)
    if INNER.match(name):
        return min(value, 2 * plan.width) if plan.equal else narrow(value)
    if HIDDEN.match(name):
        return min(value, plan.width) if plan.equal else narrow(value)
    return value


def _cap(limit: int) -> Callable[[int], int]:
    return lambda value: min(value, limit)


_CAPS: tuple[tuple[re.Pattern[str], Callable[[int], int]], ...] = (
    (VOCAB, _cap(VOCABULARY)),
    (LENGTH, _cap(128)),
    (EXPERTS, _cap(4)),
    (QUERIES, _cap(8)),
    (WINDOW, _cap(8)),
    (PATCH, lambda v: v if v <= 4 else 8),
    (re.compile(r"^(n_group|topk_group|num_expert_groups?)$"), _cap(1)),
    (re.compile(r"^(.*num_frames)$"), _cap(4)),
    (re.compile(r"^(num_experts_per_tok|.*top_?k|num_selected_experts|moe_k)$"), _cap(2)),
    (re.compile(r"^num_mel_bins$"), _cap(32)),
    (re.compile(r"^rotary_dim$"), _cap(8)),
    (re.compile(r"^num_kv_shared_layers$"), _cap(0)),
    (re.compile(r".*_layer_offset$"), _cap(1)),
)


def _narrower(tree: list[Any], plan: Plan) -> Callable[[int], int]:
    """One map from old widths to new ones for the whole tree, so that equal widths stay equal."""
    if plan.width is None:
        return lambda value: value
    lists, numbers = [1], [1]
    for config in tree:
        for name, value in vars(config).items():
            if isinstance(value, (list, tuple)) and CHANNELS.match(name) and not KEPT.match(name):
                lists += [v for v in value if isinstance(v, int)]
            elif isinstance(value, int) and HIDDEN.match(name):
                numbers.append(value)
    widest = max(lists) if plan.equal else max(lists + numbers)
    factor = max(widest / plan.width, 1)
    unit = plan.unit

    def narrow(value: int) -> int:
        return min(value, max(unit, unit * ceil(value / factor / unit)))

    return narrow


def _shrink_depths(config: Any) -> list[int]:
    """Few layers, but one of every kind: attributes with an entry for each layer say what kinds there are.

    Returns:
        Which of the old layers are left.
    """
    facts = vars(config)
    stages_of = {len(v) for n, v in facts.items() if isinstance(v, (list, tuple)) and STAGES.match(n)}
    depths = {
        n: v
        for n, v in facts.items()
        if type(v) is int and DEPTH.match(n) and not NOT_DEPTH.search(n) and not (v in stages_of and v < 6)
    }
    old = next(
        (
            depths[n]
            for n in ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "depth")
            if n in depths
        ),
        0,
    )
    per_layer = {
        n: v
        for n, v in facts.items()
        if isinstance(v, (list, tuple)) and len(v) == old > 2 and not n.startswith("_")
    }
    kinds = (
        list(dict.fromkeys(zip(*(map(str, v) for v in per_layer.values()), strict=True))) if per_layer else []
    )
    taps = facts.get("_out_indices") or []
    stages = facts.get("stage_names")
    few = max(2, min(len(kinds), 6), len(taps) if stages and len(stages) == old + 1 else 0)
    chosen = _one_of_each(per_layer, kinds, few) if per_layer else []
    for name, value in per_layer.items():
        _set(config, name, type(value)(value[place] for place in chosen))
    for name, value in depths.items():
        _set(config, name, min(value, few))
    if stages and len(stages) == old + 1:
        config.stage_names = list(stages[: few + 1])
        count = min(len(taps), few)
        config._out_indices = list(range(few + 1 - count, few + 1))
        config._out_features = [config.stage_names[i] for i in config._out_indices]
    for name, value in list(facts.items()):
        if name.startswith("_") or name in per_layer or name in depths:
            continue
        if (
            LAYER_INDEX.match(name)
            and isinstance(value, (list, tuple))
            and value
            and all(type(v) is int for v in value)
            and max(value) < max(old, 1)
        ):
            _set(
                config,
                name,
                type(value)(
                    dict.fromkeys(min(v * few // old, few - 1) if v >= 0 else max(v, -few) for v in value)
                ),
            )
        elif PERIOD.match(name) and isinstance(value, int) and not isinstance(value, bool):
            _set(config, name, min(value, 2))
        elif re.match(r"^(first_k_dense_replace|insert_layer_id|num_hash_layers)$", name) and isinstance(
            value, int
        ):
            _set(config, name, min(value, 1))
    return chosen or list(range(few))


def _shrink_overrides(config: Any, layers: list[int], plan: Plan, narrow: Callable[[int], int]) -> None:
    """Where some layers have sizes of their own."""
    own = vars(config).get("_heterogeneity_spec")
    if own is None:
        return
    old = dict(own.per_layer_overrides)
    own.per_layer_overrides.clear()
    for place, layer in enumerate(layers):
        if layer in old:
            own.per_layer_overrides[place] = {n: _smaller(n, v, plan, narrow) for n, v in old[layer].items()}


def _fill(config: Any) -> None:
    """Values for what has none by default and must have one."""
    facts = vars(config)
    heads = _heads(config)
    wanted = {
        "prediction_length": 4,
        "vocab_size": VOCABULARY,
        "num_key_value_heads": heads,
        "head_dim": _width(config) // max(heads, 1),
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
    }
    for name, value in wanted.items():
        if name in facts and facts[name] is None:
            _set(config, name, value)


def _keep_relations(config: Any, before: dict[str, Any]) -> None:
    """What was equal to, a sum of or a quotient of other attributes still is."""
    facts = vars(config)
    heads = _heads(config)
    for name, value in before.items():
        if KEY_HEADS.match(name) and type(value) is int and value == before.get("num_attention_heads", -1):
            _set(config, name, heads)
        if name.endswith("_groups") and value == before.get("hidden_size"):
            _set(config, name, facts["hidden_size"])
    parts = ("qk_nope_head_dim", "qk_rope_head_dim")
    if all(type(facts.get(part)) is int for part in parts):
        old, new = (sum(source[part] for part in parts) for source in (before, facts))
        for name in ("qk_head_dim", "head_dim"):
            if before.get(name) == old:
                _set(config, name, new)
    width = facts.get("hidden_size", 0)
    for name, value in before.items():
        if (
            isinstance(value, (list, tuple))
            and len(value) == 2
            and sum(_numbers_of(value)) == before.get("hidden_size")
        ):
            _set(config, name, type(value)((width // 4, width - width // 4)))
    if "coordinate_size" in before and "shape_size" in before:  # four of the one and two of the other
        _set(config, "coordinate_size", width * 3 // 16)
        _set(config, "shape_size", width // 8)
    sizes = [source.get(name) for source in (before, facts) for name in ("image_size", "patch_size")]
    if all(type(size) is int for size in sizes):
        _count_patches(config, before, sizes[0] // sizes[1], sizes[2] // sizes[3])


def _numbers_of(values: Any) -> list[int]:
    return [value for value in values if type(value) is int]


def _count_patches(config: Any, before: dict[str, Any], old: int, new: int) -> None:
    """Sides of the grid of patches, and numbers of patches."""
    for name, value in before.items():
        if (
            name in ("image_size", "patch_size")
            or type(value) is not int
            or value < 5
            or not PATCHES.search(name)
        ):
            continue
        if value in (old, old**2):
            _set(config, name, new if value == old else new**2)


def _one_of_each(per_layer: dict[str, Any], kinds: list[Any], few: int) -> list[int]:
    rows = list(zip(*(map(str, v) for v in per_layer.values()), strict=True))
    chosen = sorted(rows.index(kind) for kind in kinds[:few])
    while len(chosen) < few:
        chosen = sorted([*chosen, next(i for i in range(len(rows)) if i not in chosen)])
    return chosen


class _Renumber:
    """Moves the numbers of special tokens into the small vocabulary: equal numbers stay equal."""

    def __init__(self) -> None:
        self.new: dict[int, int] = {}

    def __call__(self, value: Any) -> Any:
        return _each(value, self._one)

    def _one(self, value: int) -> int:
        if value < VOCABULARY - 40:
            return value
        return self.new.setdefault(value, VOCABULARY - 1 - len(self.new))


def _shrink_rotary(config: Any, before: dict[str, Any]) -> None:
    """Sections of rotary positions add up to half a head, and parts of heads stay whole."""
    for name in ("rope_parameters", "rope_scaling"):
        rotary = vars(config).get(name)
        if not isinstance(rotary, dict):
            continue
        width = vars(config).get("head_dim") or _width(config) // max(_heads(config), 1)
        for inside in (rotary, *(v for v in rotary.values() if isinstance(v, dict))):
            turned = vars(config).get("qk_rope_head_dim")
            old = before.get("head_dim")
            if (
                turned
                and old
                and "partial_rotary_factor" in inside
                and round(old * inside["partial_rotary_factor"]) == before["qk_rope_head_dim"]
            ):
                inside["partial_rotary_factor"] = turned / width
            half = int(width * inside.get("partial_rotary_factor", 1.0)) // 2
            if inside is rotary or "mrope_section" in inside:
                inside["mrope_section"] = [half // 3, half // 3, half - 2 * (half // 3)]


def _width(config: Any) -> int:
    for name in ("hidden_size", "d_model", "n_embd", "embed_dim", "dim"):
        value = vars(config).get(name)
        if isinstance(value, int):
            return value
    return 64


def _heads(config: Any) -> int:
    for name in ("num_attention_heads", "n_head", "num_heads", "n_heads", "encoder_attention_heads"):
        value = vars(config).get(name)
        if isinstance(value, int):
            return value
    return HEADS


def _make_heads_divide(config: Any) -> None:
    """The number of heads divides the width, stage by stage where there are stages."""
    width = _width(config)
    for name, value in list(vars(config).items()):
        if not HEAD_COUNT.match(name) or name.startswith("_"):
            continue
        if type(value) is int and value and width % value:
            _set(config, name, gcd(width, value))
        if isinstance(value, (list, tuple)) and all(type(x) is int for x in value):
            _set(config, name, type(value)(gcd(width, x) for x in value))
            widths = next(
                (
                    v
                    for n, v in vars(config).items()
                    if CHANNELS.match(n)
                    and isinstance(v, (list, tuple))
                    and len(v) == len(value)
                    and all(type(x) is int for x in v)
                ),
                None,
            )
            if widths and all(type(x) is int for x in value):
                _set(config, name, type(value)(gcd(w, h) for w, h in zip(widths, value, strict=True)))
