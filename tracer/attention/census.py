"""The census: every softmax-like operation with its role, and every operation that labels did not survive."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import fx

from fxplain.attention.choices import picked, widens
from fxplain.attention.records import CensusEntry
from fxplain.attention.unfollowed import followed
from fxplain.labels.call import aten, op_name
from fxplain.labels.findings import Findings
from fxplain.labels.flows import EdgeList, Matrix, Sampled, Site
from fxplain.labels.value import NOTHING
from fxplain.ops.sampling import is_sampler
from fxplain.where import module_path, source_line

CONTRACTIONS = aten("matmul mm bmm einsum baddbmm addmm linear tensordot mv dot")
LAYOUTS = frozenset(aten("view reshape permute transpose unsqueeze squeeze expand clone contiguous"))
LINEAR = "token mixing", "a linear map over tokens: its weights are the map between them"
CHANNELS = "channel attention", "a map between features, from which the tokens were summed out"
ROUTED = "expert router", "weighs several versions of the same token"
VERSIONS = "expert router", "mixes several versions of the same token"
PAIRS = "map", "its weights go on as features of pairs of tokens and weigh no values"
LEARNED = "learned mixture", "weights of parameters only: the same for every input"
EDGES = "attention", "weights of edges, which add up to 1 where they end"
MOVING = frozenset(aten("gather take_along_dim index index_select roll"))
MOVED = "token mixing", "weighs copies of the sequence that are moved along it"
LOST = "unknown", "labelled data reached an operation without a transfer function"
PROBED = "token by token", "no transfer function; noise in some tokens changed these tokens only"
POINTS = "sampling over points", "weighs values sampled at a few places per query"


def census(findings: Findings, sites: tuple[Site, ...]) -> tuple[CensusEntry, ...]:
    """One entry for each softmax-like call, linear attention, and loss of labels, in order of execution."""
    attending = {name for site in sites if site.role == "attention" for name in site.softmaxes}
    entries: dict[fx.Node, tuple[str, str]] = {}
    for node, over in findings.ledger.remarks.softmaxes.values():
        if node.name in attending:
            entries[node] = ("attention", "weighs values over tokens")
        else:
            entries[node] = _role(node, over, findings, sites)
    beyond = followed(findings)
    scores = _channel_scores(findings, entries)
    for node in (node for node in findings.ledger.remarks.summaries if node not in scores):
        had = "its map is had by its gradient" if node in beyond else "there is no token-to-token map"
        reason = f"sums all tokens into features before the queries read them: {had}"
        entries.setdefault(node, ("linear attention", reason))
    for site in sites:
        if isinstance(site.map, Matrix):
            entries.setdefault(site.node, LINEAR)
        if isinstance(site.map, EdgeList):
            entries.setdefault(site.map.weights, EDGES)
    entries |= findings.ledger.remarks.unfollowed
    entries |= dict.fromkeys(findings.ledger.remarks.losses.values(), LOST)
    entries |= dict.fromkeys(findings.ledger.remarks.probed, PROBED)
    order = {node: place for place, node in enumerate(_nodes(findings))}
    return tuple(
        CensusEntry(
            node.name,
            op_name(node).removeprefix("aten::"),
            role,
            reason,
            module_path(node),
            source_line(node),
        )
        for node, (role, reason) in sorted(entries.items(), key=lambda entry: order[entry[0]])
    )


def _channel_scores(findings: Findings, entries: Mapping[fx.Node, tuple[str, str]]) -> set[fx.Node]:
    """Products of features that are the scores of a channel attention, which its softmax tells."""
    maps = (node for node, (role, _) in entries.items() if role == CHANNELS[0])
    return {
        scores
        for node in maps
        for given in node.all_input_nodes
        for scores in findings.value(given).hidden.summaries
    }


def _nodes(findings: Findings) -> list[fx.Node]:
    first = next(iter(findings.values))
    return list(first.graph.nodes)


def _role(node: fx.Node, over: str, findings: Findings, sites: Sequence[Site]) -> tuple[str, str]:
    """What a softmax that weighs no values is for, read off the operations that use it."""
    if over == "channels":
        return CHANNELS
    if over == "versions":
        return VERSIONS
    summaries = set(findings.ledger.remarks.summaries)
    uses = list(_uses(node))
    if any(use in site.map.path for use, _ in uses for site in sites if isinstance(site.map, Sampled)):
        return POINTS
    if any(use in summaries for use, _ in uses):
        return (
            "linear attention",
            "keys are normalised and summed with the values before any query reads them",
        )
    picks = picked(node, findings) if over == "features" else None
    if picks is not None:
        return picks
    for use, path in uses:
        if op_name(use) in CONTRACTIONS:
            return _contracted(use, path, findings)
    if not findings.value(node).from_input:
        return LEARNED
    for use, path in uses:
        if use.op != "output" and op_name(use) == "aten::mul":
            return _multiplied(use, path, findings)
    if any(use.op == "output" for use, _ in uses):
        return "output distribution", f"a distribution over {over} that the model returns"
    return "unused", f"a distribution over {over} that weighs no values"


def _uses(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Every operation that the weights reach while they are weights, with the argument they come in by."""
    stack, seen = [node], {node}
    while stack:
        current = stack.pop(0)
        for user in current.users:
            yield user, current
            stops = op_name(user) in CONTRACTIONS or user.op == "output" or op_name(user) in ("aten::mul",)
            if user not in seen and not stops:
                seen.add(user)
                stack.append(user)


