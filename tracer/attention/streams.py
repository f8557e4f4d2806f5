"""Names: the token spaces that are alive, and the streams of tokens that attentions range over."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fxplain.attention.records import Stream, TokenSpace
from fxplain.labels.call import op_name
from fxplain.labels.flows import Born
from fxplain.where import module_path


def living_spaces(born: list[Born], used: Tensor, made: Tensor) -> tuple[tuple[TokenSpace, ...], Tensor]:
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
    candidates = [f"{base}@{made}"] if space.filled else [base, f"{base} cut by {made}"]
    candidates += [f"{base}#{number}" for number in range(2, len(taken) + 3)]
    return next(name for name in candidates if name not in taken)


@dataclass
class StreamNames:
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
