"""Where everything of the attention graph's drawing lies, in pixels: so the page needs no script.

Lanes are columns, rows follow the dataflow downwards. A stream's line runs down the middle of its lane
through the boxes of the attentions that update it. What an attention reads from another lane comes as a
wire through the gap above its row, on a track of its own: wires never cross a box.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fxplain.render.colours import kind_name
from fxplain.render.graph_rows import Rows, Site

BOX, HEIGHT, BESIDE, BETWEEN = 272, 42, 12, 44
"""Pixels: width and height of a box, between boxes side by side, between lanes."""
GUTTER, GAP, TRACK, CHIP = 44, 18, 10, 34
"""Pixels: left margin with the row numbers, gap between rows, each wire's track, a stream's name."""
LETTERS = 38
"""Letters that fit into a box."""


@dataclass(frozen=True)
class Wire:
    """What a site reads from another lane: a path from that lane's line into the box."""

    path: str
    dot: tuple[int, int]
    style: str
    tip: str


@dataclass(frozen=True)
class Box:
    """One attention or mixing step."""

    x: int
    y: int
    kind: str
    title: str
    detail: str
    tip: str
    wires: tuple[Wire, ...]
    join: str
    """The path from a box beside the lane's line back to it; '' for a box on the line."""


@dataclass(frozen=True)
class Lane:
    """A column, headed by the first stream in it."""

    x: int
    width: int
    title: str
    detail: str
    tip: str
    y1: int
    y2: int


@dataclass(frozen=True)
class Chip:
    """The name of a stream that begins further down."""

    x: int
    y: int
    title: str
    detail: str
    tip: str


@dataclass(frozen=True)
class Layout:
    """The whole drawing."""

    width: int
    height: int
    lanes: tuple[Lane, ...]
    chips: tuple[Chip, ...]
    boxes: tuple[Box, ...]
    rows: tuple[tuple[int, str], ...]
    """(middle, number) of each row, for the margin."""


