"""From sites to attentions: which token spaces are alive, what streams a site joins, and of what kind it
is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fxplain.attention.lines import heads_of
from fxplain.attention.records import Attention, Kind, Mixing, Stream, TokenSpace
from fxplain.attention.streams import StreamNames, living_spaces
from fxplain.attention.unfollowed import makes_scores
from fxplain.attention.windows import windows_of
from fxplain.labels.call import op_name
from fxplain.labels.findings import Findings
from fxplain.labels.flows import Elementwise, Gathered, Kernel, Operator, Site, Window
from fxplain.labels.labels import codes_of
from fxplain.labels.value import Value
from fxplain.where import module_path, source_line


@dataclass(frozen=True)
class Classified:
    """Everything found, with names, in the numbering of tokens that users see."""

    spaces: tuple[TokenSpace, ...]
    streams: tuple[Stream, ...]
    attentions: tuple[Attention, ...]
    mixings: tuple[Mixing, ...]
    sites: tuple[Site, ...]
    """The living sites in execution order."""
    renumber: Tensor
    """Token index of the labelling run -> token index for users, -1 for tokens nobody uses."""
    heads: tuple[tuple[int, ...], ...] = ()
    """Indices of sites that are heads of one attention, each in a call of its own."""

    def members(self, site: int) -> tuple[int, ...]:
        """The sites that make one step with this one, in order of execution."""
        return next((group for group in self.heads if site in group), (site,))

    @property
    def steps(self) -> tuple[Attention | Mixing, ...]:
        """Attentions and mixings in order of execution: one for each of :attr:`sites`."""
        attentions, mixings = iter(self.attentions), iter(self.mixings)
        return tuple(next(attentions) if site.role == "attention" else next(mixings) for site in self.sites)

    @property
    def kinds(self) -> tuple[Kind | None, ...]:
        """The kind of each site; None where it makes new tokens, or joins such to others place by place."""
        return tuple(step.kind for step in self.steps)

    @property
    def tokens(self) -> int:
        return sum(space.size for space in self.spaces)

    def token_ids(self, labels: Tensor) -> Tensor:
        """Labels of the labelling run as token indices for users; -1 where there is none."""
        codes = codes_of(labels)
        return torch.where(codes >= 0, self.renumber[codes.clamp_min(0)], -1)


def classify(findings: Findings) -> Classified:
    """Name and type all sites of a labelling run."""
    ledger = findings.ledger
    count = sum(space.size for space in ledger.tokens.spaces)
    named = [s for s in ledger.sites if not s.absorbed and _joins_tokens(s)]
    named = [s for s in named if not (isinstance(s.map, Operator) and makes_scores(findings, s.node))]
    living = without_stems(_read(named, findings.outputs), findings.outputs, count)
    used = _used(living, findings.outputs, count)
    sites = tuple(s for s in living if s.attends or bool(used[_tokens(s.rows.labels)].any()))
    made = torch.zeros(count, dtype=torch.bool)
    for site in sites:
        made[_tokens(site.rows.labels)] |= site.new_rows
    spaces, renumber = living_spaces(ledger.tokens.spaces, used, made)
    names = StreamNames(spaces)
    drafts = [_draft(site, renumber, names) for site in sites]
    closure = _Closure(sites, renumber, sum(space.size for space in spaces))
    pairs = [(closure.leaves(q.tokens), closure.leaves(k.tokens)) for _, q, k in drafts]
    attends = [site.attends for site in sites]
    attentions: list[Attention] = []
    mixings: list[Mixing] = []
    for place, (site, queries, keys) in enumerate(drafts):
        kind = _kind(place, pairs, attends) if attends[place] else None
        if site.role == "attention" and kind is not None:
            attentions.append(_attention(site, len(attentions), kind, queries, keys, findings.batch))
        else:
            mixings.append(_mixing(site, len(mixings), kind, queries, keys))
    living_indices = {site.index for site in sites}
    heads = tuple(tuple(sorted(group)) for group in ledger.heads if group <= living_indices)
    return Classified(
        spaces, names.streams, tuple(_unique(attentions)), tuple(mixings), sites, renumber, heads
    )


def _unique(attentions: list[Attention]) -> list[Attention]:
    """Attention names are module paths; a module that attends several times gets numbers."""
    seen: dict[str, int] = {}
    named = []
    for attention in attentions:
        seen[attention.name] = seen.get(attention.name, 0) + 1
        again = seen[attention.name]
        name = attention.name if again == 1 else f"{attention.name}#{again}"
        named.append(Attention(**{**attention.__dict__, "name": name}))
    return named


def _read(sites: list[Site], outputs: Iterable[Value]) -> list[Site]:
    """Without the joins and pools whose sums no later site or output reads: statistics, of a softmax say."""
    wanted = {read for value in outputs for slot in value.active for read in slot.reads}
    kept: list[Site] = []
    for site in reversed(sites):
        if site.index in wanted or not isinstance(site.map, Elementwise):
            kept.append(site)
            wanted |= site.rows.reads | site.cols.reads
    return kept[::-1]


def _joins_tokens(site: Site) -> bool:
    """Whether there are tokens on both sides; rows or columns of padding alone have none."""
    return len(_tokens(site.rows.labels)) > 0 and len(_tokens(site.cols.labels)) > 0


def _tokens(labels: Tensor) -> Tensor:
    codes = codes_of(labels).reshape(-1)
    return codes[codes >= 0]


def _used(sites: Iterable[Site], outputs: Iterable[Value], count: int) -> Tensor:
    """Tokens that an attention ranges over, an output carries, or a used mixing reads."""
    used = torch.zeros(count, dtype=torch.bool)
    for value in outputs:
        for slot in value.active:
            used[_tokens(slot.labels)] = True
    sites = list(sites)
    for site in sites:
        if site.attends:
            used[_tokens(site.rows.labels)] = True
            used[_tokens(site.cols.labels)] = True
    for site in reversed(sites):
        if not site.attends and bool(used[_tokens(site.rows.labels)].any()):
            used[_tokens(site.cols.labels)] = True
    return used


def without_stems(sites: Iterable[Site], outputs: Iterable[Value], count: int) -> list[Site]:
    """All sites but the windows of a stem: convolutions of tokens that nobody attends to, before any
    attention.

    A network of convolutions before the first attention makes the tokens; it does not mix them.
    """
    sites = list(sites)
    attended = torch.zeros(count, dtype=torch.bool)
    before: set[int] = set()
    for site in sites:
        if site.attends or (site.rows.reads | site.cols.reads) & before:
            before.add(site.index)
        if site.attends:
            attended[_tokens(site.rows.labels)] = True
            attended[_tokens(site.cols.labels)] = True
    if not before:
        return [site for site in sites if not isinstance(site.map, Window)]
    kept: list[Site] = []
    for site in reversed(sites):
        cols = _tokens(site.cols.labels)
        window = isinstance(site.map, Window) and not site.cols.reads & before
        if not window or bool(attended[cols].any()):
            kept.append(site)
            if not site.attends and bool(attended[_tokens(site.rows.labels)].any()):
                attended[cols] = True
    return kept[::-1]


def _draft(site: Site, renumber: Tensor, names: StreamNames) -> tuple[Site, Stream, Stream]:
    rows, cols = (renumber[_tokens(slot.labels)] for slot in (site.rows, site.cols))
    return site, names.stream(rows), names.stream(cols)


class _Closure:
    """Which tokens new ones were mixed from: a token pooled from others stands for them."""

    def __init__(self, sites: Iterable[Site], renumber: Tensor, count: int) -> None:
        self.count = count
        self.made: list[tuple[Tensor, Tensor]] = [
            (renumber[_tokens(s.rows.labels)], renumber[_tokens(s.cols.labels)])
            for s in sites
            # a state is nobody's but the recurrence's
            if s.new_rows and not isinstance(s.map, Gathered)
        ]

    def leaves(self, tokens: Iterable[int]) -> Tensor:
        mask = torch.zeros(self.count, dtype=torch.bool)
        mask[torch.tensor(list(tokens), dtype=torch.int64)] = True
        for rows, cols in reversed(self.made):
            if bool(mask[rows].any()):
                mask[rows] = False
                mask[cols] = True
        return mask


def _meet(one: Tensor, other: Tensor) -> bool:
    """Whether one stream holds tokens of the other, and one of the two no others: a slice of it, or a token
    that was pooled from it. A state that was also made of tokens of both is on neither side."""
    return bool((one & other).any()) and (not bool((one & ~other).any()) or not bool((other & ~one).any()))


def _kind(place: int, pairs: list[tuple[Tensor, Tensor]], is_attention: list[bool]) -> Kind:
    queries, keys = pairs[place]
    if not bool((queries & ~keys).any()) or not bool((keys & ~queries).any()):
        return "self"  # the one is part of the other: a class token reads all, all read every second token
    for other, (q, k) in enumerate(pairs):
        back = is_attention[other] and _meet(q, keys) and _meet(k, queries)
        if other != place and back and bool((q & ~k).any()) and bool((k & ~q).any()):
            return "co"
    return "encoder_decoder"


def _attention(site: Site, index: int, kind: Kind, queries: Stream, keys: Stream, batch: int) -> Attention:
    module = module_path(site.node)
    windows, window = windows_of(site)
    return Attention(
        index=index,
        name=module or site.node.name,
        kind=kind,
        queries=queries,
        keys=keys,
        heads=heads_of(site, batch),
        fused=isinstance(site.map, Kernel),
        module=module,
        source=source_line(site.node),
        node=site.node.name,
        normaliser=site.map.normaliser,
        windows=windows,
        window=window,
    )


def _mixing(site: Site, index: int, kind: Kind | None, queries: Stream, keys: Stream) -> Mixing:
    module = module_path(site.node)
    return Mixing(
        index=index,
        name=module or site.node.name,
        queries=queries,
        keys=keys,
        op=op_name(site.map.first(site.node)).removeprefix("aten::"),
        module=module,
        source=source_line(site.node),
        node=site.node.name,
        kind=kind,
    )
