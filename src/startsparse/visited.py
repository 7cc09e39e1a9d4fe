"""Which positions of a layer were ever live: rising positions while they are few, then one bit a weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from torch import Tensor, from_numpy

_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)
_BITS, _FIRST = np.uint8(128) >> np.arange(8, dtype=np.uint8), np.zeros(1, np.int64)
CHUNK = 1 << 18  # positions worked on at a time

Mark = Callable[[Tensor, Tensor], None]
"""Sets the bits (uint8, the first of each byte highest) of positions (int64)."""


class Visited:
    """A growing set of positions of one layer.

    Args:
        size: weights of the layer.
        state: of ``state()``, to go on from.

    Example:
        >>> import torch
        >>> seen = Visited(1000)
        >>> seen.add(torch.tensor([3, 4, 900])), seen.add(torch.tensor([4, 5])), len(seen)
        (None, None, 4)
    """

    def __init__(self, size: int, state: Tensor | None = None):
        self._size = size
        self._bits: np.ndarray | None = None
        self._few = np.empty(0, np.uint32 if size <= 1 << 32 else np.int64)
        if state is None:
            return
        if state.element_size() == 1:
            self._bits = state.numpy().copy()
        else:
            self._few = state.numpy().astype(self._few.dtype)

    def __len__(self) -> int:
        return len(self._few) if self._bits is None else int(_ONES[self._bits].sum(dtype=np.int64))

    def add(self, positions: Tensor, mark: Mark | None = None) -> None:
        """Rising positions, int64; those seen before may be among them. ``mark`` is a quicker way to set bits."""
        if self._bits is None:
            new = self._new(positions.numpy())
            if 8 * self._few.itemsize * (len(self._few) + len(new)) <= self._size:
                self._few = np.insert(self._few, np.searchsorted(self._few, new), new)
                return
            self._bits = np.zeros(-(-self._size // 8), np.uint8)
            self._mark(self._few)
            self._few = self._few[:0].copy()
        if mark is None:
            self._mark(positions.numpy())
        else:
            mark(from_numpy(self._bits), positions)

    def state(self) -> Tensor:
        """The positions (int64), or the bits (uint8), as a tensor of its own."""
        return from_numpy(self._few.astype(np.int64) if self._bits is None else self._bits.copy())

    def _new(self, positions: np.ndarray) -> np.ndarray:
        if not len(self._few):
            return positions.astype(self._few.dtype)
        parts = []
        for chunk in _chunks(positions):
            part = chunk.astype(self._few.dtype)
            at = np.searchsorted(self._few, part)
            parts.append(part[self._few[np.minimum(at, len(self._few) - 1)] != part])
        return np.concatenate(parts) if parts else self._few[:0]

    def _mark(self, positions: np.ndarray) -> None:
        assert self._bits is not None
        for at in _chunks(positions):
            byte, bits = at >> 3, _BITS[at & 7]
            begins = np.flatnonzero(byte[1:] != byte[:-1]) + 1  # positions rise: those of a byte lie together
            begins = np.concatenate([_FIRST, begins])
            self._bits[byte[begins]] |= np.bitwise_or.reduceat(bits, begins)


def _chunks(positions: np.ndarray) -> Iterator[np.ndarray]:
    return (positions[begin : begin + CHUNK] for begin in range(0, len(positions), CHUNK))
