"""Every model type in the registry of transformers, at toy size."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import timm
import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto

from atlas.attributes import configurations
from atlas.cases import UNUSED, Case, NotBuiltError, tensors
from atlas.guess import NoInputsError, guess
from atlas.shallow import DEPTH, kind_of, remade, shallow
from atlas.shrink import PLANS, Plan, shrink, side

transformers.logging.set_verbosity_error()

IMPLEMENTATIONS: tuple[str | None, ...] = ("eager", "sdpa")

HEADS = """
    ZERO_SHOT_IMAGE_CLASSIFICATION IMAGE_TEXT_TO_TEXT SEQ_TO_SEQ_CAUSAL_LM SPEECH_SEQ_2_SEQ
    OBJECT_DETECTION ZERO_SHOT_OBJECT_DETECTION KEYPOINT_MATCHING IMAGE_CLASSIFICATION
    VIDEO_CLASSIFICATION AUDIO_CLASSIFICATION CTC VISUAL_QUESTION_ANSWERING UNIVERSAL_SEGMENTATION
    SEMANTIC_SEGMENTATION DEPTH_ESTIMATION MASKED_LM+SEQUENCE_CLASSIFICATION CAUSAL_LM
    SEQUENCE_CLASSIFICATION
"""
"""Which head is wanted where there are several, the most wanted first; then the bare model, then any."""

LARGEST = 120_000_000
"""Parameters; beyond this the model did not shrink."""

PATIENCE = 40.0
"""Seconds of computing after which no other plan or class is tried."""

_CHOICES: dict[str, tuple[Plan, type[nn.Module], dict[str, Tensor]]] = {}


def names() -> list[str]:
    """All types in the registry that have a model, not only a configuration."""
    lists = (
        v for n, v in vars(modeling_auto).items() if n.startswith("MODEL_") and n.endswith("MAPPING_NAMES")
    )
    with_model = {name for mapping in lists for name in mapping}
    return [name for name in CONFIG_MAPPING if name in with_model]


def build(name: str, attention: str | None) -> Case:
    """One type at toy size, with the first plan, class and inputs that run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name not in _CHOICES:
            _CHOICES[name] = _choose(name)
        plan, kind, inputs = _CHOICES[name]
        model = _make(name, plan, kind, attention or "eager")
        _works(model, inputs)
    return Case(
        model,
        inputs,
        reported=lambda: _reported(model, inputs),
        notes={"class": kind.__name__, "plan": plan.name},
    )


def _choose(name: str) -> tuple[Plan, type[nn.Module], dict[str, Tensor]]:
    try:
        config = CONFIG_MAPPING[name]()
    except Exception as error:
        raise NotBuiltError("no default configuration", f"{type(error).__name__}: {error}") from error
    try:
        kinds = list(dict.fromkeys(_classes(type(config))))[:4]
    except ValueError as error:  # a mapping names a class that the library does not have
        raise NotBuiltError("no model class", str(error)) from error
    if not kinds:
        raise NotBuiltError("no model class", "no mapping of the registry holds a model of this type")
    reasons: list[NotBuiltError] = []
    start = time.process_time()
    for kind in kinds:
        for plan in PLANS:
            try:
                return plan, kind, _attempt(name, plan, kind)
            except NotBuiltError as error:
                reasons.append(error)
            if time.process_time() - start > PATIENCE:
                raise reasons[0]
    raise reasons[0]


def _attempt(name: str, plan: Plan, kind: type[nn.Module]) -> dict[str, Tensor]:
    """Inputs that this class runs with after this plan."""
    where = f"{kind.__name__}, {plan.name}"
    try:
        model = _make(name, plan, kind, "eager")
    except NotBuiltError:
        raise
    except Exception as error:
        raise NotBuiltError(_construction(error), f"{where}: {type(error).__name__}: {error}") from error
    try:
        return guess(model, model.config, side(model.config, plan), lambda inputs: _works(model, inputs))
    except NoInputsError as error:
        raise NotBuiltError("inputs unknown", f"{where}: {error}") from error


def _construction(error: Exception) -> str:
    return "needs a package" if isinstance(error, ImportError) else "not constructed"


def _classes(config: type) -> Iterator[type[nn.Module]]:
    """The classes of models for one class of configurations, the most wanted first."""
    mappings = {
        re.sub(r"^MODEL_(FOR_)?|_?MAPPING$", "", name): mapping
        for name, mapping in vars(modeling_auto).items()
        if name.startswith("MODEL_") and name.endswith("MAPPING")
    }
    wanted = HEADS.split()
    for heads in [*wanted, "", *(name for name in mappings if name and name not in wanted)]:
        found = [mappings[head] for head in heads.split("+")]
        if all(config in mapping for mapping in found):
            kinds = found[-1][config]
            yield from kinds[:1] if isinstance(kinds, (tuple, list)) else (kinds,)


