"""The dense gradient of a sparse weight, a few rows at a time: what drop-and-grow methods ask for at an
update.

The whole dense gradient never exists: each block of rows is computed, reduced to what is wanted of it, and
let go.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from startsparse.kernels.geometry import Pair
from startsparse.kernels.pattern import Pattern

_BLOCK = 1 << 22  # floats of one block of gradient: 16 MB


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
) -> Iterator[tuple[int, Tensor]]:
    """Blocks of the gradient of the dense weight, first rows first.

    Args:
        x: The layer's input: [..., in_features], or [batch, channels, height, width] for a convolution.
        dy: The gradient of its output, of the layer's output shape.
        kernel_size: Of a convolution; None for a linear layer. The other pairs and ``groups`` belong to it.
        block: Floats of gradient held at a time, at most (but never less than one row).

    Yields:
        First row, and gradient [rows of the block, cols] as a matrix.
    """
    x, dy = x.detach(), dy.detach()
    if kernel_size is None:
        x, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
        step = max(1, block // max(x.shape[1], 1))
        for row in range(0, dy.shape[1], step):
            yield row, dy[:, row : row + step].t() @ x
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


def grow_candidates(
    pattern: Pattern, x: Tensor, dy: Tensor, count: int, *, allowed: Tensor | None = None, **layer
) -> tuple[Tensor, Tensor]:
    """The ``count`` weights, not live now, whose dense gradients are largest in magnitude.

    Ties go to the lower position. A gradient that is not a number counts as zero.

    Args:
        pattern: The live weights, which are left out.
        x, dy: As for ``dense_gradient``, which also takes ``layer``.
        count: Candidates wanted; fewer come back where there are fewer.
        allowed: Ascending row-major positions that may grow (int64), where not all may.

    Returns:
        Row-major positions (int64), largest magnitude first, and their gradients with sign.
    """
    live = pattern.positions()
    found: list[tuple[Tensor, Tensor]] = []
    counts = torch.zeros(_BINS, dtype=torch.int64)
    limit = 0.0
    for row, gradient in dense_gradient(x, dy, **layer) if count > 0 else ():
        start, flat = row * pattern.cols, gradient.reshape(-1)
        free = torch.ones(flat.numel(), dtype=torch.bool)
        if allowed is not None:
            free.zero_()[_within(allowed, start, flat.numel())] = True
        free[_within(live, start, flat.numel())] = False
        score = _magnitude(flat).masked_fill_(~free, 0.0)
        counts += torch.bincount(score.view(torch.int32) >> _SHIFT, minlength=_BINS)
        limit = _limit(counts, count)
        position = free.logical_and_(score >= limit).nonzero().flatten()
        found.append((position + start, flat[position]))
    positions = torch.cat([torch.empty(0, dtype=torch.int64), *(position for position, _ in found)])
    values = torch.cat([torch.empty(0), *(value for _, value in found)])
    near = _magnitude(values) >= limit
    positions, values = positions[near], values[near]
    best = torch.argsort(_magnitude(values), descending=True, stable=True)[:count]  # positions ascend in ties
    return positions[best], values[best]


# Magnitudes are counted by the upper bits of their float32 pattern, which order them.
_SHIFT = 16
_BINS = 1 << (31 - _SHIFT)


def _magnitude(gradient: Tensor) -> Tensor:
    return gradient.abs().nan_to_num_(nan=0.0, posinf=torch.inf)


def _limit(counts: Tensor, count: int) -> float:
    """A magnitude that at least ``count`` of those counted reach, and few more; zero where there are fewer."""
    reaching = counts.flip(0).cumsum(0).flip(0)
    lowest = max(int((reaching >= count).sum()) - 1, 0)
    return float(torch.tensor(lowest << _SHIFT, dtype=torch.int32).view(torch.float32))


def _within(positions: Tensor, start: int, size: int) -> Tensor:
    """Sorted positions inside a block, counted from its start."""
    ends = torch.tensor([start, start + size])
    first, last = torch.searchsorted(positions, ends).tolist()
    return positions[first:last] - start
