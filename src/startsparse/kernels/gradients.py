"""The dense gradient of a sparse weight, a few rows at a time: what drop-and-grow methods ask for at an
update.

The whole dense gradient never exists: each block of rows is computed, the caller reduces it to what it wants, and
it is let go.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from startsparse.kernels.geometry import Pair
from startsparse.kernels.memory import scratch

_BLOCK = 1 << 21  # floats of one block of gradient: 8 MB


def dense_gradient(
    x: Tensor,
    dy: Tensor,
    *,
    kernel_size: Pair | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    block: int = _BLOCK,
    reuse: bool = False,
) -> Iterator[tuple[int, Tensor]]:
    """Blocks of the gradient of the dense weight, first rows first.

    Args:
        x: The layer's input: [..., in_features], or [batch, channels, height, width] for a convolution.
        dy: The gradient of its output, of the layer's output shape.
        kernel_size: Of a convolution; None for a linear layer. The other pairs and ``groups`` belong to it.
        block: Floats of gradient held at a time, at most (but never less than one row).
        reuse: Whether the blocks of a linear layer may share one piece of memory, so that none faults its pages in:
            each is gone when the next is asked for, or a kernel is called.

    Yields:
        First row, and gradient [rows of the block, cols] as a matrix.
    """
    x, dy = x.detach(), dy.detach()
    if kernel_size is None:
        x, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
        cols = x.shape[1]
        step = max(1, block // max(cols, 1))
        for row in range(0, dy.shape[1], step):
            part = dy[:, row : row + step].t()
            room = scratch(len(part) * cols)[: len(part) * cols].view(len(part), cols) if reuse else None
            yield row, torch.mm(part, x, out=room)
        return
    rows_per_group, channels = dy.shape[1] // groups, x.shape[1] // groups
    cols = channels * kernel_size[0] * kernel_size[1]
    step = max(1, block // max(cols, 1))
    window: tuple[Any, ...] = stride, padding, dilation  # pairs, though torch's annotation says int
    for group in range(groups):
        image = x[:, group * channels : (group + 1) * channels]
        for start in range(0, rows_per_group, step):
            row, rows = group * rows_per_group + start, min(step, rows_per_group - start)
            part = dy[:, row : row + rows]
            weight = (rows, channels, *kernel_size)
            yield (
                row,
                conv2d_weight(image, weight, part, *window).reshape(rows, cols),
            )
