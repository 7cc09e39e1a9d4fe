"""Where the live weights of a tensor are, looked at in parts of bounded size: never one item per position at once."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator

import numpy as np

from .. import draw

PART = 1 << 20  # positions in a part, a multiple of 8
_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.int64)


class Live(abc.ABC):
    """The live positions of a tensor, in parts: part i is of the positions from i * PART up to (i + 1) * PART.

    Attributes:
        size: positions of the tensor.
        count: live ones among them.
    """

    size: int
    count: int

    @abc.abstractmethod
    def bits(self) -> Iterator[np.ndarray]:
        """The parts, one bit a position, the first in the highest bit: uint8, filled up with zeros to a byte."""

    def positions(self) -> Iterator[np.ndarray]:
        """The live positions of each part, int64, rising."""
        for start, packed in zip(range(0, self.size, PART), self.bits(), strict=True):
            yield np.flatnonzero(np.unpackbits(packed)) + start

    def all_positions(self) -> np.ndarray:
        """All live positions, int64, rising, (count,)."""
        found = np.empty(self.count, np.int64)
        reached = 0
        for part in self.positions():
            found[reached : reached + len(part)] = part
            reached += len(part)
        return found

    def held(self) -> Live:
        """The same, quick to be looked at several times; may need 8 bytes for a live weight."""
        return self


class All(Live):
    """Every position is live."""

    def __init__(self, size: int):
        self.size = self.count = size

    def bits(self) -> Iterator[np.ndarray]:
        for start in range(0, self.size, PART):
            yield np.packbits(np.ones(min(PART, self.size - start), bool))


class Bits(Live):
    """Held as one bit a position: for masks that are not very sparse.

    Args:
        packed: the bits as they are in a file, uint8; none is set behind the last position.
        size: positions.
    """

    def __init__(self, packed: np.ndarray, size: int):
        self.size, self.packed = size, packed
        self.count = sum(int(_ONES[part].sum()) for part in self.bits())

    def bits(self) -> Iterator[np.ndarray]:
        for start in range(0, self.size, PART):
            yield self.packed[start // 8 : (start + PART) // 8]


class Positions(Live):
    """Held as positions, or by a way to find them.

    Args:
        find: gives the live positions, int64, rising, (count,); called anew for each look at them.
        count: live positions.
        size: positions.
    """

    def __init__(self, find: Callable[[], np.ndarray], count: int, size: int):
        self._find, self.count, self.size = find, count, size

    def bits(self) -> Iterator[np.ndarray]:
        for start, part in zip(range(0, self.size, PART), self.positions(), strict=True):
            mask = np.zeros(min(PART, self.size - start), bool)
            mask[part - start] = True
            yield np.packbits(mask)

    def positions(self) -> Iterator[np.ndarray]:
        found = self._find()
        stops = np.searchsorted(found, np.arange(PART, self.size + PART, PART)).tolist()
        for start, stop in zip([0, *stops], stops, strict=False):
            yield found[start:stop]

    def all_positions(self) -> np.ndarray:
        return self._find()

    def held(self) -> Live:
        found = self._find()
        return Positions(lambda: found, self.count, self.size)


class Coins(Live):
    """Drawn, every position for itself."""

    def __init__(self, density: float, seed: int, name: str, size: int):
        self._law, self.size = (density, seed, name), size
        self.count = sum(len(part) for part in self.positions())

    def bits(self) -> Iterator[np.ndarray]:
        for start in range(0, self.size, PART):
            yield np.packbits(draw.bernoulli(self.size, *self._law, start, min(start + PART, self.size)))


def of_mask(mask: np.ndarray) -> Live:
    """Of a bool array (size,), which is not held."""
    live = Bits(np.packbits(mask), len(mask))
    return All(len(mask)) if live.count == len(mask) else live


def exactly(count: int, seed: int, name: str, size: int) -> Live:
    """Drawn, exactly ``count`` positions."""
    if 8 * count > size:  # a mask needs less than positions
        return of_mask(draw.exact(size, count, seed, name))
    drawn = draw.Drawn("exact", seed, name, size, count=count)
    return Positions(drawn.positions, count, size)


def same(a: Live, b: Live) -> bool:
    """Whether two are the same positions."""
    if (a.size, a.count) != (b.size, b.count):
        return False
    return all(np.array_equal(x, y) for x, y in zip(a.bits(), b.bits(), strict=True))
