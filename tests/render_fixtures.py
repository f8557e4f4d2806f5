"""Explanations and attention graphs built by hand, so that rendering is tested without any model."""

from __future__ import annotations

import networkx as nx
import numpy as np
import torch

from fxplain.attentions import Attention, Kind, Stream, TokenSpace
from fxplain.result import Relevance, Result

HOSTILE = "</span><script>alert(1)</script>"


def space(name: str, start: int, *grid: int, origin: str = "input") -> TokenSpace:
    """A token space of that grid."""
    return TokenSpace(name, int(np.prod(grid)), start, tuple(grid), origin, name)  # type: ignore[arg-type]


def whole(*spaces: TokenSpace, name: str | None = None) -> Stream:
    """The stream of all tokens of these spaces."""
    tokens = tuple(i for s in spaces for i in range(s.start, s.start + s.size))
    return Stream(name or "+".join(s.name for s in spaces), tokens, tuple(s.name for s in spaces))


def site(index: int, kind: Kind, queries: Stream, keys: Stream, module: str, heads: int = 12) -> Attention:
    """One attention."""
    return Attention(
        index,
        module,
        kind,
        queries,
        keys,
        heads,
        True,
        module,
        f"model.py:{100 + index}",
        f"sdpa_{index}",
        "softmax",
    )


class GraphBuilder:
    """Writes the attention graph as the tracer does: in dataflow order, by plain attributes."""

    def __init__(self) -> None:
        self.graph = nx.MultiDiGraph()  # type: ignore[var-annotated]
        self.last: dict[str, str] = {}
        self.depth: dict[str, int] = {}
        self.count = 0

    def stream(self, name: str, size: int, spaces: str | None = None) -> str:
        self.graph.add_node(f"stream:{name}", type="stream", name=name, size=size, spaces=spaces or name)
        return name

    def add(
        self,
        kind: str,
        queries: str,
        keys: str,
        module: str,
        after: dict[str, str] | None = None,
        op: str = "",
    ) -> str:
        """One attention or mixing; ``after``: the state of the streams it reads (default: the latest)."""
        state = dict(self.last if after is None else after)
        name = f"{'mixing' if kind == 'mixing' else 'attention'}:{self.count}"
        sources = sorted({state[s] for s in (queries, keys) if s in state})
        self.depth[name] = 1 + max((self.depth[s] for s in sources), default=0)
        nodes = self.graph.nodes
        size = f"{nodes[f'stream:{queries}']['size']} x {nodes[f'stream:{keys}']['size']}"
        common = {
            "kind": kind,
            "index": self.count,
            "depth": self.depth[name],
            "size": size,
            "queries": queries,
            "keys": keys,
        }
        common |= {"name": module, "module": module, "source": f"modeling.py:{100 + self.count}"}
        if kind == "mixing":
            self.graph.add_node(name, type="mixing", op=op, **common)
        else:
            self.graph.add_node(name, type="attention", heads=12, fused=True, normaliser="softmax", **common)
        self.graph.add_edge(f"stream:{queries}", name, role="query")
        self.graph.add_edge(f"stream:{keys}", name, role="key")
        self.graph.add_edge(name, f"stream:{queries}", role="update")
        for source in sources:
            self.graph.add_edge(source, name, role="flow")
        self.last[queries] = name
        self.count += 1
        return name


def encoder_graph(layers: int = 12) -> nx.MultiDiGraph:
    """An encoder with one stream."""
    b = GraphBuilder()
    b.stream("input_ids", 9)
    for i in range(layers):
        b.add("self", "input_ids", "input_ids", f"bert.encoder.layer.{i}.attention.self")
    b.graph.graph["outputs"] = "logits"
    return b.graph


