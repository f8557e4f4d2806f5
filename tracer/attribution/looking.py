"""The graph run once more without gradients, to look at each attention as it is computed.

Maps are not kept: what an attention is rebuilt from is let go of as soon as it was looked at.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fxplain.attention.labelled import Labelled
from fxplain.attention.plan import Plan
from fxplain.capture.guard import same_random_numbers
from fxplain.labels.flows import Kernel, Product, Site
from fxplain.maps.products import MapProducts
from fxplain.rules.raw_attention import head_mean
from fxplain.run.mask_flags import PlainMasks
from fxplain.run.replay import Replay, Surrogate, execute

See = Callable[[Plan, Replay], bool]
"""(an attention's plan, what it is rebuilt from) -> whether enough was seen."""


def look(labelled: Labelled, bound: Mapping[str, Tensor], sites: Iterable[Site], see: See) -> None:
    """Run the graph, and show some attentions in order of execution, until enough was seen.

    Args:
        labelled, bound: the graph, and a tensor for each of its placeholders.
        sites: the attentions to be shown.
        see: called for each; what it is given holds the attention's operands and its values alone.
    """
    of_node: dict[fx.Node, list[Site]] = defaultdict(list)
    for site in sites:
        of_node[site.node].append(site)
    uses = Counter(node for own in of_node.values() for site in own for node in _needs(site))
    kept: dict[str, Any] = {}
    masks = PlainMasks(site for own in of_node.values() for site in own)
    plain: dict[fx.Node, Surrogate] = dict.fromkeys(masks.nodes, masks.run)

    def shown(node: fx.Node, value: Any) -> Any:
        if uses[node]:
            kept[node.name] = value
        for site in of_node.pop(node, ()):
            if see(labelled.plans[site.index], Replay((), {}, kept, masks.causal)):
                raise _EnoughError
            for needed in _needs(site):
                uses[needed] -= 1
                if not uses[needed]:
                    del kept[needed.name]
        if not of_node:
            raise _EnoughError
        return value

    if not of_node:
        return
    try:
        with same_random_numbers(), torch.no_grad():
            execute(labelled.captured, bound, shown, plain)
    except _EnoughError:
        return


class _EnoughError(Exception):
    """What was asked for has been seen; the rest of the graph need not run."""


def _needs(site: Site) -> set[fx.Node]:
    values = value_node(site)
    return {*site.keeps, site.node, *([] if values is None else [values])}


def value_node(site: Site) -> fx.Node | None:
    """The node whose value is weighed by an attention's map, where it is one node."""
    if isinstance(site.map, Kernel):
        return site.map.value
    return site.map.values if isinstance(site.map, Product) else None


def some_rows(plan: Plan, run: Replay, queries: Tensor) -> Tensor:
    """[batch, query, key]: rows of an attention's map, mean over heads.

    Args:
        queries: places among the plan's queries, in ascending order.
    """

    def mean(maps: Tensor, gradients: Tensor | None, dim: tuple[int, ...]) -> Tensor:
        return head_mean(maps, dim)

    units = torch.zeros(len(queries), len(plan.queries))
    units[torch.arange(len(queries)), queries] = 1.0
    device = next(value.device for value in run.kept.values() if isinstance(value, Tensor))
    products = MapProducts(plan, run, [None], mean, again=False)
    return products.left(units.expand(plan.batch, -1, -1).to(device))
