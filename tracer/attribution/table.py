"""The methods: name, paper, one line, and the function that explains a prediction by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Literal

from torch import Tensor

from fxplain.attention.layers import Layers
from fxplain.attribution.chance import at_random
from fxplain.attribution.flow import attention_flow
from fxplain.attribution.gradients import gradient_times_input, integrated_gradients, smoothgrad
from fxplain.attribution.head_means import gradcam, gradcam_of_rows, gradient_alone
from fxplain.attribution.legrad import legrad
from fxplain.attribution.lrp.methods import ThroughMaps, ToInputs
from fxplain.attribution.lrp.rule_sets import (
    ALPHA_BETA,
    ATTNLRP,
    CHEFER2021,
    CP_LRP,
    EPSILON,
    GAMMA_LRP,
    RuleSet,
)
from fxplain.attribution.prediction import Prediction
from fxplain.attribution.row_mode import Weigh
from fxplain.attribution.scheduled import Explained, Scheduled, by_heads
from fxplain.errors import MethodError
from fxplain.maps.weights import HeadMean
from fxplain.rules.lrp_maps import positive_head_mean
from fxplain.rules.net_relevancy import signed_head_mean
from fxplain.rules.raw_attention import head_mean
from fxplain.rules.relevancy import Flags, head_mean_relevance
from fxplain.schedule.rules_over_steps import (
    ATTRIBUTION,
    RAW_ATTENTION,
    RELEVANCY,
    ROLLOUT,
    Rules,
    relevancy_rules,
    rollout_rules,
)

ICCV = "Chefer et al., ICCV 2021"
CVPR = "Chefer et al., CVPR 2021"
OURS = "fxplain, after Chefer et al., ICCV 2021, and Mehri et al., CVPR 2025"
LIBRA = "+libra"
"""Ends the name of a method that is to take balanced gradients."""
AUTO = "auto"
"""Names the method that a fact of the graph chooses: :mod:`fxplain.attribution.auto`."""


@dataclass(frozen=True)
class Method:
    """One way to explain."""

    name: str
    paper: str
    description: str
    explain: Callable[[Prediction], Explained]
    gradients: bool
    """Whether it takes gradients of the graph."""
    attentions: bool = True
    """Whether it goes attention by attention, so that ``layers=`` says something."""
    libra: bool = False
    """Whether its gradients are to be balanced."""

    @property
    def takes_libra(self) -> bool:
        """Whether ``+libra`` says something: gradients are taken, and not balanced anyway."""
        return self.gradients and not self.libra

    @property
    def values(self) -> bool:
        """Whether it reads the value of every node of the graph."""
        return isinstance(self.explain, (ToInputs, ThroughMaps))


METHODS: dict[str, Method] = {}
"""Name -> method, in the order in which they are listed."""


def register(*methods: Method) -> None:
    """Add methods to the table."""
    METHODS.update({method.name: method for method in methods})


def plain_mean(maps: Tensor, gradients: Tensor | None, dim: tuple[int, ...]) -> Tensor:
    """The mean of the maps over heads."""
    return head_mean(maps, dim)


def scheduled(
    name: str, paper: str, description: str, rules: Rules, weigh: Weigh, gradients: bool, last: bool = False
) -> Method:
    """A method that weighs every attention and runs a table of rules over them."""
    explain = Scheduled(rules, weigh, gradients, layers=-1 if last else None)
    return Method(name, paper, description, explain, gradients)


def balanced(method: Method) -> Method:
    """A method whose gradients are always balanced."""
    return replace(method, libra=True)


def relevance_head_mean(maps: Tensor, gradients: Tensor | None, dim: tuple[int, ...]) -> Tensor:
    """The mean over heads of the positive part of maps' relevance."""
    return positive_head_mean(maps, dim)


EQ_5, MEAN = by_heads(head_mean_relevance), by_heads(plain_mean)


def _net(name: str, description: str, centre: Literal["never", "causal", "always"]) -> Method:
    weigh = by_heads(signed_head_mean, net=True, centre=centre)
    return balanced(scheduled(name, OURS, description, RELEVANCY, weigh, True))


