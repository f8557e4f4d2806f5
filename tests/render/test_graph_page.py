"""The attention graph as page and files: everything drawn, nothing overlaps, all forms read back."""

from __future__ import annotations

import io
import itertools
import json
import re

import networkx as nx
import pytest
from render.test_pages import Page, assert_inert
from render_fixtures import (
    HOSTILE,
    GraphBuilder,
    deep_graph,
    three_stream_graph,
    zoo_graph,
)

from fxplain.errors import OutputError
from fxplain.render.graph_files import FORMS, graph_dot, graph_graphml, graph_json, graph_text
from fxplain.render.graph_layout import BOX, HEIGHT, Layout, lay_out
from fxplain.render.graph_page import graph_html
from fxplain.render.graph_rows import plan

GRAPHS = {
    "encoder": lambda: zoo_graph("bert-sdpa"),
    "deep": deep_graph,
    "two streams": lambda: zoo_graph("lxmert-eager"),
    "encoder-decoder": lambda: zoo_graph("detr-eager"),
    "hierarchical": lambda: zoo_graph("swin-eager"),
    "three streams": three_stream_graph,
    "joined": lambda: zoo_graph("llava-sdpa"),
    "empty": nx.MultiDiGraph,
}


def layout_of(name: str) -> Layout:
    return lay_out(plan(GRAPHS[name]()))


@pytest.mark.parametrize("name", GRAPHS)
def test_boxes_do_not_overlap_and_lie_inside(name: str) -> None:
    layout = layout_of(name)
    for a, b in itertools.combinations(layout.boxes, 2):
        assert abs(a.x - b.x) >= BOX or abs(a.y - b.y) >= HEIGHT + 8
    for box in layout.boxes:
        assert box.x >= 0
        assert box.x + BOX <= layout.width
        assert box.y + HEIGHT <= layout.height


@pytest.mark.parametrize("name", GRAPHS)
def test_wires_run_between_the_rows(name: str) -> None:
    layout = layout_of(name)
    tops = {box.y for box in layout.boxes}
    for box in layout.boxes:
        for wire in box.wires:
            assert not any(top <= wire.dot[1] <= top + HEIGHT for top in tops)
            assert wire.dot[1] < box.y
            end = int(re.findall(r" Q(\d+) ", wire.path)[0])
            assert box.x < end < box.x + BOX
            assert not any(chip.y <= wire.dot[1] <= chip.y + 26 for chip in layout.chips)


@pytest.mark.parametrize("name", GRAPHS)
def test_tracks_of_a_row_are_distinct(name: str) -> None:
    tracks = [wire.dot[1] for box in layout_of(name).boxes for wire in box.wires]
    assert len(tracks) == len(set(tracks))


@pytest.mark.parametrize("name", GRAPHS)
def test_what_a_site_reads_stands_above_it(name: str) -> None:
    rows = plan(GRAPHS[name]()).rows
    above: set[str] = set()
    for row in rows:
        assert all(site.before <= above for site in row)
        above |= {site.name for site in row}


def test_parallel_co_attentions_share_a_row() -> None:
    rows = plan(GRAPHS["two streams"]()).rows
    pairs = [tuple(site.kind for site in row) for row in rows if any(site.kind == "co" for site in row)]
    assert pairs == [("co", "co"), ("co",)], "nothing reads the picture's side of the last layer"


def test_lanes() -> None:
    assert plan(GRAPHS["two streams"]()).lanes == {"input_ids": 0, "visual_feats": 1}
    assert plan(GRAPHS["encoder-decoder"]()).lane_count == 2
    # the stages of a hierarchical model follow one another in one lane
    assert set(plan(GRAPHS["hierarchical"]()).lanes.values()) == {0}


def test_a_stream_still_in_use_keeps_its_lane() -> None:
    b = GraphBuilder()
    b.stream("x", 16)
    b.stream("pooled", 4)
    b.add("mixing", "pooled", "x", "pool", op="mean")
    b.add("self", "x", "x", "late")
    b.add("encoder_decoder", "x", "pooled", "read")
    assert plan(b.graph).lanes == {"x": 0, "pooled": 1}


