"""A graph convolutional net over neighbourhoods of a fixed size."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class GCN(nn.Module):
    """Graph convolutions: the mean over a node and its neighbours, a linear layer, ReLU between layers.

    A node comes with its neighbourhood, (neighbours, neighbours of these, ..., features), one axis a layer, each node
    being one of its own neighbours. Every layer takes the mean over the last of them. That is what the same layers
    compute on the whole graph, where all nodes have equally many neighbours.

    References:
        Kipf and Welling, Semi-Supervised Classification with Graph Convolutional Networks, ICLR 2017, section 2,
        https://arxiv.org/abs/1609.02907
        Hamilton et al., Inductive Representation Learning on Large Graphs, NeurIPS 2017, section 3 (neighbourhoods
        of a fixed size), https://arxiv.org/abs/1706.02216

    Fidelity:
        The mean weighs all neighbours alike (A + I divided by rows), where the paper divides by the square roots of both
        nodes' degrees.
    """

    def __init__(self, sizes: Sequence[int], dropout: float):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.dropout = nn.Dropout(dropout)

    def forward(self, neighbourhoods: Tensor) -> Tensor:
        """(N, neighbours, ..., features) -> (N, classes)."""
        x = neighbourhoods
        for i, layer in enumerate(self.layers):
            x = layer(self.dropout(x.mean(-2)))
            if i < len(self.layers) - 1:
                x = torch.relu(x)
        return x


def gcn(
    widths: Sequence[int] = (64,),
    input_shape: Sequence[int] = (9, 9, 64),
    classes: int = 10,
    dropout: float = 0.0,
) -> GCN:
    """A graph convolutional net, a layer for each axis of neighbours.

    Args:
        widths: units of each hidden layer.
        input_shape: (neighbours, ..., features) of a node's neighbourhood, one axis of neighbours a layer.
        classes: number of outputs.
        dropout: of every layer's inputs.

    Raises:
        ValueError: neighbourhoods that do not reach as far as the layers.

    Example:
        >>> gcn((16,), (9, 9, 64), 10)(torch.zeros(2, 9, 9, 64)).shape
        torch.Size([2, 10])
        >>> gcn((16, 16), (9, 9, 64))
        Traceback (most recent call last):
        ValueError: gcn with widths [16, 16] has 3 layers and takes (neighbours, ..., features) with 3 axes of neighbours, ...
    """
    if any(width < 1 for width in widths):
        raise ValueError(f"widths are positive, got {list(widths)}")
    if len(input_shape) != len(widths) + 2:
        raise ValueError(
            f"gcn with widths {list(widths)} has {len(widths) + 1} layers and takes (neighbours, ..., features) with "
            f"{len(widths) + 1} axes of neighbours, got input_shape {tuple(input_shape)}"
        )
    return GCN([input_shape[-1], *widths, classes], dropout)
