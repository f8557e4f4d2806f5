"""Attention graphs of real models; what no small model gives (hostile names) is built by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import networkx as nx
import numpy as np
import torch
import transformers as hf
from torch import Tensor, nn
from zoo import traced

import fxplain
from fxplain.attention.records import Attention, Kind, Stream, TokenSpace
from fxplain.result import Relevance, Result

Graph = nx.MultiDiGraph
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
        common: dict[str, object] = {
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
            known = {"kind": kind, "heads": 12, "fused": True, "normaliser": "softmax"}
            self.graph.add_node(name, type="attention", **known, **common)
        self.graph.add_edge(f"stream:{queries}", name, role="query")
        self.graph.add_edge(f"stream:{keys}", name, role="key")
        self.graph.add_edge(name, f"stream:{queries}", role="update")
        for source in sources:
            self.graph.add_edge(source, name, role="flow")
        self.last[queries] = name
        self.count += 1
        return name


def zoo_graph(name: str) -> Graph:
    """The attention graph of a model of the zoo; a copy, so that a test may change it."""
    graph: Graph = traced(name).graph.copy()
    return graph


@cache
def _own_graph(build: Callable[[], tuple[nn.Module, Any]]) -> Graph:
    torch.manual_seed(0)
    model, inputs = build()
    graph: Graph = fxplain.trace(model.eval(), inputs).graph
    return graph


def deep_graph() -> Graph:
    """An encoder of 24 layers."""

    def build() -> tuple[nn.Module, Any]:
        layer = nn.TransformerEncoderLayer(4, 1, 4, batch_first=True)
        return nn.TransformerEncoder(layer, 24, enable_nested_tensor=False), torch.randn(1, 3, 4)

    return _own_graph(build).copy()


class ThreeStreams(nn.Module):
    """Text and picture attend to each other, objects to both, and latents to the objects at last."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, 3, 8))
        self.embed = nn.ModuleList(nn.Linear(4, 8) for _ in range(3))
        names = ("text_from_image", "image_from_text", "objects_from_text", "objects_from_image", "probe")
        self.attend = nn.ModuleDict({n: nn.MultiheadAttention(8, 2, batch_first=True) for n in names})
        self.head = nn.Linear(8, 2)

    def forward(self, text: Tensor, image: Tensor, objects: Tensor) -> Tensor:
        def read(name: str, query: Tensor, key: Tensor) -> Tensor:
            out: Tensor = query + self.attend[name](query, key, key)[0]
            return out

        t, i, o = (embed(x) for embed, x in zip(self.embed, (text, image, objects), strict=True))
        t, i = read("text_from_image", t, i), read("image_from_text", i, t)
        o = read("objects_from_image", read("objects_from_text", o, t), i)
        out: Tensor = self.head(read("probe", self.latents, o).mean(1))
        return out


def three_stream_graph() -> Graph:
    """The graph of :class:`ThreeStreams`."""

    def build() -> tuple[nn.Module, Any]:
        return ThreeStreams(), tuple(torch.randn(1, n, 4) for n in (5, 4, 3))

    return _own_graph(build).copy()


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


@cache
def _text(batch: int) -> Result:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 24,
        "num_attention_heads": 12,
        "intermediate_size": 8,
        "vocab_size": 30,
    }
    model = hf.BertForSequenceClassification(hf.BertConfig(**sizes, num_hidden_layers=2, num_labels=5)).eval()
    words = torch.arange(9).repeat(batch, 1)
    return fxplain.trace(model, words).explain(words, 3, mode="matrix")


@cache
def _picture(side: int, batch: int) -> Result:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 8,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "num_hidden_layers": 2,
    }
    config = hf.ViTConfig(**sizes, image_size=2 * side, patch_size=2, num_labels=5)
    pixels = torch.randn(batch, 3, 2 * side, 2 * side)
    return fxplain.explain(hf.ViTForImageClassification(config).eval(), pixels, 3)


@cache
def _two_streams() -> Result:
    torch.manual_seed(0)
    config = hf.LxmertConfig(
        hidden_size=8, num_attention_heads=2, intermediate_size=8, vocab_size=30, visual_feat_dim=4,
        num_qa_labels=5, l_layers=1, x_layers=2, r_layers=1,
    )  # fmt: skip
    model = hf.LxmertForQuestionAnswering(config).eval()
    regions = {"visual_feats": torch.randn(1, 36, 4), "visual_pos": torch.rand(1, 36, 4)}
    inputs = {"input_ids": torch.arange(6)[None], **regions}
    return fxplain.trace(model, inputs).explain(inputs, 3, output="question_answering_score", mode="matrix")


def valued(result: Result, values: dict[str, Tensor], **kw: Any) -> Result:
    """The result with these numbers for relevance, by token space; ``kw`` replaces other fields."""
    assert set(values) == set(result.relevance)
    known = replace(result, relevance=Relevance(values, result.spaces))
    return replace(known, **kw)


def text_result(values: list[list[float]] | None = None, **kw: Any) -> Result:
    """A sentence classified by token 0, with its whole relevancy matrix."""
    rows = torch.tensor(values or [[1.03, 0.02, 0.31, 0.01, 0.22, 0.4, 0.02, 0.05, 0.0]])
    result = _text(rows.shape[0])
    assert result.relevancy is not None
    matrix = result.relevancy.clone()
    matrix[:, 0] = rows
    return valued(result, {"input_ids": rows}, **({"relevancy": matrix} | kw))


def image_result(side: int = 7, batch: int = 2, **kw: Any) -> Result:
    """[CLS] and side x side patches, with a bright spot at row 1, column ``side - 2``."""
    ys, xs = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    spot = torch.exp(-((ys - 1.0) ** 2 + (xs - (side - 2.0)) ** 2) / 2.0).reshape(1, -1)
    values = {
        "vit.embeddings.cls_token": torch.full((batch, 1), 1.1),
        "pixel_values": (0.01 + 0.2 * spot).repeat(batch, 1),
    }
    return valued(_picture(side, batch), values, **kw)


def two_stream_result(**kw: Any) -> Result:
    """Text and regions, co-attending; regions are neither image nor text."""
    return replace(_two_streams(), **kw)


def photograph(height: int = 112, width: int = 112) -> np.ndarray:
    """A drawn scene [H, W, 3]: sky, ground, a red disc at the upper right."""
    ys, xs = np.mgrid[0:height, 0:width]
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 2] = 120 + ys * 100 // height
    image[..., 1] = np.where(ys > height * 0.6, 140, 90)
    disc = (ys - height * 0.22) ** 2 + (xs - width * 0.78) ** 2 < (0.14 * height) ** 2
    image[disc] = (220, 40, 30)
    return image
