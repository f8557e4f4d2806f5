"""One attention, spelled as a plan says."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from random_models.plan import WIDTH, Spelling


class Attention(nn.Module):
    """`a` [batch, rows, width] attends to `b` [batch, columns, width]."""

    def __init__(self, spelling: Spelling, room: int) -> None:
        super().__init__()
        self.spelling = spelling
        narrow = WIDTH // spelling.heads * spelling.key_heads
        self.query, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.key, self.value = nn.Linear(WIDTH, narrow), nn.Linear(WIDTH, narrow)
        self.bias = nn.Parameter(torch.randn(spelling.heads, room, room))
        self.relative = nn.Embedding(2 * room, spelling.heads)
        self.mix = nn.Parameter(torch.randn(spelling.heads, WIDTH // spelling.heads))
        self.bias_k, self.bias_v = (nn.Parameter(torch.randn(narrow)) for _ in range(2))
        self.talk = nn.Parameter(torch.randn(spelling.heads, spelling.heads))
        self.sink = nn.Parameter(torch.randn(spelling.heads))
        self.edge = nn.Linear(WIDTH, spelling.heads)
        if spelling.how == "module":
            self.module = nn.MultiheadAttention(
                WIDTH,
                spelling.heads,
                add_bias_kv=spelling.extra == "bias_kv",
                add_zero_attn=spelling.extra == "zero",
                batch_first=True,
            )
            give_weights(self.module, self)

    def forward(self, a: Tensor, b: Tensor, allowed: Tensor | None = None) -> Tensor:
        s = self.spelling
        if s.how == "module":
            return self.module(a, b, b, attn_mask=self._forbidden(a, allowed))[0]
        if s.how == "mha":
            return self._functional(a, b, allowed)
        size = WIDTH // s.heads
        q = self.query(a).unflatten(-1, (s.heads, size)).transpose(1, 2)
        k = self.key(b).unflatten(-1, (s.key_heads, size)).transpose(1, 2)
        v = self.value(b).unflatten(-1, (s.key_heads, size)).transpose(1, 2)
        if s.extra == "rotary":
            q, k = rotated(q), rotated(k)
        if s.extra == "normed":
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        edges = self.edges(a, b) if s.extra == "edges" else None
        if s.extra == "bias_kv":
            k, v = (
                torch.cat([x, learned.view(s.key_heads, 1, size).expand(len(x), -1, -1, -1)], 2)
                for x, learned in ((k, self.bias_k), (v, self.bias_v))
            )
            allowed = None if allowed is None else F.pad(allowed, (0, 1), value=True)
        if s.how == "sdpa_flags":
            causal = allowed is not None and s.mask.startswith("causal")
            mask = None if causal or allowed is None else allowed[:, None]
            mixed = F.scaled_dot_product_attention(
                q, k, v, mask, is_causal=causal, enable_gqa=s.heads != s.key_heads
            )
            return self.out(mixed.transpose(1, 2).flatten(2))
        k, v = (x.repeat_interleave(s.heads // s.key_heads, 1) for x in (k, v))
        mixed = (
            self._fused(q, k, v, allowed, edges)
            if s.how == "sdpa"
            else self._in_parts(q, k, v, allowed, edges)
        )
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _forbidden(self, a: Tensor, allowed: Tensor | None) -> Tensor | None:
        if allowed is None:
            return None
        return ~allowed.expand(len(a), -1, -1).repeat_interleave(self.spelling.heads, 0)

    def _functional(self, a: Tensor, b: Tensor, allowed: Tensor | None) -> Tensor:
        heads = self.spelling.heads
        made, _ = F.multi_head_attention_forward(
            a.transpose(0, 1), b.transpose(0, 1), b.transpose(0, 1), WIDTH, heads,
            None, torch.cat([x.bias for x in (self.query, self.key, self.value)]), None, None, False, 0.0,
            self.out.weight, self.out.bias, training=False, need_weights=False,
            attn_mask=self._forbidden(a, allowed),
            use_separate_proj_weight=True, q_proj_weight=self.query.weight, k_proj_weight=self.key.weight,
            v_proj_weight=self.value.weight,
        )  # fmt: skip
        return made.transpose(0, 1)

    def edges(self, a: Tensor, b: Tensor) -> Tensor:
        """A number for each head, row and column, of the difference of their tokens."""
        return self.edge(torch.tanh(a[:, :, None] - b[:, None])).permute(0, 3, 1, 2)

    def _fused(self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, edges: Tensor | None) -> Tensor:
        mask = None if allowed is None else allowed[:, None]
        if edges is not None:
            mask = edges if mask is None else edges.masked_fill(~mask, -torch.inf)
        if self.spelling.extra in ("bias", "relative"):
            bias = self._by_place(q.shape[2], k.shape[2])
            mask = bias[None] if mask is None else bias.masked_fill(~mask, -torch.inf)
        return F.scaled_dot_product_attention(q, k, v, mask)

    def _by_place(self, rows: int, columns: int) -> Tensor:
        """A learned number for each row and column, or for how far they are apart."""
        if self.spelling.extra == "bias":
            return self.bias[:, :rows, :columns]
        apart = torch.arange(rows)[:, None] - torch.arange(columns) + self.relative.num_embeddings // 2
        return self.relative(apart).permute(2, 0, 1)

    def _in_parts(
        self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, edges: Tensor | None
    ) -> Tensor:
        """All heads and queries at once, or some after the others."""
        how = self.spelling.how
        if how == "heads_in_a_loop":
            made = [
                self._written(*(x[:, h : h + 1] for x in (q, k, v)), allowed, _part(edges, 1, h, h + 1))
                for h in range(q.shape[1])
            ]
            return torch.cat(made, 1)
        if how == "queries_in_parts" and q.shape[2] > 1:
            half, made = q.shape[2] // 2, []
            for first, stop in ((0, half), (half, q.shape[2])):
                own = _part(allowed, 1, first, stop), _part(edges, 2, first, stop)
                made.append(self._written(q[:, :, first:stop], k, v, *own))
            return torch.cat(made, 2)
        return self._written(q, k, v, allowed, edges)

    def _scores(self, q: Tensor, k: Tensor, allowed: Tensor | None, edges: Tensor | None) -> Tensor:
        how, scale = self.spelling.how, q.shape[-1] ** -0.5
        if how == "einsum":
            scores = torch.einsum("bhid,bhjd->bhij", q, k) * scale
        elif how == "baddbmm":
            flat = q.flatten(0, 1), k.flatten(0, 1).mT
            empty = q.new_zeros(len(flat[0]), q.shape[2], k.shape[2])
            scores = torch.baddbmm(empty, *flat, beta=0, alpha=scale).unflatten(0, q.shape[:2])
        elif how == "transposed":
            scores = ((k * scale) @ q.mT).mT
        elif how == "additive":
            scores = torch.tanh(q[:, :, :, None] + k[:, :, None]) @ self.mix[:, None, :, None]
            scores = scores.squeeze(-1)
        else:
            scores = q @ k.mT * scale
        if self.spelling.extra in ("bias", "relative"):
            scores = scores + self._by_place(q.shape[2], k.shape[2])
        if edges is not None:
            scores = scores + edges
        if self.spelling.extra == "capped":
            scores = 2 * torch.tanh(scores / 2)
        if allowed is not None and self.spelling.mask == "causal_additive":
            scores = scores + torch.zeros_like(scores).masked_fill(~allowed[:, None], -1e9)
        elif allowed is not None:
            scores = scores.masked_fill(~allowed[:, None], -torch.inf)
        return scores

    def _written(
        self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, edges: Tensor | None
    ) -> Tensor:
        s, scores = self.spelling, self._scores(q, k, allowed, edges)
        if s.extra == "sink":
            sink = self.sink[:, None, None].expand(len(q), -1, q.shape[2], 1)
            return torch.cat([scores, sink], -1).softmax(-1)[..., :-1] @ v
        if s.how == "divided_late":
            weights = scores.exp()
            return weights @ v / weights.sum(-1, keepdim=True)
        if s.how == "transposed":
            weights = scores.mT.softmax(-2).mT
        elif s.how == "max_subtracted":
            weights = (scores - scores.amax(-1, keepdim=True)).exp()
            weights = weights / weights.sum(-1, keepdim=True)
        else:
            weights = scores.softmax(-1, dtype=torch.float64 if s.how == "softmax_in_float64" else None).to(
                v.dtype
            )
        if s.extra == "talking":
            weights = torch.einsum("gh,bhij->bgij", self.talk, weights)
        if s.how == "transposed":
            return (v.mT @ weights.mT).mT
        return torch.einsum("bhij,bhjd->bhid", weights, v) if s.how == "einsum" else weights @ v


def _part(x: Tensor | None, axis: int, first: int, stop: int) -> Tensor | None:
    return x if x is None or x.shape[axis] == 1 else x.narrow(axis, first, stop - first)


def rotated(x: Tensor) -> Tensor:
    """Rotary positions over the last two axes [places, features]."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] / torch.arange(1, half + 1, dtype=x.dtype)
    left, right = x.chunk(2, -1)
    return torch.cat([left * angle.cos() - right * angle.sin(), right * angle.cos() + left * angle.sin()], -1)


def give_weights(module: nn.MultiheadAttention, own: Attention) -> None:
    """PyTorch's module with the numbers of `own`."""
    with torch.no_grad():
        parts = own.query, own.key, own.value
        module.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        module.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        module.out_proj.load_state_dict(own.out.state_dict())
        if module.bias_k is not None and module.bias_v is not None:
            module.bias_k.copy_(own.bias_k)
            module.bias_v.copy_(own.bias_v)
