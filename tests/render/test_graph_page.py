"""The attention graph as page and files: what is folded, what is drawn, and that all forms read back."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
from render.test_pages import Page
from render_fixtures import HOSTILE, GraphBuilder, deep_graph, three_stream_graph, zoo_graph
from zoo import built, traced

import fxplain
from fxplain.errors import OutputError
from fxplain.render.graph.drawing import edges_of
from fxplain.render.graph.files import FORMS, graph_dot, graph_graphml, graph_json, graph_text
from fxplain.render.graph.packed import packed, side_for, unpacked
from fxplain.render.graph.page import LIBRARIES, graph_html
from fxplain.render.graph.repeats import Chain, Repeat, folded, sites_of

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


def convolutions() -> nx.MultiDiGraph:
    b = GraphBuilder()
    previous = b.stream("pixel_values", 3136)
    b.add("self", previous, previous, "model.first")
    for i in range(6):
        new = b.stream(f"conv{i}", 3136 // 4 ** (1 + i // 2), f"conv{i}")
        b.add("mixing", new, previous, f"model.backbone.layer{i}.conv2", op="convolution")
        previous = new
    b.add("self", previous, previous, "model.last")
    return b.graph


def data_of(text: str) -> dict[str, Any]:
    """What the page's script draws."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def flat(item: str | Chain | Repeat) -> list[str]:
    if isinstance(item, Repeat):
        return [name for copy in item.copies for step in copy for name in flat(step)]
    return list(item.members) if isinstance(item, Chain) else [item]


@pytest.mark.parametrize("name", GRAPHS)
def test_folding_keeps_every_step_in_order(name: str) -> None:
    graph = GRAPHS[name]()
    assert [step for item in folded(graph) for step in flat(item)] == list(sites_of(graph))


def test_equal_layers_are_one_block() -> None:
    (block,) = folded(deep_graph())
    assert isinstance(block, Repeat)
    assert len(block.copies) == 24
    decoder = folded(GRAPHS["encoder-decoder"]())[-1]
    assert isinstance(decoder, Repeat)
    kinds = [sites_of(GRAPHS["encoder-decoder"]())[str(name)]["kind"] for name in decoder.copies[0]]
    assert kinds == ["self", "encoder_decoder"]


def test_layers_that_differ_are_not_folded() -> None:
    b = GraphBuilder()
    text, image = b.stream("text", 4), b.stream("image", 9)
    for i in range(3):
        b.add("self", text, text, f"layer.{i}.attn")
    b.add("co", text, image, "layer.3.attn")
    assert [len(flat(item)) for item in folded(b.graph)] == [3, 1]


def test_a_stack_of_convolutions_is_one_box() -> None:
    chains = [item for item in folded(convolutions()) if isinstance(item, Chain)]
    assert [len(chain.members) for chain in chains] == [6]


@pytest.mark.parametrize("name", GRAPHS)
def test_what_a_step_reads_is_drawn(name: str) -> None:
    graph = GRAPHS[name]()
    sites, edges = sites_of(graph), edges_of(graph)
    order = list(sites)
    for source, target, _ in edges:
        assert source.startswith("stream:") or order.index(source) < order.index(target)
    drawn = nx.DiGraph((source, target) for source, target, _ in edges)
    for source, target, data in graph.edges(data=True):
        if data["role"] == "flow":
            assert nx.has_path(drawn, source, target), "flow that the drawing does not show"
    for site, facts in sites.items():
        if facts.get("kind") and facts["keys"] != facts["queries"]:
            assert [role for _, target, role in edges if target == site].count("key") == 1


def test_parallel_co_attentions_read_the_old_state() -> None:
    graph = GRAPHS["two streams"]()
    co = [name for name, data in sites_of(graph).items() if data["kind"] == "co"]
    keys = {target: source for source, target, role in edges_of(graph) if role == "key"}
    assert keys[co[0]] != co[1]
    assert keys[co[1]] != co[0]


def test_the_page_is_the_same_every_time() -> None:
    assert graph_html(three_stream_graph()) == graph_html(three_stream_graph())


