"""The rule sets: one table each of how relevance passes every kind of operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from fxplain.rules.lrp_maps import softmax_taylor
from fxplain.rules.lrp_products import Product, alpha_beta_rule, epsilon_rule, z_box_rule
from fxplain.rules.lrp_sums import epsilon_split, gamma_split, normalised_split

Affine = Callable[[Product, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(product, x, weight, output, relevance) -> relevance of x."""
Split = Callable[[Sequence[Tensor], Tensor, Callable[[Tensor], Tensor]], list[Tensor]]
"""(terms of an addition, all of the output's shape, relevance, for each element the sum over its sample's)
-> relevance of each term."""


@dataclass(frozen=True)
class RuleSet:
    """How relevance passes each kind of operation; nothing has a default.

    Layout, selection and pooling need no choice: they hand relevance back along the way the values came.
    """

    name: str
    paper: str
    seed: Literal["one", "score"]
    """Where it starts: with 1 at the explained score, or with the score."""
    affine: Affine
    """Linear maps and convolutions by a weight."""
    raw: Affine
    """Convolutions of the raw input (pixels, samples of sound)."""
    addition: Split
    """Additions of two activations: residual connections first of all."""
    absorbing: bool
    """Whether constants and biases that are added take their share (which is lost to the input)."""
    softmax: Callable[[Tensor, Tensor, Tensor, int], Tensor] | None
    """(scores, weights, relevance, dim) -> relevance of the scores; None is the identity."""
    centring: bool
    """Whether a norm's subtraction of the mean counts as a linear map; else a norm is the identity."""
    attention: Literal["halves", "values"]
    """A map times values: half of the relevance to each, or all of it to the values."""
    gate: Literal["halves", "gated"]
    """A gate times an activation: half of the relevance to each, or all to the one that is gated."""
    epsilon: float


def _ignoring_bias(alpha: float) -> Affine:
    def rule(product: Product, x: Tensor, w: Tensor, output: Tensor, relevance: Tensor) -> Tensor:
        return alpha_beta_rule(product, x, w, relevance, alpha)

    return rule


def _z_box(product: Product, x: Tensor, w: Tensor, output: Tensor, relevance: Tensor) -> Tensor:
    return z_box_rule(product, x, w, relevance)


def _epsilon(epsilon: float) -> Affine:
    return partial(epsilon_rule, epsilon=epsilon)


def _elementwise(split: Callable[[Sequence[Tensor], Tensor], list[Tensor]]) -> Split:
    """A rule for additions that sums over no elements."""
    return lambda terms, relevance, total: split(terms, relevance)


TINY = 1e-9
"""An ε that only keeps divisions from exploding."""
RESIDUAL_GAMMA = 0.25
"""The gamma of gamma-LRP's additions; of our choosing."""

CHEFER2021 = RuleSet(
    name="chefer2021",
    paper="Chefer et al., CVPR 2021",
    seed="one",
    affine=_ignoring_bias(1.0),
    raw=_z_box,
    addition=normalised_split,
    absorbing=False,
    softmax=None,
    centring=False,
    attention="halves",
    gate="halves",
    epsilon=0.0,
)


def epsilon_rules(epsilon: float) -> RuleSet:
    """The epsilon rule throughout; softmax and norms are identities as activations are."""
    return RuleSet(
        name="epsilon",
        paper="Bach et al., 2015",
        seed="score",
        affine=_epsilon(epsilon),
        raw=_epsilon(epsilon),
        addition=_elementwise(partial(epsilon_split, epsilon=epsilon)),
        absorbing=True,
        softmax=None,
        centring=False,
        attention="halves",
        gate="halves",
        epsilon=epsilon,
    )


EPSILON = epsilon_rules(1e-6)
ALPHA_BETA = RuleSet(
    name="alpha_beta",
    paper="Bach et al., 2015, with alpha 2 and beta 1",
    seed="score",
    affine=_ignoring_bias(2.0),
    raw=_z_box,
    addition=normalised_split,
    absorbing=False,
    softmax=None,
    centring=False,
    attention="halves",
    gate="halves",
    epsilon=0.0,
)
ATTNLRP = RuleSet(
    name="attnlrp",
    paper="Achtibat et al., ICML 2024",
    seed="score",
    affine=_epsilon(TINY),
    raw=_epsilon(TINY),
    addition=_elementwise(partial(epsilon_split, epsilon=TINY)),
    absorbing=True,
    softmax=softmax_taylor,
    centring=True,
    attention="halves",
    gate="halves",
    epsilon=TINY,
)
CP_LRP = RuleSet(
    name="cp_lrp",
    paper="Ali et al., ICML 2022",
    seed="score",
    affine=_epsilon(TINY),
    raw=_epsilon(TINY),
    addition=_elementwise(partial(epsilon_split, epsilon=TINY)),
    absorbing=True,
    softmax=softmax_taylor,
    centring=True,
    attention="values",
    gate="gated",
    epsilon=TINY,
)
GAMMA_LRP = RuleSet(
    name="gamma_lrp",
    paper="fxplain, after AttnLRP and Montavon et al., 2019",
    seed="score",
    affine=_epsilon(TINY),
    raw=_epsilon(TINY),
    addition=_elementwise(partial(gamma_split, gamma=RESIDUAL_GAMMA, epsilon=TINY)),
    absorbing=True,
    softmax=softmax_taylor,
    centring=True,
    attention="halves",
    gate="halves",
    epsilon=TINY,
)

RULE_SETS: dict[str, RuleSet] = {
    rules.name: rules for rules in (CHEFER2021, EPSILON, ALPHA_BETA, ATTNLRP, CP_LRP, GAMMA_LRP)
}
