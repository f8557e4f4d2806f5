"""Layer-wise relevance propagation by hand: the CVPR 2021 paper, layer by layer, for two models.

As slow as they read: every product ``x_i w_ji`` is written out. One sample at a time. Nothing is shared with
the library. What the equations leave open is as in the authors' code: norms, activations and softmax hand
relevance on as it is; a tensor that is read several times adds up what comes back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from zoo.spec import Inputs


def divided(relevance: Tensor, total: Tensor) -> Tensor:
    return torch.where(
        total == 0, torch.zeros_like(relevance), relevance / torch.where(total == 0, 1.0, total)
    )


def linear(x: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
    """Eq. 4: only positive products count; [token, in], [out, in], [token, out] -> [token, in]."""
    positive = (x[:, None, :] * weight[None, :, :]).clamp(min=0)
    return (positive * divided(relevance, positive.sum(-1))[:, :, None]).sum(1)


def matmul(a: Tensor, b: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Eqs. 8 and 12 for a product of two activations, [n, k] and [k, m]: both take half."""
    products = a[:, :, None] * b[None, :, :]
    shares = products * divided(relevance, products.sum(1))[:, None, :]
    return shares.sum(2) / 2, shares.sum(0) / 2


def add(a: Tensor, b: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Eqs. 8 and 12 for a skip connection: in proportion to the absolute sums of what both contribute."""
    to_a, to_b = a * divided(relevance, a + b), b * divided(relevance, a + b)
    whole = to_a.sum().abs() + to_b.sum().abs()
    part_a, part_b = (t.sum().abs() / whole * relevance.sum() for t in (to_a, to_b))
    return to_a * part_a / to_a.sum(), to_b * part_b / to_b.sum()


def patches(image: Tensor, weight: Tensor, relevance: Tensor, size: int) -> Tensor:
    """The z^B rule: [channel, y, x], [out, channel, size, size], [patch, out] -> [channel, y, x]."""
    low, high = image.min(), image.max()
    result = torch.zeros_like(image)
    across = image.shape[2] // size
    for patch in range(len(relevance)):
        y, x = patch // across * size, patch % across * size
        pixels = image[:, y : y + size, x : x + size]
        for out in range(len(weight)):
            w = weight[out]
            terms = pixels * w - low * w.clamp(min=0) - high * w.clamp(max=0)
            result[:, y : y + size, x : x + size] += terms * relevance[patch, out] / terms.sum()
    return result


@dataclass
class Attend:
    """One attention layer of one sample: forward, then relevance back."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    heads: int
    kept: dict[str, Tensor] = field(default_factory=dict)

    def split(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), self.heads, -1).transpose(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.split(layer(x)) for layer in (self.query, self.key, self.value))
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        maps = scores.softmax(-1)
        if not maps.requires_grad:
            maps.requires_grad_()
        maps.retain_grad()
        self.kept = {"x": x, "q": q, "k": k, "v": v, "maps": maps}
        return (maps @ v).transpose(0, 1).reshape(len(x), -1)

    def back(self, relevance: Tensor) -> Tensor:
        kept = {name: value.detach() for name, value in self.kept.items()}
        of_heads = self.split(relevance)
        to_q, to_k, to_v, of_maps = [], [], [], []
        for head in range(self.heads):
            to_map, values = matmul(kept["maps"][head], kept["v"][head], of_heads[head])
            queries, keys = matmul(kept["q"][head], kept["k"][head].T, to_map)  # softmax: the identity
            of_maps.append(to_map)
            to_q.append(queries)
            to_k.append(keys.T)
            to_v.append(values)
        self.kept["relevance"] = torch.stack(of_maps)
        total = torch.zeros_like(kept["x"])
        for layer, parts in ((self.query, to_q), (self.key, to_k), (self.value, to_v)):
            joined = torch.stack(parts).transpose(0, 1).reshape(len(total), -1)
            total = total + linear(kept["x"], layer.weight, joined)
        return total


@dataclass(frozen=True)
class Attributed:
    """The methods on one sample, and the ablations of the last: relevance per token in the row that is read,
    its own entry set aside."""

    lrp: Tensor
    partial: Tensor
    attribution: Tensor
    no_gradient: Tensor
    no_relevance: Tensor
    last_layer: Tensor
    second_layer: Tensor
    with_maps: Tensor
    pixels: Tensor | None = None