def _make(name: str, plan: Plan, kind: type[Any], attention: str) -> nn.Module:
    where = f"{kind.__name__}, {plan.name}"
    try:
        with torch.device("meta"):
            model = kind._from_config(_config(name, plan), attn_implementation="eager")
        weights = {name: weight.numel() for name, weight in model.named_parameters()}
    except ImportError:
        raise
    except Exception:
        if plan.width is None:
            raise
        weights = {}  # some constructors read values: these are built without knowing their size
    size = sum(weights.values())
    if size > LARGEST:
        largest = max(weights, key=weights.__getitem__)
        raise NotBuiltError("too large", f"{where}: {size / 1e6:.0f} million parameters, most in {largest}")
    torch.manual_seed(0)
    model = _with_shallow_backbones(
        _config(name, plan), lambda c: kind._from_config(c, attn_implementation=attention)
    )
    return _spread(model.eval().float())


def _with_shallow_backbones(config: Any, make: Callable[[Any], nn.Module]) -> nn.Module:
    """The model with one layer in each stage of the networks that it takes from timm: these have no
    configuration to shrink."""
    factory = partial(make, config)
    names = {getattr(each, "backbone", None) for each in configurations(config)}
    for name in sorted({str(name) for name in names} & set(timm.list_models())):
        kind = kind_of(partial(timm.create_model, name))
        factory = partial(remade, factory, kind, _shallower)
    return factory()


def _shallower(given: dict[str, Any]) -> dict[str, Any]:
    deep = {name: value for name, value in given.items() if DEPTH.search(name)}
    return given | {name: shallow(value, name, 1) for name, value in deep.items()}


def _config(name: str, plan: Plan) -> Any:
    config = CONFIG_MAPPING[name]()
    shrink(config, plan)
    config.return_dict = True
    if not plan.cache:
        for each in configurations(config):
            each.use_cache = False
    return config


def _spread(model: nn.Module) -> nn.Module:
    """Weights that make a difference: initial ones are so small that maps are uniform and outputs equal."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.is_floating_point() and weight.numel() == 1 and not weight.any():
                weight.fill_(0.5)  # a scale of zero would hide everything
            if not weight.is_floating_point() or weight.numel() < 2:
                continue
            if weight.dim() > 1 and not weight.std() > 0.1:
                fan = weight[0].numel()
                weight.copy_(torch.randn(weight.shape, generator=generator) * max(0.12, min(0.3, fan**-0.5)))
            elif weight.dim() == 1 and not weight.std() > 0:
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.05)
    return model


def _works(model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """Run the model; raise where no output is finite and depends on parameters."""
    with torch.enable_grad():
        outputs = [t for t in tensors(model(**inputs)) if t.is_floating_point()]
    if not any(t.requires_grad for t in outputs):
        raise ValueError("no output depends on the parameters")
    if not all(bool(torch.isfinite(t).any()) for t in outputs if t.numel()):
        raise ValueError("an output is not finite")


def _reported(model: nn.Module, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The maps of ``output_attentions``; empty where the model does not take it.

    Those that no other output depends on are named so: they are of a branch that is not used.
    """
    try:
        output = model(**inputs, output_attentions=True)
    except Exception:
        return {}
    maps = dict(_named_attentions(output, ""))
    learned = [name for name, map in maps.items() if map.requires_grad]
    others = [t for name, t in _others(output) if t.requires_grad]
    if not learned or not others:
        return maps
    total = torch.stack([t.double().sum() for t in others]).sum()
    try:
        used = torch.autograd.grad(total, [maps[name] for name in learned], allow_unused=True)
    except RuntimeError:  # the model writes into what its own gradient needs
        return {name: map.detach() for name, map in maps.items()}
    unused = {name for name, gradient in zip(learned, used, strict=True) if gradient is None}
    return {f"{UNUSED}{name}" if name in unused else name: map.detach() for name, map in maps.items()}


def _others(output: Any) -> Iterator[tuple[str, Tensor]]:
    """All floating outputs that are no attention maps."""
    if not isinstance(output, Mapping):
        yield from (("", t) for t in tensors(output) if t.is_floating_point())
        return
    for name, value in output.items():
        if isinstance(value, Mapping):
            yield from _others(value)
        elif "attention" not in name:
            yield from ((name, t) for t in tensors(value) if t.is_floating_point())


def _named_attentions(output: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(output, Mapping):
        return
    for name, value in output.items():
        if "attention" in name:
            for place, tensor in enumerate(t for t in tensors(value) if t.ndim > 2):
                yield f"{path}{name}.{place}", tensor
        elif isinstance(value, Mapping):
            yield from _named_attentions(value, f"{path}{name}.")
