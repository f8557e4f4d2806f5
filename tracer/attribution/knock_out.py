"""What becomes of a score where no attention may read some tokens: an explanation held against the model.

A token is knocked out of an attention as a mask would do it: other tokens give it no weight, and what is left
of a row is scaled to the row's sum, which is a score of -inf before a softmax. A token still reads itself.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from fxplain.attention.labelled import Labelled
from fxplain.attention.plan import Plan
from fxplain.capture.guard import same_random_numbers, untouched
from fxplain.errors import MethodError
from fxplain.labels.flows import Kernel, Site, WrittenOut
from fxplain.maps.blocks import Where
from fxplain.maps.kernels import rebuilt_outputs
from fxplain.run.mask_flags import PlainMasks
from fxplain.run.replay import Replay, execute
from fxplain.run.target import Resolved, rescored
from fxplain.where import place_of


@dataclass(frozen=True, eq=False)
class KnockOut:
    """What became of each sample's score without some tokens. ``str()`` says it in a line a sample. Made by
    :meth:`fxplain.Result.knock_out`."""

    tokens: tuple[tuple[str, ...], ...]
    """Per sample the tokens that were knocked out, ``space[place]``, the most relevant first."""
    score: Tensor
    """[batch]: the score as it is."""
    without: Tensor
    """[batch]: the score without them."""
    at_random: Tensor
    """[draws, batch]: the score without as many others, drawn at random."""

    def __str__(self) -> str:
        lines = []
        for sample, tokens in enumerate(self.tokens):
            others = self.at_random[:, sample]
            beside = "no others to compare with"
            if len(others) and not bool(others.isnan().any()):
                many = f"{len(tokens)} other{'s' if len(tokens) != 1 else ''}"
                beside = (
                    f"{float(others.mean()):.4g} without {many} (mean of {len(others)} draws, "
                    f"{float(others.min()):.4g} to {float(others.max()):.4g})"
                )
            lines.append(
                f"the score {float(self.score[sample]):.4g} is {float(self.without[sample]):.4g} where no "
                f"attention reads {', '.join(tokens) or 'nothing less'}; {beside}"
            )
        return "\n".join(lines)


def chosen_tokens(
    rows: Tensor, candidates: Tensor, count: int, draws: int, seed: int
) -> tuple[list[list[int]], list[list[list[int]]]]:
    """The most relevant tokens of each sample, and as many others for each draw.

    Args:
        rows: [batch, tokens], the relevance.
        candidates: [batch, tokens] bool: those that may be taken.

    Returns:
        [sample][token], most relevant first; [draw][sample][token], no draw where there are not as many.
    """
    best: list[list[int]] = []
    rest: list[list[int]] = []
    for row, may in zip(rows.detach().cpu(), candidates.cpu(), strict=True):
        places = row.masked_fill(~may, -torch.inf).argsort(descending=True, stable=True)[: int(may.sum())]
        best.append(places[:count].tolist())
        rest.append(places[count:].sort().values.tolist())
    enough = all(len(other) >= len(own) for own, other in zip(best, rest, strict=True))
    found: list[list[list[int]]] = [[] for _ in range(draws if enough else 0)]
    for own, other in zip(best, rest, strict=True):
        chance = random.Random(seed)  # of each sample by itself: alone it has the same draws
        for draw in found:
            draw.append(chance.sample(other, len(own)))
    return best, found


@dataclass(frozen=True, eq=False)
class Without:
    """Scores of one prediction without some tokens: the graph run again, its attentions masked."""

    labelled: Labelled
    bound: Mapping[str, Tensor]
    resolved: Resolved

    @staticmethod
    def of(labelled: Labelled, bound: Mapping[str, Tensor], resolved: Resolved) -> Without:
        """Of a prediction, without the values of its run."""
        return Without(labelled, bound, replace(resolved, scores=resolved.scores.detach()))

    def __call__(self, removed: Tensor) -> Tensor:
        """[batch]: the scores.

        Args:
            removed: [batch, tokens] bool.

        Raises:
            MethodError: an attention has a form that cannot be masked here.
        """
        with untouched(None):
            outputs = run_without(self.labelled, self.bound, removed)
            return rescored(self.resolved, outputs, self.labelled.findings, self.labelled.captured).detach()


def run_without(labelled: Labelled, bound: Mapping[str, Tensor], removed: Tensor) -> tuple[Tensor, ...]:
    """The graph's outputs where attentions do not read some tokens.

    Args:
        labelled, bound: the graph, and a tensor for each of its placeholders.
        removed: [batch, tokens] bool.
    """
    sites = [site for site in labelled.classified.sites if site.role == "attention"]
    changed: dict[fx.Node, list[Site]] = defaultdict(list)
    for site in sites:
        changed[_changed_node(site, labelled.plans[site.index])].append(site)
    wanted = {node for site in sites if isinstance(site.map, Kernel) for node in site.keeps}
    masks = PlainMasks(sites)
    kept: dict[str, Any] = {}

    def change(node: fx.Node, value: Any) -> Any:
        if node in wanted:
            kept[node.name] = value
        for site in changed.get(node, ()):
            left = left_of(labelled.plans[site.index], removed)
            if isinstance(site.map, Kernel):
                value = _of_kernel(site, Replay((), {}, kept, masks.causal), left, value)
            else:
                value = masked_rows(value, left, site.axes.columns)
        return value

    with same_random_numbers(), torch.no_grad():
        return execute(labelled.captured, bound, change, dict.fromkeys(masks.nodes, masks.run))


def _changed_node(site: Site, plan: Plan) -> fx.Node:
    """The node whose value is put another in the place of: the map, or what a kernel gives."""
    map = site.map
    if plan.sampled and isinstance(map, Kernel):
        return site.node
    if plan.sampled and isinstance(map, WrittenOut) and not map.shared:
        return map.weights
    raise MethodError(
        "tokens cannot be knocked out of this attention",
        where=place_of(site.node),
        expected="a map that the graph holds, or one kernel, with one sample in each row",
        found="an attention along edges, in parts, or of rows that samples share",
    )


def left_of(plan: Plan, removed: Tensor) -> Tensor:
    """Which elements of a map stay: bool, of its shape with heads at size 1."""
    queries, keys = (own.to(removed.device) for own in (plan.queries, plan.keys))
    rows, cols = plan.rows.to(removed.device), plan.cols.to(removed.device)
    sample = torch.div(cols, max(len(keys), 1), rounding_mode="floor").clamp(0, len(removed) - 1)
    key, query = keys[cols.clamp_min(0) % len(keys)], queries[rows.clamp_min(0) % len(queries)]
    gone = removed[sample, key] & (cols >= 0)
    return (~(gone & ~((rows >= 0) & (query == key)))).expand(plan.shape)


def masked_rows(maps: Tensor, left: Tensor, columns: tuple[int, ...]) -> Tensor:
    """A map with some elements at 0, and its rows scaled to the sums that they had. A row of which nothing is
    left is 0.

    Example:
        >>> masked_rows(torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[False, True, True]]), (1,))
        tensor([[0.0000, 0.5000, 0.5000]])
    """
    kept = torch.where(left, maps, 0)
    before, after = (part.sum(columns, keepdim=True) for part in (maps, kept))
    return kept * torch.where(after == 0, 0, before / torch.where(after == 0, 1, after))


def _of_kernel(site: Site, run: Replay, left: Tensor, value: Any) -> Any:
    """What a kernel gives with its map so masked."""
    own: Tensor = value[0] if isinstance(value, tuple | list) else value

    def masked(where: Where, maps: Tensor) -> Tensor:
        places = tuple(p if size > 1 else slice(None) for p, size in zip(where, left.shape, strict=True))
        return masked_rows(maps, left[places].to(maps.device), (maps.ndim - 1,))

    output = torch.empty_like(own)
    for where, rows in rebuilt_outputs(site, run, masked):
        output[(*where, slice(None))] = rows.to(own.dtype)
    return (output, *value[1:]) if isinstance(value, tuple | list) else output