def lay_out(plan: Rows) -> Layout:
    """Place all boxes, lanes and wires of a plan."""
    columns = _columns(plan)
    prefix = _common_prefix(str(site.facts.get("module", "")) for row in plan.rows for site in row)
    boxes: list[Box] = []
    chips: list[Chip] = []
    numbers: list[tuple[int, str]] = []
    begun, born = _first_rows(plan), _mixed(plan)
    ends: dict[int, list[int]] = {}
    y = 0
    for r, row in enumerate(plan.rows):
        fresh = [name for name, first in begun.items() if first == r > 0 and name not in born]
        for name in fresh:
            chips.append(_chip(plan, name, _middle(columns, plan.lanes[name]), y + GAP))
            ends.setdefault(plan.lanes[name], []).append(y + GAP)
        wired = [(site, source, key) for site in row for source, key in _sources(plan, site)]
        top = y + GAP + (CHIP if fresh else 0) + TRACK * len(wired) + (6 if wired else 0)
        tracks = {id(entry): top - 12 - TRACK * i for i, entry in enumerate(reversed(wired))}
        for site, x in _places(plan, row, columns):
            wires = _wires(plan, columns, site, x, top, [(e, tracks[id(e)]) for e in wired if e[0] is site])
            join = _join(x, top + HEIGHT, _middle(columns, plan.lanes[site.queries]))
            title, detail = _label(plan, site, prefix)
            boxes.append(Box(x, top, site.kind, title, detail, _tip(site), wires, join))
            ends.setdefault(plan.lanes[site.queries], []).extend((top, top + HEIGHT))
        for entry in wired:
            ends.setdefault(plan.lanes[entry[1]], []).append(tracks[id(entry)])
        numbers.append((top + HEIGHT // 2, str(r + 1)))
        y = top + HEIGHT
    width = sum(width for _, width in columns[-1:]) + columns[-1][0] + BETWEEN if columns else GUTTER
    lanes = _lanes(plan, columns, begun, ends)
    return Layout(width, y + 30, lanes, tuple(chips), tuple(boxes), tuple(numbers))


def _columns(plan: Rows) -> list[tuple[int, int]]:
    """(left, width) of each lane; one is as wide as the most boxes that stand side by side in it."""
    most = [1] * plan.lane_count
    for row in plan.rows:
        for lane in range(plan.lane_count):
            most[lane] = max(most[lane], sum(plan.lanes[site.queries] == lane for site in row))
    columns, x = [], GUTTER
    for count in most:
        width = count * BOX + (count - 1) * BESIDE
        columns.append((x, width))
        x += width + BETWEEN
    return columns


def _middle(columns: list[tuple[int, int]], lane: int) -> int:
    return columns[lane][0] + columns[lane][1] // 2


def _places(plan: Rows, row: tuple[Site, ...], columns: list[tuple[int, int]]) -> Iterable[tuple[Site, int]]:
    """Each site of a row and the left edge of its box."""
    for lane in range(plan.lane_count):
        here = [site for site in row if plan.lanes[site.queries] == lane]
        width = len(here) * BOX + (len(here) - 1) * BESIDE
        left = _middle(columns, lane) - width // 2
        for i, site in enumerate(here):
            yield site, left + i * (BOX + BESIDE)


def _sources(plan: Rows, site: Site) -> list[tuple[str, bool]]:
    """Streams of other lanes that a site reads, and whether as its keys."""
    keys = [(site.keys, True)] if plan.lanes[site.keys] != plan.lanes[site.queries] else []
    return keys + [(name, False) for name in plan.feeds.get(site.name, ())]


def _wires(
    plan: Rows,
    columns: list[tuple[int, int]],
    site: Site,
    x: int,
    top: int,
    entries: list[tuple[tuple[Site, str, bool], int]],
) -> tuple[Wire, ...]:
    wires = []
    for i, ((_, source, key), track) in enumerate(entries):
        start = _middle(columns, plan.lanes[source])
        side = -1 if start < x + BOX // 2 else 1
        end = x + BOX // 2 + side * (54 + 16 * i)
        turn = -side * min(6, abs(end - start) // 2)
        path = f"M{start} {track} H{end - turn} Q{end} {track} {end} {track + 6} V{top - 5}"
        tip = f"{source} gives the keys and values" if key else f"{source} flows into {site.queries}"
        wires.append(Wire(path, (start, track), "keys" if key else "feeds", tip))
    return tuple(wires)


def _join(x: int, bottom: int, middle: int) -> str:
    inside = x < middle < x + BOX
    return "" if inside else f"M{x + BOX // 2} {bottom}v7H{middle}"


def _label(plan: Rows, site: Site, prefix: str) -> tuple[str, str]:
    """The two lines in a box."""
    facts = site.facts
    if site.kind == "mixing":
        steps = f"{len(site.members)} mixing steps" if site.members else str(facts.get("op") or "mixing")
        size = _size(plan.streams.get(site.queries, {}))
        return shorten(steps), f"→ {shorten(site.queries, LETTERS - 4 - len(size))} · {size}"
    module = str(facts.get("module", ""))
    title = module.removeprefix(prefix) or module or str(facts.get("name", site.name))
    heads = facts.get("heads", "?")
    size = str(facts.get("size", "")).replace(" x ", "\N{MULTIPLICATION SIGN}")
    detail = f"#{facts.get('index', '?')} · {heads} {'head' if heads == 1 else 'heads'} · {size}"
    return shorten(title), shorten(detail)


def _tip(site: Site) -> str:
    """All that is known of a site, one fact a line."""
    lines = [f"{kind_name(site.kind)}: {site.queries} from {site.keys}"]
    for member in site.members:
        lines.append(f"{member.get('op', 'mixing')}: {member.get('module', '')} ({member.get('size', '')})")
    if not site.members:
        names = ("index", "name", "module", "source", "op", "heads", "size", "depth", "fused", "normaliser")
        lines += [f"{name}: {site.facts[name]}" for name in names if site.facts.get(name) not in (None, "")]
    return "\n".join(lines)


def _first_rows(plan: Rows) -> dict[str, int]:
    first: dict[str, int] = {}
    for r, row in enumerate(plan.rows):
        for site in row:
            for name in (site.queries, site.keys):
                first.setdefault(name, r)
    return first


def _mixed(plan: Rows) -> set[str]:
    """Streams that a mixing step makes: its box names them."""
    return {site.queries for row in plan.rows for site in row if site.kind == "mixing"}


def _chip(plan: Rows, name: str, middle: int, y: int) -> Chip:
    return Chip(middle - BOX // 2, y, shorten(name), _size(plan.streams.get(name, {})), _about(plan, name))


def _size(stream: Mapping[str, Any]) -> str:
    size = stream.get("size")
    return "" if size is None else f"{size} {'token' if size == 1 else 'tokens'}"


def _about(plan: Rows, name: str) -> str:
    stream = plan.streams.get(name, {})
    spaces = str(stream.get("spaces", ""))
    return f"stream {name}\n{_size(stream)}" + (f"\ntoken spaces: {spaces}" if spaces else "")


def _lanes(
    plan: Rows, columns: list[tuple[int, int]], begun: Mapping[str, int], ends: Mapping[int, list[int]]
) -> tuple[Lane, ...]:
    lanes = []
    for lane, (x, width) in enumerate(columns):
        names = [name for name, other in plan.lanes.items() if other == lane]
        head = min(names, key=lambda name: begun[name])
        points = ends.get(lane, [0])
        # a stream that is there from the start hangs from the head of its lane
        start = 0 if begun[head] == 0 else min(points)
        about = "\n\nthen\n\n".join(_about(plan, name) for name in names)
        stream = plan.streams.get(head, {})
        lanes.append(Lane(x, width, shorten(head, 28), _size(stream), about, start, max(points) + 14))
    return tuple(lanes)


def _common_prefix(modules: Iterable[str]) -> str:
    """The path that all modules begin with, up to a dot; naming it in every box would only hide the rest."""
    names = sorted(name for name in modules if name)
    if not names or names[0] == names[-1]:
        return ""
    # between the first and the last in order lie all others
    first, last = names[0].split("."), names[-1].split(".")
    alike = [a == b for a, b in zip(first, last, strict=False)]
    common = first[: alike.index(False)] if False in alike else []
    if common and first[len(common)].isdigit():
        common = common[:-1]  # "layer.0" says more than "0"
    return ".".join(common) + "." if common else ""


def shorten(text: str, most: int = LETTERS) -> str:
    """Keep the end of what is too long: there the names differ."""
    return text if len(text) <= most else "…" + text[-(most - 1) :]