register(
    scheduled("relevancy", ICCV, "gradient times attention, self and across streams", RELEVANCY, EQ_5, True),
    _net(
        "net_relevancy",
        "relevancy with balanced gradients and heads that may cancel: clamped after their mean; in causal "
        "self-attention with gradients beside their row's mean",
        "causal",
    ),
    _net("net_relevancy_uncentred", "ablation: gradients as they are in every attention", "never"),
    _net("net_relevancy_centred", "ablation: gradients beside their row's mean in every attention", "always"),
    scheduled(
        "rollout",
        "Abnar and Zuidema, ACL 2020",
        "product of (mean map + identity), rows divided by their sums; across streams by eq. 12",
        ROLLOUT,
        MEAN,
        False,
    ),
    scheduled(
        "rollout_unnormalised",
        CVPR,
        "the same with rows as they are (eq. 16)",
        rollout_rules(False),
        MEAN,
        False,
    ),
    scheduled("raw_attention", ICCV, "head mean of the last attention map alone", RAW_ATTENTION, MEAN, False),
    scheduled(
        "attention_gradcam",
        ICCV,
        "last map, its heads weighed by the mean gradient of the whole map",
        RAW_ATTENTION,
        gradcam,
        True,
    ),
    scheduled(
        "attention_gradcam_row",
        CVPR,
        "last map, its heads weighed by the mean gradient of the rows that are read",
        RAW_ATTENTION,
        gradcam_of_rows,
        True,
    ),
    scheduled(
        "relevancy_no_gradient", ICCV, "ablation: the plain mean of heads for eq. 5", RELEVANCY, MEAN, False
    ),
    scheduled(
        "relevancy_last_layer", ICCV, "ablation: the last layer alone", RELEVANCY, EQ_5, True, last=True
    ),
    scheduled(
        "relevancy_no_normalisation",
        ICCV,
        "ablation: eq. 10 without the normalisation of eqs. 8 and 9",
        relevancy_rules(Flags(normalize_self_attention=False)),
        EQ_5,
        True,
    ),
    scheduled(
        "relevancy_no_aggregation",
        ICCV,
        "ablation: increments take the place of rows, instead of being added",
        relevancy_rules(Flags(aggregate=False)),
        EQ_5,
        True,
    ),
    scheduled(
        "relevancy_no_self_in_eq10",
        ICCV,
        "ablation: eq. 10 without its self-attention terms",
        relevancy_rules(Flags(self_in_rule_10=False)),
        EQ_5,
        True,
    ),
)

register(
    Method(
        "attention_flow",
        "Abnar and Zuidema, ACL 2020",
        "largest flow through the network whose capacities are what rollout multiplies",
        attention_flow,
        gradients=False,
    ),
    Method(
        "legrad",
        "Bousselham et al., ICCV 2025",
        "positive gradient of each layer's own score to its map, averaged over layers",
        legrad,
        gradients=True,
    ),
    Method(
        "gradient_x_input",
        "Shrikumar et al., 2016",
        "gradient times input at the tokens' embeddings, by captum",
        gradient_times_input,
        gradients=True,
        attentions=False,
    ),
    Method(
        "integrated_gradients",
        "Sundararajan et al., ICML 2017",
        "gradients integrated from zero embeddings to the tokens' own, by captum",
        integrated_gradients,
        gradients=True,
        attentions=False,
    ),
    Method(
        "smoothgrad",
        "Smilkov et al., 2017",
        "gradient times input averaged over noisy embeddings, by captum",
        smoothgrad,
        gradients=True,
        attentions=False,
    ),
    Method("random", "none", "drawn at random: the floor", at_random, gradients=False, attentions=False),
)


def _to_inputs(name: str, description: str, rules: RuleSet) -> Method:
    return Method(name, rules.paper, description, ToInputs(rules), gradients=False, attentions=False)


def _attributed(
    ending: str, what: str, head_mean: HeadMean, gradients: bool = True, layers: Layers | None = None
) -> Method:
    """Transformer attribution, or an ablation of it."""
    explain = ThroughMaps(CHEFER2021, ATTRIBUTION, head_mean, gradients, layers)
    line = f"ablation: {what}" if ending else what
    return Method(f"transformer_attribution{ending}", CVPR, line, explain, gradients)


