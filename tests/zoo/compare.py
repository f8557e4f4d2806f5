"""Holds what fxplain found against what the zoo expects, with messages that show both."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fxplain.attention.records import Attention, Stream, TokenSpace
from zoo.spec import Case, Expected, Site

ANY = "*"


class Found:
    """A traced model with look-ups by the names that the zoo uses."""

    def __init__(self, traced: Any) -> None:
        self.traced = traced
        self.spaces: dict[str, TokenSpace] = {space.name: space for space in traced.spaces}

    def origins(self, name: str, seen: frozenset[str] = frozenset()) -> frozenset[str]:
        """Names and sources of a space and of all that it was made of by mixing."""
        space = self.spaces[name]
        found = {space.name, space.source}
        if space.origin == "mixing" and name not in seen:
            for step in self.traced.mixings:
                if name in step.queries.spaces:
                    for older in step.keys.spaces:
                        found |= self.origins(older, seen | {name})
        return frozenset(found)

    def is_named(self, name: str, wanted: str) -> bool:
        """True if the space goes by that name, or was mixed out of one that does."""
        if wanted == ANY:
            return True
        return any(wanted in re.split(r"[.\[\]]", origin) for origin in self.origins(name))

    def token_names(self, wanted: str) -> list[TokenSpace]:
        """Spaces of that very name, those born of it first."""
        spaces = [space for space in self.spaces.values() if self.is_named(space.name, wanted)]
        return sorted(spaces, key=lambda space: space.origin == "mixing")

    def names_of(self, stream: Stream) -> list[str]:
        """The space of each token of a stream."""
        ranges = [(s.start, s.start + s.size, s.name) for s in self.spaces.values()]
        return [next(name for low, high, name in ranges if low <= token < high) for token in stream.tokens]

    def matches(self, stream: Stream, wanted: tuple[str, ...], extra: bool = False) -> bool:
        """Every expected space is in the stream, and nothing else is (but parameters, with ``extra``)."""
        if not all(any(self.is_named(name, want) for name in stream.spaces) for want in wanted):
            return False
        others = [n for n in stream.spaces if not any(self.is_named(n, want) for want in wanted)]
        return not others or (extra and all(self.spaces[n].origin == "parameter" for n in others))

    def fits(self, attention: Attention, site: Site, marks: tuple[str, ...]) -> bool:
        extra = "extra keys" in marks
        return (
            attention.kind == site.kind
            and attention.heads == site.heads
            and re.search(site.module, attention.module) is not None
            and self.spans(attention.queries, site.queries, site.nq, marks)
            and self.spans(attention.keys, site.keys, site.nk, marks, extra)
        )

    def spans(
        self, stream: Stream, wanted: tuple[str, ...], size: int, marks: tuple[str, ...], extra: bool = False
    ) -> bool:
        """The stream has the expected spaces and size; ``constant`` ones may count a padding token, too."""
        constant = "constant token" in marks and len(wanted) > 1
        sizes = range(size, stream.size + 1) if extra else (size, size + constant)
        return stream.size in sizes and self.matches(stream, wanted, extra or constant)


def describe(attention: Attention) -> str:
    return (
        f"{attention.kind} {attention.queries.spaces} <- {attention.keys.spaces} heads={attention.heads} "
        f"{attention.queries.size}x{attention.keys.size} in {attention.module}"
    )


def describe_site(site: Site) -> str:
    maybe = " (may be missing: dead code)" if site.optional else ""
    return (
        f"{site.kind} {site.queries} <- {site.keys} heads={site.heads} {site.nq}x{site.nk} "
        f"in {site.module}{maybe}"
    )


def aligned(traced: Any, expected: Expected) -> list[Attention | None]:
    """The attention found for each expected site, None for dead code that was dropped; or a failed test."""
    found, attentions = Found(traced), list(traced.attentions)
    result: list[Attention | None] = []
    for site in expected.sites:
        if attentions and found.fits(attentions[0], site, expected.marks):
            result.append(attentions.pop(0))
        elif site.optional:
            result.append(None)
        else:
            break
    if attentions or len(result) < len(expected.sites):
        lines = ["expected:", *map(describe_site, expected.sites)]
        lines += ["found:", *map(describe, traced.attentions)]
        others = [e for e in traced.census if e.role != "attention"]
        lines += ["census:", *(f"{e.op} {e.role}: {e.reason} in {e.module}" for e in others)]
        raise AssertionError("\n  ".join(lines))
    return result


def check_records(traced: Any) -> None:
    """What every record must say, whatever the model."""
    for index, attention in enumerate(traced.attentions):
        assert attention.index == index
        assert re.fullmatch(r".+\.py:\d+", attention.source), f"no source line: {attention.source!r}"
        assert len(set(attention.queries.tokens)) == attention.queries.size
        assert len(set(attention.keys.tokens)) == attention.keys.size
    assert len({a.name for a in traced.attentions}) == len(traced.attentions)
    total = sum(space.size for space in traced.spaces)
    assert sorted(t for s in traced.spaces for t in range(s.start, s.start + s.size)) == list(range(total))


def check_census(traced: Any, expected: Expected) -> None:
    """Every attention with a softmax is listed, and each expected other role as often as expected."""
    roles = [entry.role for entry in traced.census]
    for wanted, count in expected.not_attention.items():
        pattern = ".*" if wanted == ANY else wanted
        matching = [r for r in roles if r != "attention" and re.search(pattern, r)]
        text = "\n  ".join(f"{e.op} {e.role}: {e.reason}" for e in traced.census)
        assert len(matching) >= count, f"expected {count} of role {wanted!r}, found:\n  {text}"
    assert all(entry.reason for entry in traced.census)


def check_readout(result: Any, traced: Any, expected: Expected) -> None:
    """The rows read are the expected tokens, each sample its own; pooled tokens stand for what they pool."""
    found = Found(traced)
    for sample, wanted in enumerate(expected.readout):
        read = unpooled(traced, (token for token, weight in result.readout[sample] if weight))
        whole: set[int] = set()
        for name, positions in wanted.items():
            tokens = [
                t for space in found.token_names(name) for t in range(space.start, space.start + space.size)
            ]
            if positions is None:
                assert read & set(tokens), f"sample {sample}: nothing of {name} is read: {read}"
                whole |= set(tokens)
            else:
                exact = {found.token_names(name)[0].start + p for p in positions}
                assert exact <= read, f"sample {sample}: expected {name}{positions}, read {read}"
                whole |= exact
        assert read <= whole, f"sample {sample}: also read {read - whole}, expected {wanted}"


def unpooled(traced: Any, tokens: Iterable[int]) -> set[int]:
    """Tokens with each token of a pooled (one-token) space replaced by those it was pooled from."""
    pooled = {step.queries.tokens[0]: step.keys.tokens for step in traced.mixings if step.queries.size == 1}
    result: set[int] = set()
    for token in tokens:
        result |= unpooled(traced, pooled[token]) if token in pooled else {token}
    return result


def check_padding(result: Any, traced: Any, expected: Expected) -> None:
    """Padded tokens have no relevance at all."""
    found = Found(traced)
    for name, samples in expected.padded.items():
        space = found.token_names(name)[0]
        values = result.relevance[space.name]
        for sample, positions in enumerate(samples):
            if positions:
                left = values[sample, list(positions)].abs().max()
                assert left == 0, f"sample {sample}: padded {name}{positions} has relevance {left}"


def assert_same(one: Any, other: Any, tolerance: float, what: str) -> None:
    """Two results agree in score and in the relevance of every token, relative to its largest value."""
    torch.testing.assert_close(one.score, other.score, rtol=tolerance, atol=tolerance, msg=f"{what}: scores")
    assert set(one.relevance) == set(other.relevance)
    for name in one.relevance:
        assert_close(one.relevance[name], other.relevance[name], tolerance, f"{what}: {name}")


def check_maps(traced: Any, inputs: Any, case: Case, tolerance: float) -> None:
    """The library's maps are those that the model reports: in number, head by head, in value."""
    model, _, expected = case
    attentions, found = aligned(traced, expected), Found(traced)
    assert expected.maps is not None
    own, maps = expected.maps(model, inputs), traced.maps(inputs)
    assert len(maps) == len(traced.attentions)
    for attention, weights in zip(traced.attentions, maps, strict=True):
        assert weights.shape[1:] == (attention.heads, attention.queries.size, attention.keys.size)
    for index, wanted in own:
        attention = attentions[index]
        if attention is None:
            continue  # dead code that the capture dropped
        names = found.names_of(attention.keys)
        site = expected.sites[index]
        columns = [c for c, name in enumerate(names) if any(found.is_named(name, k) for k in site.keys)]
        weights = maps[attention.index][..., columns]
        if "random" in expected.marks:  # the patches come in another order; text and cls do not
            weights, wanted = weights[..., :8, :8], wanted[..., :8, :8]
        assert_close(weights, wanted.to(weights.dtype), tolerance, f"map {index} of {attention.module}")


def assert_close(found: Tensor, wanted: Tensor, tolerance: float, what: str) -> None:
    """Largest difference relative to the largest value."""
    assert found.shape == wanted.shape, f"{what}: {tuple(found.shape)} against {tuple(wanted.shape)}"
    scale = wanted.abs().max().clamp(min=1e-12)
    difference = float((found - wanted).abs().max() / scale)
    assert difference <= tolerance, f"{what}: differs by {difference:.2e} of its largest value"
