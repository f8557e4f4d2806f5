"""From sites to attentions: which token spaces are alive, what streams a site joins, and of what kind it
is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fxplain.attentions import Attention, Kind, Mixing, Stream, TokenSpace
from fxplain.find import Findings
from fxplain.labels import STRONG, Value, broadcast, codes_of, compact, completed, samples_of
from fxplain.ledger import Born, Site
from fxplain.ops.table import op_name
from fxplain.unfollowed import makes_scores
from fxplain.where import module_path, source_line
from fxplain.windows import windows_of

APART = -2
"""Between two samples of one packed sequence: nothing passes there."""


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
    beside: tuple[tuple[int, ...], ...] = ()
    """Indices of sites that are heads of one attention, each in a call of its own."""

    def members(self, site: int) -> tuple[int, ...]:
        """The sites that make one step with this one, in order of execution."""
        return next((group for group in self.beside if site in group), (site,))

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
    count = sum(space.size for space in ledger.spaces)
    named = [s for s in ledger.sites if not s.absorbed and _joins_tokens(s)]
    named = [s for s in named if s.form != "operator" or not makes_scores(findings, s.node)]
    living = without_stems(_read(named, findings.outputs), findings.outputs, count)
    used = _used(living, findings.outputs, count)
    sites = tuple(s for s in living if s.attends or bool(used[_tokens(s.rows.labels)].any()))
    made = torch.zeros(count, dtype=torch.bool)
    for site in sites:
        made[_tokens(site.rows.labels)] |= site.makes_tokens or site.pools
    spaces, renumber = _spaces(ledger.spaces, used, made)
    names = _Namer(spaces)
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
    beside = tuple(tuple(sorted(group)) for group in ledger.beside if group <= living_indices)
    return Classified(
        spaces, names.streams, tuple(_unique(attentions)), tuple(mixings), sites, renumber, beside
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
    """Without the joins whose sums no later site or output reads."""
    wanted = {read for value in outputs for slot in value.active for read in slot.reads}
    kept: list[Site] = []
    for site in reversed(sites):
        if site.index in wanted or site.form != "joined":
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
        if site.attends or (site.form == "joined" and (site.rows.reads | site.cols.reads) & before):
            before.add(site.index)
        if site.attends:
            attended[_tokens(site.rows.labels)] = True
            attended[_tokens(site.cols.labels)] = True
    if not before:
        return [site for site in sites if site.window is None]
    kept: list[Site] = []
    for site in reversed(sites):
        cols = _tokens(site.cols.labels)
        stem = site.window is not None and not site.cols.reads & before and not bool(attended[cols].any())
        if not stem:
            kept.append(site)
            if not site.attends and bool(attended[_tokens(site.rows.labels)].any()):
                attended[cols] = True
    return kept[::-1]


def _spaces(born: list[Born], used: Tensor, made: Tensor) -> tuple[tuple[TokenSpace, ...], Tensor]:
    """The living spaces with unique names, and the new numbers of their tokens."""
    renumber = torch.full((max(len(used), 1),), -1, dtype=torch.int64)
    spaces: list[TokenSpace] = []
    names: set[str] = set()
    start = 0
    for space in born:
        if not bool(used[space.start : space.start + space.size].any()):
            continue
        if space.origin == "mixing" and not bool(made[space.start : space.start + space.size].any()):
            space = replace(space, origin="input")  # born of a stem
        name = _space_name(space, names)
        names.add(name)
        spaces.append(TokenSpace(name, space.size, start, space.grid, space.origin, space.source))
        renumber[space.start : space.start + space.size] = torch.arange(start, start + space.size)
        start += space.size
    return tuple(spaces), renumber


def _space_name(space: Born, taken: set[str]) -> str:
    made = module_path(space.node) or op_name(space.node).removeprefix("aten::")
    base = made if space.origin == "mixing" else space.source
    candidates = [base, f"{base}@{made}"]
    candidates += [f"{base}#{number}" for number in range(2, len(taken) + 3)]
    return next(name for name in candidates if name not in taken)


@dataclass
class _Namer:
    """Gives streams names, one for each set of tokens."""

    spaces: tuple[TokenSpace, ...]
    _known: dict[frozenset[int], Stream] = field(default_factory=dict)

    @property
    def streams(self) -> tuple[Stream, ...]:
        return tuple(self._known.values())

    def stream(self, tokens: Tensor) -> Stream:
        """The stream of these tokens, named by its spaces in order of appearance."""
        distinct = torch.unique(tokens)
        key = frozenset(distinct.tolist())
        if key not in self._known:
            self._known[key] = self._make(tokens, distinct)
        return self._known[key]

    def _make(self, tokens: Tensor, distinct: Tensor) -> Stream:
        firsts: list[tuple[int, TokenSpace, list[int]]] = []
        for space in self.spaces:
            own = distinct[(distinct >= space.start) & (distinct < space.start + space.size)]
            if len(own):
                inside = (tokens >= space.start) & (tokens < space.start + space.size)
                firsts.append((int(inside.nonzero()[0]), space, own.tolist()))
        firsts.sort(key=lambda entry: entry[0])
        parts = [
            space.name if len(own) == space.size else f"{space.name}[{_extent(own, space)}]"
            for _, space, own in firsts
        ]
        name = "+".join(parts)
        taken = {stream.name for stream in self._known.values()}
        candidates = [name, *(f"{name}#{number}" for number in range(2, len(taken) + 3))]
        return Stream(
            next(candidate for candidate in candidates if candidate not in taken),
            tuple(in_order(tokens)) if len(firsts) > 1 else tuple(firsts[0][2]),
            tuple(space.name for _, space, _ in firsts),
        )


def in_order(tokens: Tensor) -> list[int]:
    """Distinct tokens in the order in which they first appear."""
    return list(dict.fromkeys(tokens.tolist()))


def _extent(own: list[int], space: TokenSpace) -> str:
    first, last = own[0] - space.start, own[-1] - space.start
    if last - first + 1 == len(own):
        return str(first) if first == last else f"{first}:{last + 1}"
    return f"{len(own)} of {space.size}"


def _draft(site: Site, renumber: Tensor, names: _Namer) -> tuple[Site, Stream, Stream]:
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
            if (s.makes_tokens and s.form != "gathered") or s.pools
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


def heads_of(site: Site, batch: int, assume: bool = True) -> int:
    """How many rows of the map each query has, whether heads have an axis or are folded into another.

    Some queries may have more (a class token that stands in every frame): the fewest count.
    """
    ranks, queries = line_ranks(site, batch, assume)
    per_line = int(torch.Size(_lines_of(site)).numel()) // max(ranks.numel(), 1)
    known = queries[queries >= 0]
    return per_line * int(torch.unique(known, return_counts=True)[1].min()) if len(known) else per_line


def line_ranks(site: Site, batch: int, assume: bool = True) -> tuple[Tensor, Tensor]:
    """Which of its query's rows each line of the map is, and whose: a number for each query and sample.

    A line is the map along its column axes; both have the axes of the map, 1 along columns and along axes of
    heads. Heads may see different keys each (the best of a sorted list): they are told apart by lines, not by
    elements. -1 where a line is nobody's.
    """
    samples = samples_on_map(site, batch, assume)
    rows, samples = broadcast(*(_over_columns(t, site) for t in (codes_of(site.rows.labels), samples)))
    queries = torch.where(rows < 0, -1, rows * (batch + 1) + samples.clamp_min(-1) + 1)
    flat = queries.reshape(-1)
    order = torch.argsort(flat, stable=True)
    ordered = flat[order].contiguous()
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order)) - torch.searchsorted(ordered, ordered)
    return ranks.view(rows.shape), queries


def _lines_of(site: Site) -> list[int]:
    columns = site.column_axes
    return [1 if axis in columns else size for axis, size in enumerate(site.shape)]


def _over_columns(labels: Tensor, site: Site) -> Tensor:
    """Labels of lines: the largest along the columns, where padding has none."""
    columns = [axis for axis in site.column_axes if labels.shape[axis] > 1]
    return labels.amax(columns, keepdim=True) if columns else labels


def samples_on_map(site: Site, batch: int, assume: bool = True) -> Tensor:
    """The sample that each element of a site's map belongs to, by its rows' or columns' labels.

    -1 stands for unknown, ``APART`` for a place between two samples of one packed sequence.

    Where rows and columns are shared by all samples (learned queries that have met no input yet), the first
    axis that heads or samples can lie on and that divides by the batch is taken for the batch axis.
    """
    rows, cols = broadcast(*(compact(samples_of(slot.labels)) for slot in (site.rows, site.cols)))
    samples = torch.maximum(rows, cols)
    if batch == 1:
        return samples.clamp_min(0)
    if bool((samples >= 0).any()):
        return torch.where((rows != cols) & (rows >= 0) & (cols >= 0), APART, completed(samples))
    learned = max(site.rows.strength, site.cols.strength) < STRONG
    for axis, size in enumerate(site.shape if assume and learned else ()):
        if size % batch == 0 and axis not in site.rows.axes | site.cols.axes:
            line = torch.arange(size) // (size // batch)
            return line.view([-1 if a == axis else 1 for a in range(len(site.shape))])
    return samples


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
        fused=site.form == "fused",
        module=module,
        source=source_line(site.node),
        node=site.node.name,
        normaliser=site.normaliser,
        windows=windows,
        window=window,
    )


def _mixing(site: Site, index: int, kind: Kind | None, queries: Stream, keys: Stream) -> Mixing:
    module = module_path(site.node)
    first = {"sampled": site.operands, "gathered": site.path, "operator": site.path}.get(
        site.form, (site.node,)
    )
    op = op_name(first[0])
    return Mixing(
        index=index,
        name=module or site.node.name,
        queries=queries,
        keys=keys,
        op=op.removeprefix("aten::"),
        module=module,
        source=source_line(site.node),
        node=site.node.name,
        kind=kind,
    )