def attributed(layers: list[Attend], lrp: Tensor, pixels: Tensor | None = None) -> Attributed:
    """Eqs. 13 and 14, and partial LRP, from what the layers kept; read at token 0."""
    own = torch.eye(len(lrp), dtype=lrp.dtype)
    both, relevance_alone, gradient_alone, with_maps = own, own, own, own
    means = []
    for layer in layers:
        gradient, relevance = layer.kept["maps"].grad, layer.kept["relevance"]
        assert gradient is not None
        mean = (gradient * relevance).clamp(min=0).mean(0)
        means.append(mean)
        both = (own + mean) @ both
        with_maps = (own + (layer.kept["maps"].detach() * relevance).clamp(min=0).mean(0)) @ with_maps
        relevance_alone = (own + relevance.clamp(min=0).mean(0)) @ relevance_alone
        gradient_alone = (own + gradient.clamp(min=0).mean(0)) @ gradient_alone
    partial = layers[-1].kept["relevance"].clamp(min=0).mean(0)
    every = (partial, both, relevance_alone, gradient_alone, means[-1], means[1], with_maps)
    rows = [one[0].clone() for one in every]
    for row in rows:
        row[0] = 0
    return Attributed(lrp, *rows, pixels)


def one_hot(logits: Tensor, target: int) -> Tensor:
    return F.one_hot(torch.tensor([target]), logits.shape[-1]).to(logits.dtype)


def bert(model: Any, inputs: Inputs, sample: int, target: int) -> Attributed:
    """``BertForSequenceClassification``: post-norm layers, pooler, classifier."""
    net = model.bert
    real = int(inputs["attention_mask"][sample].sum())  # padding takes no part
    x = net.embeddings(inputs["input_ids"][sample : sample + 1, :real])[0].detach()
    layers, kept = [], []
    for layer in net.encoder.layer:
        own = layer.attention.self
        attend = Attend(own.query, own.key, own.value, own.num_attention_heads)
        context = attend.forward(x)
        first = layer.attention.output.dense(context)
        middle = layer.attention.output.LayerNorm(first + x)
        wide = layer.intermediate.intermediate_act_fn(layer.intermediate.dense(middle))
        second = layer.output.dense(wide)
        layers.append(attend)
        kept.append((x, context, first, middle, wide, second))
        x = layer.output.LayerNorm(second + middle)
    pooled = net.pooler.dense(x[:1]).tanh()
    logits = model.classifier(pooled)
    logits[0, target].backward()
    with torch.no_grad():
        relevance = linear(pooled, model.classifier.weight, one_hot(logits, target))
        first_token = linear(x[:1], net.pooler.dense.weight, relevance)  # tanh: the identity
        relevance = torch.cat([first_token, torch.zeros_like(x[1:])])
        for layer, attend, (x, context, first, middle, wide, second) in zip(
            reversed(net.encoder.layer), reversed(layers), reversed(kept), strict=True
        ):
            through, around = add(second, middle, relevance)
            through = linear(wide, layer.output.dense.weight, through)
            through = linear(middle, layer.intermediate.dense.weight, through)
            through, around = add(first, x, through + around)
            through = linear(context, layer.attention.output.dense.weight, through)
            relevance = attend.back(through) + around
        missing = inputs["input_ids"].shape[1] - real
        found = attributed(layers, relevance.sum(-1))
    return Attributed(*(F.pad(t, (0, missing)) for t in vars(found).values() if t is not None))


def vit(model: Any, inputs: Inputs, sample: int, target: int) -> Attributed:
    """``ViTForImageClassification``: pre-norm layers, classified at the class token; down to the pixels."""
    net, image = model.vit, inputs["pixel_values"][sample]
    projection = net.embeddings.patch_embeddings.projection
    cut = projection(image[None])[0].flatten(1).T.detach()
    table = net.embeddings.position_embeddings[0].detach()
    joined = torch.cat([net.embeddings.cls_token[0].detach(), cut])
    x = joined + table
    layers, kept = [], []
    for layer in net.layers:
        own = layer.attention
        attend = Attend(own.q_proj, own.k_proj, own.v_proj, own.num_attention_heads)
        context = attend.forward(layer.layernorm_before(x))
        first = own.o_proj(context)
        middle = first + x
        normed = layer.layernorm_after(middle)
        wide = layer.mlp.activation_fn(layer.mlp.fc1(normed))
        second = layer.mlp.fc2(wide)
        layers.append(attend)
        kept.append((x, context, first, middle, normed, wide, second))
        x = second + middle
    normed = net.layernorm(x)
    logits = model.classifier(normed[:1])
    logits[0, target].backward()
    with torch.no_grad():
        relevance = linear(normed[:1], model.classifier.weight, one_hot(logits, target))
        relevance = torch.cat([relevance, torch.zeros_like(x[1:])])
        for layer, attend, (x, context, first, middle, normed, wide, second) in zip(
            reversed(net.layers), reversed(layers), reversed(kept), strict=True
        ):
            through, around = add(second, middle, relevance)
            through = linear(wide, layer.mlp.fc2.weight, through)
            through = linear(normed, layer.mlp.fc1.weight, through)
            through, around = add(first, x, through + around)
            through = linear(context, layer.attention.o_proj.weight, through)
            relevance = attend.back(through) + around
        relevance, _ = add(joined, table, relevance)
        pixels = patches(image, projection.weight, relevance[1:], projection.kernel_size[0])
        return attributed(layers, relevance.sum(-1), pixels)
