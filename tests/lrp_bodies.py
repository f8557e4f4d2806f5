"""A small model that attends, and bodies of every kind for what it does then; operators of one's own."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

WIDE = 32
"""Features: so many that every sum has something positive."""


class Attends(nn.Module):
    """One attention without biases, then whatever ``body`` does, then the mean of all tokens."""

    def __init__(self, body: Callable[[Attends, Tensor], Tensor] = lambda model, x: x) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDE, WIDE, bias=False) for _ in range(3))
        self.one, self.two, self.three = (nn.Linear(WIDE, WIDE, bias=False) for _ in range(3))
        self.norm, self.conv = nn.LayerNorm(WIDE), nn.Conv1d(WIDE, WIDE, 3, padding=1, bias=False)
        self.experts = nn.Parameter(torch.randn(4, WIDE, WIDE) / 3)
        self.head = nn.Linear(WIDE, 3, bias=False)
        self.body = body

    def attend(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).mT / WIDE**0.5
        return scores.softmax(-1) @ self.value(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self, x + self.attend(x)).mean(1))


def windows(model: Attends, x: Tensor) -> Tensor:
    rolled = torch.roll(F.pad(x, (0, 0, 0, 1)), 2, 1)
    return rolled.unflatten(1, (3, 2)).flatten(0, 1).unflatten(0, (-1, 3)).flatten(1, 2)


def dispatched(model: Attends, x: Tensor) -> Tensor:
    """Every token goes to the two best of four experts; what they answer is added up."""
    flat = x.flatten(0, 1)
    chosen = model.head(flat).abs().topk(2, -1).indices + 1
    result = torch.zeros_like(flat)
    for expert in range(4):
        rows, _ = (chosen == expert).nonzero(as_tuple=True)
        result = result.index_add(0, rows, flat[rows] @ model.experts[expert])
    return result.unflatten(0, x.shape[:2]) + x


def lower(x: Tensor) -> Tensor:
    """A system of the tokens: each takes in part of those before it."""
    return torch.eye(x.shape[1], dtype=x.dtype) + (x @ x.mT / WIDE).tril(-1)


BODIES: dict[str, Callable[[Attends, Tensor], Tensor]] = {
    "nothing": lambda m, x: x,
    "residual": lambda m, x: x + m.one(x).relu(),
    "shared": lambda m, x: m.one(m.one(x).gelu() if hasattr(x, "gelu") else F.gelu(m.one(x))),
    "branches": lambda m, x: m.one(x) + m.two(x) + m.three(x) - x,
    "gated": lambda m, x: F.silu(m.one(x)) * m.two(x),
    "glu": lambda m, x: F.glu(torch.cat([m.one(x), m.two(x)], -1)),
    "dispatched": dispatched,
    "conv": lambda m, x: m.conv(x.mT).mT,
    "solved": lambda m, x: torch.linalg.solve_triangular(lower(m.one(x)), m.two(x), upper=False),
    "pooled": lambda m, x: F.avg_pool1d(x.mT, 2).mT,
    "max pooled": lambda m, x: F.max_pool1d(x.mT, 2).mT,
    "windows": windows,
    "gathered": lambda m, x: x.gather(1, torch.tensor([4, 0, 1])[None, :, None].expand(2, 3, WIDE)),
    "placed": lambda m, x: torch.zeros(2, 9, WIDE, dtype=x.dtype).index_copy(
        1, torch.tensor([8, 1, 3, 0, 2]), x
    ),
    "sliced": lambda m, x: torch.cat([x[:, 1:], x[:, :1] * 2], 1),
    "split": lambda m, x: sum(part.repeat(1, 1, 2) for part in x.chunk(2, -1)),  # type: ignore[dict-item, return-value]
    "einsum": lambda m, x: torch.einsum("btf,gf->btg", x, m.one.weight),
    "resampled": lambda m, x: F.interpolate(x.mT, size=9, mode="linear").mT,
    "summed up": lambda m, x: x.cumsum(1),
    "by hand": lambda m, x: x * torch.sigmoid(1.7 * x),
    "scaled": lambda m, x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6),
    "unit": lambda m, x: F.normalize(x, dim=-1),
    "complex": lambda m, x: torch.view_as_real(
        torch.view_as_complex(x.unflatten(-1, (-1, 2)))
        * torch.polar(torch.ones(5, 1), torch.arange(5.0)[:, None]).to(torch.cdouble)
    ).flatten(-2),
    "largest": lambda m, x: torch.maximum(x, m.one(x)),
    "chosen": lambda m, x: torch.where(x > 0, x, m.one(x)),
    "logits": lambda m, x: F.log_softmax(x, -1),
}


@torch.library.custom_op("lrplab::turned", mutates_args=())
def turned(x: Tensor, w: Tensor) -> Tensor:
    return torch.einsum("...f,gf->...g", x, w).flip(-1)


@turned.register_fake
def _(x: Tensor, w: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], w.shape[0])


turned.register_autograd(
    lambda ctx, grad: (grad.flip(-1) @ ctx.saved_tensors[1], None),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


@torch.library.custom_op("lrplab::bent", mutates_args=())
def bent(x: Tensor) -> Tensor:
    return x.sinh() * 0.5


@bent.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


bent.register_autograd(
    lambda ctx, grad: grad * ctx.saved_tensors[0].cosh() * 0.5,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


@torch.library.custom_op("lrplab::crossed", mutates_args=())
def crossed(x: Tensor) -> Tensor:
    return x * x.flip(-1).tanh()


@crossed.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


crossed.register_autograd(
    lambda ctx, grad: grad * ctx.saved_tensors[0].flip(-1).tanh(),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)
