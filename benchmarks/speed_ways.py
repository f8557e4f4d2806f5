"""Ways to explain: fxplain's modes, the paper's method by hooks, integrated gradients, two LRP packages."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from speed_cases import Case
from torch import Tensor, nn
from transformers import activations
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import fxplain


@contextmanager
def begun(model: nn.Module, names: tuple[str, ...]) -> Iterator[list[Tensor]]:
    """Within, gradients start at the outputs of these modules, which are listed as they are made."""
    held: list[Tensor] = []

    def begin(module: nn.Module, given: Any, made: Tensor) -> Tensor:
        held.append(made.detach().requires_grad_())
        return held[-1]

    hooks = [model.get_submodule(name).register_forward_hook(begin) for name in names]
    try:
        yield held
    finally:
        for hook in hooks:
            hook.remove()


def floor(model: nn.Module, case: Case) -> None:
    """One forward pass, and one backward to what the first attentions read; no gradient of parameters."""
    with begun(model, case.starts) as held:
        score = case.score(model(**case.inputs))
    torch.autograd.grad(score, [*held, *(model.get_parameter(name) for name in case.learned)])


def by_hooks(model: nn.Module, case: Case) -> list[Tensor]:
    """Eqs. 5 to 11 as the paper's code does it: every map kept, with its gradient, and R whole."""
    with begun(model, case.starts):
        out = model(**case.inputs, output_attentions=True)
        sides = [getattr(out, side) for side in case.sides]
        flat = [weights for side in sides for weights in side]
        gradients = iter(torch.autograd.grad(case.score(out), flat))
    means = [[(A.detach() * next(gradients)).clamp(min=0).mean(1) for A in side] for side in sides]
    own = [_carried(side) for side in means[:1]]
    if len(sides) == 1:
        return own
    (encoder,), decoders, crosses = own, means[1], means[2]
    said = _identity(decoders[0])
    both = torch.zeros_like(crosses[0])
    for decoder, cross in zip(decoders, crosses, strict=True):
        said, both = said + decoder @ said, both + decoder @ both
        both = both + _normalised(said).mT @ cross @ _normalised(encoder)
    return [encoder, said, both]


def _identity(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device).expand_as(like)


def _carried(means: list[Tensor]) -> Tensor:
    relevancy = _identity(means[0])
    for mean in means:
        relevancy = relevancy + mean @ relevancy
    return relevancy


def _normalised(relevancy: Tensor) -> Tensor:
    excess = relevancy - _identity(relevancy)
    sums = excess.sum(-1, keepdim=True)
    return torch.where(sums > 0, excess / sums, 0.0) + _identity(relevancy)


def integrated_gradients(model: nn.Module, case: Case, steps: int = 50) -> Any:
    """By captum, from what the first attentions read, as many inputs at a time as the case has."""
    from captum.attr import LayerIntegratedGradients

    names = list(case.inputs)

    def score(*given: Tensor) -> Tensor:
        out = model(**dict(zip(names, given, strict=True)))
        place = case.target if isinstance(case.target, tuple) else (case.target,)
        found: Tensor = out.logits[(slice(None), *place)]
        return found

    given = tuple(case.inputs.values())
    layer = model.get_submodule(case.starts[0])
    method = LayerIntegratedGradients(score, layer)
    baselines = tuple(torch.zeros_like(tensor) for tensor in given)
    return method.attribute(given, baselines, n_steps=steps, internal_batch_size=len(given[0]))


def data_of(model: nn.Module, case: Case) -> tuple[str, Tensor]:
    """What the LRP packages go down to: embeddings of ids, or pixels."""
    if not case.ids:
        (name,) = case.inputs
        return name, case.inputs[name].detach().clone()
    embed = model.get_submodule(case.embed)
    return "inputs_embeds", embed(case.inputs[case.ids]).detach()


def by_autolrp(model: nn.Module, case: Case) -> Any:
    """The LRP package that works on autograd's nodes, by its own rules."""
    autolrp = importlib.import_module("autolrp")
    name, data = data_of(model, case)
    given = autolrp.tensor(data)
    case.score(model(**{name: given})).lrp()
    return given.relevance


def by_lxt(model: nn.Module, case: Case) -> Tensor:
    """AttnLRP by its authors' package: gradient times input, under the rules it puts on modules."""
    name, data = data_of(model, case)
    data.requires_grad_()
    with _lxt_rules():
        (gradient,) = torch.autograd.grad(case.score(model(**{name: data})), data)
    return gradient * data.detach()


@contextmanager
def _lxt_rules() -> Iterator[None]:
    """The package's functions on today's classes: as a whole it imports models that transformers has not."""
    spec = importlib.util.find_spec("lxt")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("lxt is not installed")
    if "lxt.efficient" not in sys.modules:
        shell = types.ModuleType("lxt.efficient")
        shell.__path__ = [f"{next(iter(spec.submodule_search_locations))}/efficient"]
        sys.modules["lxt.efficient"] = shell
    patches = importlib.import_module("lxt.efficient.patches")
    attend = patches.wrap_attention_forward(ALL_ATTENTION_FUNCTIONS["sdpa"])
    with ExitStack() as stack:
        stack.enter_context(patch.dict(ALL_ATTENTION_FUNCTIONS._global_mapping, {"sdpa": attend}))
        stack.enter_context(patch.object(nn.LayerNorm, "forward", patches.layer_norm_forward))
        for activation in (activations.GELUActivation, activations.NewGELUActivation, nn.Tanh):
            stack.enter_context(patch.object(activation, "original_forward", activation.forward, create=True))
            stack.enter_context(patch.object(activation, "forward", patches.non_linear_forward))
        yield


def ways_of(
    case: Case, models: Callable[[str], nn.Module], wanted: list[str]
) -> dict[str, Callable[[], Any]]:
    """The ways that were asked for and are defined for the case; ``models`` makes one by its attention."""
    model = models("sdpa")
    traced = fxplain.trace(model, case.inputs)
    found: dict[str, Callable[[], Any]] = {
        "floor": lambda: floor(model, case),
        "rows": lambda: traced.explain(case.inputs, case.target),
        "matrix": lambda: traced.explain(case.inputs, case.target, mode="matrix"),
        "checkpoint": lambda: traced.explain(case.inputs, case.target, mode="checkpoint"),
        "attnlrp": lambda: traced.explain(case.inputs, case.target, "attnlrp"),
        "ig": lambda: integrated_gradients(model, case),
    }
    if "hooks" in wanted:
        eager = models("eager")
        found["hooks"] = lambda: by_hooks(eager, case)
    if len(case.sides) == 1:
        found |= {"lxt": lambda: by_lxt(model, case), "autolrp": lambda: by_autolrp(model, case)}
    if case.targets and "targets" in wanted:
        found["targets"] = lambda: traced.explain_targets(case.inputs, case.targets)
    return {way: found[way] for way in ["floor", *wanted] if way in found}