def assert_only_own_scripts(text: str) -> None:
    """Nothing is loaded, and the policy lets nothing run but the scripts of the page."""
    page = Page(text)
    assert not {"iframe", "link", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert str(attributes.get("src", "data:image/png")).startswith("data:image/png")
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv")]
    assert policy is not None
    assert "unsafe-eval" not in policy
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert policy.endswith("script-src " + " ".join(f"'sha256-{digest}'" for digest in digests))
    assert len(page.all("script")) == len(scripts) + 1


@pytest.mark.parametrize("name", GRAPHS)
def test_the_page_shows_every_site(name: str) -> None:
    graph = GRAPHS[name]()
    text = graph_html(graph, title=name)
    assert_only_own_scripts(text)
    page = Page(text)
    for _, data in graph.nodes(data=True):
        for word in (data["module"], data["source"]) if data["type"] != "stream" else ():
            assert word in page.text


def test_licences_are_on_the_page_and_name_every_file() -> None:
    text = Page(graph_html(nx.MultiDiGraph())).text
    assert "Chris Pettitt" in text
    assert "Mike Bostock" in text
    folder = Path(fxplain.__file__).parent / "render" / "bundled"
    assert {path.name for path in folder.iterdir()} == {
        "LICENSES.txt", *(f"{name}.min.js" for name in LIBRARIES)
    }  # fmt: skip
    assert all(f"{name}.min.js:" in text for name in LIBRARIES)


def test_the_census_stands_on_the_page() -> None:
    model = traced("swin-eager")
    text = Page(model.page(title="swin").html).text
    for entry in model.census:
        assert entry.reason in text


def test_the_page_of_one_input_has_maps_and_the_way_of_its_relevance() -> None:
    _, inputs, _ = built("lxmert-eager")
    page = traced("lxmert-eager").page(inputs)
    assert page.look is not None
    data = data_of(page.html)
    maps = traced("lxmert-eager").maps(inputs)
    for number, weights in enumerate(maps):
        own = page.look.maps[f"attention:{number}"]
        assert (own.heads, own.rows, own.columns) == weights.shape[1:]
        largest = torch.tensor(own.largest)[:, None, None]
        again = torch.from_numpy(unpacked(own).copy()) / 255 * largest
        assert torch.allclose(again, weights[0], atol=float(largest.max()) / 400)
        assert own.weighed
    assert set(data["look"]["passed"]) == {f"attention:{i}" for i in range(len(maps))}
    assert len(data["look"]["tokens"]) == sum(space.size for space in traced("lxmert-eager").spaces)


def test_a_page_without_an_explanation_says_so() -> None:
    model = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(1, 5, 8)
    page = fxplain.trace(model, x).page(x, method="gradient_x_input")
    assert page.look is not None
    assert page.look.result is None
    assert page.look.notes[0].startswith("Not explained: the method")
    assert page.look.maps["attention:0"].rows == 5
    with pytest.raises(fxplain.errors.MethodError):
        fxplain.trace(model, x).page(x, (0, 3), method="gradient_x_input")


def test_the_graph_of_the_page_is_of_the_inputs_that_are_shown() -> None:
    model = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    found = fxplain.trace(model, torch.randn(1, 5, 8)).page(torch.randn(1, 7, 8), (0, 3))
    assert found.graph.nodes["attention:0"]["size"] == "7 x 7"


def test_maps_that_are_many_are_coarser() -> None:
    weights = torch.zeros(2, 10, 7)
    weights[1, 9, 6] = 0.5
    found = packed(weights, None, 4)
    assert (found.rows, found.columns, found.per_row, found.per_column) == (4, 4, 3, 2)
    assert unpacked(found)[1, 3, 3] == 255
    assert found.largest == (0.0, 0.5)
    assert side_for([(16, 4096, 4096)] * 100) == 96


def test_only_pages_are_saved(tmp_path: Path) -> None:
    page = traced("bert-sdpa").page()
    page.save(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == page.html
    with pytest.raises(OutputError, match=r"ends in \.html"):
        page.save(tmp_path / "page.png")


def hostile_graph() -> nx.MultiDiGraph:
    b = GraphBuilder()
    name = b.stream(HOSTILE + '"];\\\n\x00', 3)
    b.add("self", name, name, '"/><script>alert(1)</script>\\')
    b.graph.graph["outputs"] = [HOSTILE, None]
    return b.graph


def test_hostile_names_on_the_page() -> None:
    text = graph_html(hostile_graph(), title=HOSTILE)
    assert_only_own_scripts(text)
    assert "<script>alert" not in text


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
