"""Draws ``docs/images/rooms.svg``: the rooms of ``tracer/`` by floor, and which room imports from which.

    python docs/draw_rooms.py

The floors are those of the layered contract in ``pyproject.toml``; the lines are read off the imports, those
inside functions and for types alone included. A line that others imply (a imports from b, b from c, a from c)
is left out. ``tests/house/test_layout.py`` fails if the picture is not that of the code.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "rooms.svg"
ROW, TOP, LEFT, WIDTH, NAMES = 44, 14, 170, 1000, 150
MOST = 92
"""Letters of a line."""
BESIDE = ("rules", "adapters")
"""Rooms that lie beside ``tracer/`` in the repository."""


def folder(room: str) -> Path:
    """Where a room's files are: a folder, or one file."""
    inside = ROOT / room if room in BESIDE else ROOT / "tracer" / room
    return inside if inside.is_dir() else inside.with_suffix(".py")


def floors() -> list[list[str]]:
    """The rooms, from the top floor to the ground."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (c["layers"] for c in contracts if c.get("exhaustive"))
    return [layer.replace(":", "|").replace(" ", "").split("|") for layer in layers]


def files(room: str) -> list[Path]:
    """The Python files of a room."""
    place = folder(room)
    return sorted(place.rglob("*.py")) if place.is_dir() else [place]


def purpose(room: str) -> str:
    """The first sentence of what a room says of itself; the first part of a long one."""
    first = files(room)[0] if folder(room).is_file() else folder(room) / "__init__.py"
    text = ast.get_docstring(ast.parse(first.read_text())) or ""
    plain = re.sub(r":\w+:`(?:[\w.]*\.)?(\w+)`|``", r"\1", " ".join(text.split("\n\n")[0].split()))
    words = plain.split(". ")[0].rstrip(".")
    while len(words) > MOST and re.search(r"[,:;] ", words):
        words = re.split(r"[,:;] (?!.*[,:;] )", words)[0]
    return words


def imported(file: Path) -> Iterator[str]:
    """The rooms that a file imports from."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "fxplain":
            path = node.module.split(".")[1:]
            yield from path[:1] or (alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("fxplain."))


def imports(rooms: Sequence[str]) -> nx.DiGraph[str]:
    """The rooms and the imports between them, without those that others imply."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(rooms)
    for room in rooms:
        found = {other for file in files(room) for other in imported(file)}
        graph.add_edges_from((room, other) for other in found if other in graph and other != room)
    mutual = {(a, b) for a, b in graph.edges if graph.has_edge(b, a)}  # rooms that share a floor
    graph.remove_edges_from(mutual)
    reduced: nx.DiGraph[str] = nx.transitive_reduction(graph)
    return reduced


def drawn() -> str:
    """The picture as SVG."""
    shown = [[room for room in floor if room != "__main__"] for floor in floors()]
    rooms = [room for floor in shown for room in sorted(floor)]
    level = {room: TOP + ROW * place for place, room in enumerate(rooms)}
    height = 2 * TOP + ROW * len(rooms)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" font-family="system-ui, sans-serif" font-size="14">',
        "<title>The rooms of fxplain, by floor; lines are imports, all of them downward</title>",
        "<style>text{fill:#1f2328}.why{fill:#59636e}.room{fill:#eef3fb;stroke:#8aa4c8}.line{fill:none;"
        "stroke:#8aa4c8}.floor{stroke:#d9dde3}@media(prefers-color-scheme:dark){text{fill:#e6edf3}.why{"
        "fill:#9aa6b2}.room{fill:#1d2836;stroke:#4e6a8f}.line{stroke:#5c7ba3}.floor{stroke:#30363d}}</style>",
    ]
    for floor in shown[1:]:
        if floor:
            y = min(level[room] for room in floor) - (ROW - 32) / 2
            parts.append(f'<line class="floor" x1="{LEFT}" x2="{WIDTH - 10}" y1="{y:g}" y2="{y:g}"/>')
    for above, below in sorted(imports(rooms).edges, key=lambda edge: (level[edge[0]], level[edge[1]])):
        start, end = level[above] + 20, level[below] + 12
        out = LEFT - min(160, 6 + (end - start) * 0.28)
        parts.append(
            f'<path class="line" d="M{LEFT} {start}C{out:g} {start} {out:g} {end} {LEFT - 6} {end}"/>'
            f'<path class="line" d="M{LEFT - 6} {end - 4}L{LEFT} {end}L{LEFT - 6} {end + 4}"/>'
        )
    for room in rooms:
        y, path = level[room], f"{room}/" if folder(room).is_dir() else f"{room}.py"
        parts += [
            f'<rect class="room" x="{LEFT}" y="{y}" width="{NAMES}" height="32" rx="5"/>',
            f'<text x="{LEFT + 10}" y="{y + 21}">{path}</text>',
            f'<text class="why" x="{LEFT + NAMES + 12}" y="{y + 21}">{escape(purpose(room))}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(drawn())
    print(f"wrote {PICTURE.relative_to(ROOT)}")
