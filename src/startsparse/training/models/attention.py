"""Transformer blocks whose every weight is a plain ``nn.Linear``: each can be sparse, and be executed sparse."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Self-attention with ``q``, ``k``, ``v`` and ``out`` as layers of their own."""

    def __init__(self, width: int, heads: int, causal: bool, dropout: float):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) -> (N, T, width)."""
        batch, length, width = x.shape
        q, k, v = (
            layer(x).view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.dropout(self.out(y.transpose(1, 2).reshape(batch, length, width)))


class Block(nn.Module):
    """Attention and a net of four times the width, each normalised before and added to what came in."""

    def __init__(self, width: int, heads: int, causal: bool, dropout: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) -> (N, T, width)."""
        x = x + self.attention(self.norm1(x))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))


def check(width: int, depth: int, heads: int, dropout: float) -> None:
    """Refuse sizes that make no transformer.

    Example:
        >>> check(100, 4, 3, 0.0)
        Traceback (most recent call last):
        ValueError: width 100 is no multiple of heads 3: every head has the same share
    """
    if min(width, depth, heads) < 1:
        raise ValueError(
            f"width, depth and heads are positive, got width {width}, depth {depth}, heads {heads}"
        )
    if width % heads:
        raise ValueError(f"width {width} is no multiple of heads {heads}: every head has the same share")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is a share in [0, 1), got {dropout}")


def initialise(model: nn.Module, depth: int) -> None:
    """Normal weights of deviation 0.02, smaller by sqrt(2 depth) where a residual branch ends; biases zero.

    References:
        Radford et al., Language Models are Unsupervised Multitask Learners, 2019, section 2.3.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            ends = name.endswith((".out", ".down"))
            nn.init.normal_(module.weight, 0, 0.02 / (2 * depth) ** 0.5 if ends else 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, 0, 0.02)
