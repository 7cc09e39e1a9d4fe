"""A GPT for next-character prediction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from startsparse.training.models.attention import Block, check, initialise


class Gpt(nn.Module):
    """Token and position embeddings, blocks, a norm, and ``head``; no weight is tied."""

    def __init__(self, width: int, depth: int, heads: int, dropout: float, context: int, classes: int):
        super().__init__()
        self.token = nn.Embedding(classes, width)
        self.position = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, True, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes, bias=False)
        initialise(self, depth)

    def forward(self, tokens: Tensor) -> Tensor:
        """Integers (N, T), T up to the context -> logits (N, T, classes) of the tokens that follow."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.dropout(self.token(tokens) + self.position(places))
        return self.head(self.norm(self.blocks(x)))


def gpt(
    width: int = 96,
    depth: int = 4,
    heads: int = 4,
    dropout: float = 0.0,
    input_shape: Sequence[int] = (64,),
    classes: int = 65,
) -> Gpt:
    """A GPT for next-character prediction; queries, keys and values are linear layers of their own.

    Args:
        width: features of a token.
        depth: blocks.
        heads: attention heads; they divide the width.
        dropout: share dropped after the embeddings and at the end of each residual branch.
        input_shape: (context,), the longest text it sees.
        classes: distinct tokens.

    References:
        Radford et al., Language Models are Unsupervised Multitask Learners, 2019, section 2.3.

    Fidelity:
        ``head`` is not tied to the token embedding (a tied weight could not be sparse in one place alone), and
        queries, keys, values and ``head`` have no bias.

    Example:
        >>> gpt(width=8, depth=1, heads=2)(torch.zeros(2, 5, dtype=torch.long)).shape
        torch.Size([2, 5, 65])
    """
    check(width, depth, heads, dropout)
    if len(input_shape) != 1:
        raise ValueError(f"gpt takes text (context,), got input_shape {tuple(input_shape)}")
    return Gpt(width, depth, heads, dropout, input_shape[0], classes)