register(
    _attributed(
        "",
        "gradient times the LRP relevance of every map, multiplied up (eqs. 13, 14); across streams the last",
        head_mean_relevance,
    ),
    Method(
        "transformer_attribution_attention",
        CVPR,
        "ablation: maps in place of their gradients in eq. 13 (Table 3, i)",
        ThroughMaps(CHEFER2021, ATTRIBUTION, head_mean_relevance, gradients=False, maps=True),
        gradients=False,
    ),
    _attributed("_no_gradient", "relevance of maps alone in eq. 13", relevance_head_mean, gradients=False),
    scheduled(
        "transformer_attribution_no_relevance",
        CVPR,
        "ablation: gradients of maps alone in eq. 13, no LRP",
        ATTRIBUTION,
        gradient_alone,
        True,
    ),
    _attributed(
        "_last_layer", "eq. 13 of the last layer alone (Table 3, ii)", head_mean_relevance, layers=-1
    ),
    Method(
        "partial_lrp",
        CVPR,
        "LRP relevance of the last map, mean of its heads' positive part",
        ThroughMaps(CHEFER2021, RAW_ATTENTION, relevance_head_mean, gradients=False),
        gradients=False,
    ),
    _to_inputs("lrp", "LRP to the inputs: z+ rule, normalised additions, softmax as identity", CHEFER2021),
    _to_inputs("lrp_epsilon", "LRP to the inputs: the epsilon rule throughout, softmax as identity", EPSILON),
    _to_inputs("lrp_alpha_beta", "LRP to the inputs: twice the positive parts less the negative", ALPHA_BETA),
    _to_inputs("attnlrp", "LRP to the inputs: epsilon rule, softmax by Taylor expansion", ATTNLRP),
    _to_inputs("cp_lrp", "LRP to the inputs: epsilon rule, attention maps and gates held constant", CP_LRP),
    _to_inputs("gamma_lrp", "AttnLRP with the gamma rule at residual additions", GAMMA_LRP),
)


def methods() -> dict[str, str]:
    """The methods that ``explain`` takes, with one line on each, and the paper it comes from.

    Example:
        >>> methods()["raw_attention"]
        'head mean of the last attention map alone (Chefer et al., ICCV 2021)'
    """
    return {name: f"{method.description} ({method.paper})" for name, method in METHODS.items()}


def plain_name(name: str) -> str:
    """A method's name without ``+libra``.

    Example:
        >>> plain_name("legrad+libra")
        'legrad'
    """
    return name.removesuffix(LIBRA)


def _unsettled(prediction: Prediction) -> Explained:
    raise MethodError(f"the method {AUTO!r} was not settled on one", hint="please report this")


_AUTO = Method(AUTO, "", "relevancy, or net_relevancy where attention is causal", _unsettled, True)


def methods_named(names: Iterable[str]) -> list[Method]:
    """The methods of several names, each once.

    Raises:
        MethodError: these are no names, or one is none's.
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise MethodError(
            "several methods are a list of their names",
            expected="['relevancy', 'rollout']",
            found=repr(names),
        )
    return [method_named(name) for name in dict.fromkeys(names)]


def method_named(name: str) -> Method:
    """The method of that name; ``NAME+libra`` is the method on balanced gradients.

    Raises:
        MethodError: there is none.
    """
    if not isinstance(name, str):
        raise MethodError("a method is named by a text", expected=", ".join(METHODS), found=repr(name))
    if name == AUTO:
        return _AUTO
    plain = plain_name(name)
    if plain not in METHODS:
        close = get_close_matches(str(plain), (AUTO, *METHODS), n=3)
        raise MethodError(
            f"there is no method {name!r}",
            expected=", ".join((AUTO, *METHODS)),
            found=repr(name),
            hint=f"did you mean {', '.join(map(repr, close))}?"
            if close
            else "fxplain.methods() and 'fxplain methods' list them",
        )
    method = METHODS[plain]
    if plain == name:
        return method
    if method.libra:
        raise MethodError(
            f"the gradients of {plain!r} are balanced already",
            expected=repr(plain),
            found=repr(name),
        )
    if not method.gradients:
        raise MethodError(
            f"the method {plain!r} takes no gradient that {LIBRA} could balance",
            expected=", ".join(n for n, m in METHODS.items() if m.takes_libra),
            found=repr(name),
        )
    return replace(method, name=name, libra=True)