def two_stream_graph() -> nx.MultiDiGraph:
    """Language and vision towers, then co-attention in both directions at once, then self-attention."""
    b = GraphBuilder()
    text, image = b.stream("input_ids", 20), b.stream("visual_feats", 36)
    for i in range(9):
        b.add("self", text, text, f"lxmert.encoder.layer.{i}.attention.self")
    for i in range(5):
        b.add("self", image, image, f"lxmert.encoder.r_layers.{i}.attention.self")
    for i in range(5):
        before, base = dict(b.last), f"lxmert.encoder.x_layers.{i}"
        b.add("co", text, image, f"{base}.visual_attention.att", after=before)
        b.add("co", image, text, f"{base}.visual_attention.att", after=before)
        b.add("self", text, text, f"{base}.lang_self_att.self")
        b.add("self", image, image, f"{base}.visn_self_att.self")
    return b.graph


def encoder_decoder_graph(convolutions: int = 6, layers: int = 6) -> nx.MultiDiGraph:
    """A convolutional stem, an encoder of image tokens, a decoder of queries born from a parameter."""
    b = GraphBuilder()
    previous = b.stream("pixel_values", 3136)
    for i in range(convolutions):
        new = b.stream(f"conv{i}", 3136 // 4 ** (1 + i // 2), f"conv{i}")
        b.add("mixing", new, previous, f"model.backbone.layer{i}.conv2", op="convolution")
        b.last[new] = f"mixing:{b.count - 1}"
        previous = new
    queries = b.stream("query_position_embeddings.weight", 100)
    for i in range(layers):
        b.add("self", previous, previous, f"model.encoder.layers.{i}.self_attn")
    for i in range(layers):
        b.add("self", queries, queries, f"model.decoder.layers.{i}.self_attn")
        b.add("encoder_decoder", queries, previous, f"model.decoder.layers.{i}.encoder_attn")
    return b.graph


def hierarchical_graph() -> nx.MultiDiGraph:
    """Four stages of window attention with patch merging between them and pooling at the end."""
    b = GraphBuilder()
    name = b.stream("pixel_values", 3136)
    for stage, depth in enumerate((2, 2, 6, 2)):
        for block in range(depth):
            b.add("self", name, name, f"swin.encoder.layers.{stage}.blocks.{block}.attention.self")
        if stage < 3:
            new = b.stream(f"layers.{stage}.downsample", 3136 // 4 ** (stage + 1))
            b.add("mixing", new, name, f"swin.encoder.layers.{stage}.downsample", op="linear")
            name = new
    pooled = b.stream("pooler", 1)
    b.add("mixing", pooled, name, "swin.pooler", op="mean")
    return b.graph


def three_stream_graph() -> nx.MultiDiGraph:
    """Text, image and objects, where objects attend to both others; a latent stream born of a parameter."""
    b = GraphBuilder()
    text, image = b.stream("input_ids", 16), b.stream("pixel_values", 49)
    objects, latents = b.stream("object_feats", 10), b.stream("latents", 8, "model.latents")
    for i in range(4):
        before = dict(b.last)
        for query, key in ((text, image), (image, text), (objects, text), (objects, image)):
            b.add("co", query, key, f"fusion.{i}.{query}_from_{key}", after=before)
        for name in (text, image, objects):
            b.add("self", name, name, f"fusion.{i}.self_{name}")
    b.add("encoder_decoder", latents, objects, "head.probe")
    return b.graph


def joined_graph() -> nx.MultiDiGraph:
    """An image tower whose tokens become part of a text stream; the class token is born of a parameter."""
    b = GraphBuilder()
    image = b.stream("class_embedding+pixel_values", 50, "class_embedding, pixel_values")
    for i in range(3):
        b.add("self", image, image, f"model.vision_tower.layers.{i}.self_attn")
    both = b.stream("input_ids+pixel_values", 60, "input_ids, pixel_values")
    b.last[both] = b.last[image]
    for i in range(3):
        b.add("self", both, both, f"model.language_model.layers.{i}.self_attn")
    return b.graph


def make_result(
    spaces: tuple[TokenSpace, ...], rows: torch.Tensor, attentions: tuple[Attention, ...], **kw: object
) -> Result:
    """A result with these rows [batch, tokens]; ``kw`` replaces any of its fields."""
    named = {a.queries.name: a.queries for a in attentions} | {a.keys.name: a.keys for a in attentions}
    batch = rows.shape[0]
    fields: dict[str, object] = {
        "method": "relevancy",
        "score": torch.linspace(4.2, 3.1, batch),
        "target": tuple((3,) for _ in range(batch)),
        "output": "logits",
        "relevance": Relevance.from_rows(rows, spaces),
        "relevancy": None,
        "spaces": spaces,
        "streams": tuple(named.values()),
        "readout": tuple(((0, 1.0),) for _ in range(batch)),
        "attentions": attentions,
        "verified": 3.2e-7,
        "notes": (),
    }
    return Result(**(fields | kw))  # type: ignore[arg-type]


def text_result(values: list[list[float]] | None = None, **kw: object) -> Result:
    """A sentence classified by token 0, with its whole relevancy matrix."""
    rows = torch.tensor(values or [[1.03, 0.02, 0.31, 0.01, 0.22, 0.4, 0.02, 0.05, 0.0]])
    words = space("input_ids", 0, rows.shape[1])
    stream = whole(words)
    sites = tuple(
        site(i, "self", stream, stream, f"bert.encoder.layer.{i}.attention.self") for i in range(12)
    )
    matrix = torch.eye(rows.shape[1]).repeat(rows.shape[0], 1, 1)
    matrix[:, 0] = rows
    return make_result((words,), rows, sites, **({"relevancy": matrix} | kw))


def image_result(side: int = 7, batch: int = 2, **kw: object) -> Result:
    """[CLS] and side x side patches, with a bright spot at row 1, column ``side - 2``."""
    cls, patches = space("cls_token", 0, 1, origin="parameter"), space("pixel_values", 1, side, side)
    ys, xs = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    spot = torch.exp(-((ys - 1.0) ** 2 + (xs - (side - 2.0)) ** 2) / 2.0).reshape(1, -1)
    rows = torch.cat([torch.full((1, 1), 1.1), 0.01 + 0.2 * spot], dim=1).repeat(batch, 1)
    stream = whole(cls, patches)
    sites = tuple(site(i, "self", stream, stream, f"vit.layers.{i}.attention") for i in range(4))
    return make_result((cls, patches), rows, sites, **kw)


def two_stream_result(**kw: object) -> Result:
    """Text and boxes, co-attending; boxes are neither image nor text."""
    words, boxes = space("input_ids", 0, 6), space("visual_feats", 6, 36)
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(1, 42, generator=generator) ** 3 * 0.2
    rows[:, 0] += 1.0
    text, image = whole(words), whole(boxes)
    sites = (
        site(0, "self", text, text, "lang.0.self"),
        site(1, "co", text, image, "cross.0.visual_attention"),
        site(2, "co", image, text, "cross.0.visual_attention"),
    )
    notes = (
        "captured by recording the real run: export failed on data-dependent control flow",
        "approximate: pooling",
    )
    matrix = torch.rand(1, 42, 42, generator=generator)
    return make_result((words, boxes), rows, sites, **({"notes": notes, "relevancy": matrix} | kw))


def photograph(height: int = 112, width: int = 112) -> np.ndarray:
    """A drawn scene [H, W, 3]: sky, ground, a red disc at the upper right."""
    ys, xs = np.mgrid[0:height, 0:width]
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 2] = 120 + ys * 100 // height
    image[..., 1] = np.where(ys > height * 0.6, 140, 90)
    disc = (ys - height * 0.22) ** 2 + (xs - width * 0.78) ** 2 < (0.14 * height) ** 2
    image[disc] = (220, 40, 30)
    return image
