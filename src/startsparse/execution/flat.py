"""Values at row-major positions of a tensor, whatever its order in memory: ``view(-1)`` knows one order alone."""

from __future__ import annotations

import torch
from torch import Tensor


def read(tensor: Tensor, positions: Tensor) -> Tensor:
    """The values at flat positions, a copy.

    Example:
        >>> read(torch.arange(6).view(2, 3).t(), torch.tensor([1, 2]))
        tensor([3, 1])
    """
    if tensor.is_contiguous():
        return tensor.view(-1)[positions]
    return tensor[torch.unravel_index(positions, tensor.shape)]


def write(tensor: Tensor, positions: Tensor, values: Tensor) -> None:
    """Set the values at flat positions, in place."""
    if tensor.is_contiguous():
        tensor.view(-1)[positions] = values
    else:
        tensor[torch.unravel_index(positions, tensor.shape)] = values