def test_a_stack_of_convolutions_is_one_box_that_names_them_all() -> None:
    b = GraphBuilder()
    previous = b.stream("pixel_values", 3136)
    b.add("self", previous, previous, "model.first")
    for i in range(6):
        new = b.stream(f"conv{i}", 3136 // 4 ** (1 + i // 2), f"conv{i}")
        b.add("mixing", new, previous, f"model.backbone.layer{i}.conv2", op="convolution")
        previous = new
    b.add("self", previous, previous, "model.last")
    (mixing,) = [box for box in lay_out(plan(b.graph)).boxes if box.kind == "mixing"]
    assert mixing.title == "6 mixing steps"
    assert mixing.detail == "→ conv5 · 49 tokens"
    assert mixing.tip.count("model.backbone.layer") == 6


def test_flow_into_another_stream_is_drawn_once() -> None:
    wires = [wire for box in layout_of("joined").boxes for wire in box.wires]
    assert [wire.style for wire in wires] == ["feeds"]


def test_depth_is_computed_where_the_graph_has_none() -> None:
    graph = GRAPHS["two streams"]()
    expected = [[site.name for site in row] for row in plan(graph).rows]
    for _, data in graph.nodes(data=True):
        data.pop("depth", None)
    assert [[site.name for site in row] for row in plan(graph).rows] == expected


def test_the_drawing_is_the_same_every_time() -> None:
    assert graph_html(three_stream_graph()) == graph_html(three_stream_graph())


@pytest.mark.parametrize("name", GRAPHS)
def test_the_page_shows_every_site(name: str) -> None:
    graph = GRAPHS[name]()
    page = Page(graph_html(graph, title=name))
    assert_inert(page)
    for _, data in graph.nodes(data=True):
        for word in (data["module"], data["source"]) if data["type"] != "stream" else ():
            assert word in page.text


def test_the_module_prefix_of_all_is_left_out() -> None:
    titles = [box.title for box in layout_of("encoder").boxes]
    assert titles[0] == "layer.0.attention.self"
    assert "module: bert.encoder.layer.0.attention.self" in layout_of("encoder").boxes[0].tip


def hostile_graph() -> nx.MultiDiGraph:
    b = GraphBuilder()
    name = b.stream(HOSTILE + '"];\\\n\x00', 3)
    b.add("self", name, name, '"/><script>alert(1)</script>\\')
    b.graph.graph["outputs"] = [HOSTILE, None]
    return b.graph


def test_hostile_names_on_the_page() -> None:
    text = graph_html(hostile_graph(), title=HOSTILE)
    assert_inert(Page(text))
    assert "<script" not in text


@pytest.mark.parametrize("build", [*GRAPHS.values(), hostile_graph])
def test_json_reads_back(build) -> None:  # type: ignore[no-untyped-def]
    graph = build()
    back = nx.node_link_graph(json.loads(graph_json(graph)), edges="edges")
    assert dict(back.nodes(data=True)) == dict(graph.nodes(data=True))
    assert list(back.edges(keys=True, data=True)) == list(graph.edges(keys=True, data=True))  # type: ignore[call-overload]
    assert back.graph == graph.graph


@pytest.mark.parametrize("build", [*GRAPHS.values(), hostile_graph])
def test_graphml_reads_back(build) -> None:  # type: ignore[no-untyped-def]
    graph = build()
    back = nx.read_graphml(io.BytesIO(graph_graphml(graph).encode()), force_multigraph=True)
    assert len(back) == len(graph)
    assert back.number_of_edges() == graph.number_of_edges()
    heads = [data["heads"] for _, data in graph.nodes(data=True) if "heads" in data]
    assert [data["heads"] for _, data in back.nodes(data=True) if "heads" in data] == heads


def test_dot_holds_every_node_and_edge_and_quotes_them() -> None:
    graph = GRAPHS["two streams"]()
    text = graph_dot(graph)
    assert text.count(" -> ") == graph.number_of_edges()
    assert text.count("shape=box") == len(graph)
    strings = re.findall(r'"(?:[^"\\]|\\.)*"', graph_dot(hostile_graph()))
    rest = re.sub(r'"(?:[^"\\]|\\.)*"', "S", graph_dot(hostile_graph()))
    assert any("<script>" in text for text in strings)
    assert '"' not in rest
    assert "script" not in rest


def test_unknown_form() -> None:
    with pytest.raises(OutputError, match="json, dot, graphml, html"):
        graph_text(GRAPHS["encoder"](), "svg")
    assert list(FORMS) == ["json", "dot", "graphml", "html"]
