"""The methods: each a table of rules for the scheduler and a way to make a map of its heads."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fxplain.errors import MethodError
from fxplain.maps import HeadMean
from fxplain.rules.raw_attention import head_mean
from fxplain.rules.relevancy import head_mean_relevance
from fxplain.schedule import RAW_ATTENTION, RELEVANCY, ROLLOUT, Rules


@dataclass(frozen=True)
class Method:
    """One way to explain: its rules, how heads are averaged, and whether it needs gradients."""

    name: str
    description: str
    rules: Rules
    head_mean: HeadMean
    gradients: bool


def _plain_mean(maps: Tensor, gradients: Tensor | None, dim: tuple[int, ...]) -> Tensor:
    return head_mean(maps, dim)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "relevancy",
            "Gradient-weighted attention, self and across streams (Chefer et al., ICCV 2021, eqs. 1-11)",
            RELEVANCY,
            head_mean_relevance,
            gradients=True,
        ),
        Method(
            "rollout",
            "Product of the head means of all attention maps and the identity (Abnar and Zuidema, ACL 2020)",
            ROLLOUT,
            _plain_mean,
            gradients=False,
        ),
        Method(
            "raw_attention",
            "Head mean of the last attention map alone, the simplest baseline",
            RAW_ATTENTION,
            _plain_mean,
            gradients=False,
        ),
    )
}


def methods() -> dict[str, str]:
    """The methods that ``explain`` takes, with one line on each.

    Example:
        >>> sorted(methods())
        ['raw_attention', 'relevancy', 'rollout']
    """
    return {name: method.description for name, method in METHODS.items()}


def method_named(name: str) -> Method:
    """The method of that name.

    Raises:
        MethodError: there is none.
    """
    if name not in METHODS:
        raise MethodError(
            f"there is no method {name!r}",
            expected=", ".join(METHODS),
            found=repr(name),
            hint="fxplain.methods() and 'fxplain methods' list them",
        )
    return METHODS[name]