def _contracted(use: fx.Node, path: fx.Node, findings: Findings) -> tuple[str, str]:
    others = [n for n in use.all_input_nodes if n is not path]
    summaries = set(findings.ledger.remarks.summaries)
    other = findings.value(others[0]) if others else NOTHING
    if not other.from_input:
        if _of_pairs(path, findings):
            return PAIRS
        return "codebook", "assigns tokens softly to learned vectors"
    if any(_reaches(n, summaries) for n in others):
        return "linear attention", "queries read a summary of all tokens: there is no token-to-token map"
    if not findings.value(path).from_input:
        return LEARNED
    if not findings.value(path).labelled:
        return CHANNELS
    return VERSIONS


def _of_pairs(node: fx.Node, findings: Findings) -> bool:
    return sum(bool(slot.token_axes) for slot in findings.value(node).active) > 1


def _reaches(node: fx.Node, targets: set[fx.Node], depth: int = 8) -> bool:
    if node in targets:
        return True
    return depth > 0 and any(_reaches(n, targets, depth - 1) for n in node.all_input_nodes[:2])


def _multiplied(use: fx.Node, path: fx.Node, findings: Findings) -> tuple[str, str]:
    others = [n for n in use.all_input_nodes if n is not path]
    if any(_sampled(n) for n in others):
        return POINTS
    if any(_moved(n, findings) for n in others):
        return MOVED
    narrowed = any(
        op_name(n) in ("aten::slice", "aten::select", "aten::unsqueeze", "aten::unbind") for n in _back(path)
    )
    if narrowed:
        return ROUTED
    if _of_pairs(path, findings):
        return PAIRS
    if widens(path, use, findings):  # one weight for all features
        return ROUTED
    return "feature gate", "scales features, token by token"


def _moved(node: fx.Node, findings: Findings) -> bool:
    """Whether it is tokens laid out elsewhere along their axis, by an index or a shift."""
    while op_name(node) not in MOVING and op_name(node).removesuffix("_") in LAYOUTS:
        node = node.all_input_nodes[0]
    given = node.all_input_nodes[0] if node.all_input_nodes else node
    both = (findings.value(given).active, findings.value(node).active)
    return op_name(node) in MOVING and all(any(slot.token_axes for slot in slots) for slots in both)


def _back(node: fx.Node) -> list[fx.Node]:
    """The layout operations between a softmax and its use."""
    found = [node]
    while node.all_input_nodes and "softmax" not in op_name(node):
        node = node.all_input_nodes[0]
        found.append(node)
    return found


def _sampled(node: fx.Node, depth: int = 12) -> bool:
    if is_sampler(node):
        return True
    return depth > 0 and any(_sampled(n, depth - 1) for n in node.all_input_nodes[:2])
