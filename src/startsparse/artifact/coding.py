"""Live positions to bytes and back, in integers: one bit a position, or Golomb-Rice coded gaps between live positions.

Pure numpy over parts of bounded size. The bit orders are those of ``docs/formats/compact_file.md``. Decoders trust
nothing: they raise ``ValueError`` on whatever an encoder would not have written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from .live import Bits, Live

_CHUNK = 1 << 16  # gaps, or bytes of a code, that are spread out into bits at a time; a multiple of 8


def pack_bits(live: Live) -> np.ndarray:
    """One bit a position, the first in the highest bit: uint8 (ceil(size / 8),)."""
    return np.concatenate([np.zeros(0, np.uint8), *live.bits()])


def unpack_bits(packed: np.ndarray, size: int) -> Live:
    """The inverse of ``pack_bits``.

    Raises:
        ValueError: another number of bytes, or bits set behind the last position.
    """
    if len(packed) != (size + 7) // 8:
        raise ValueError(f"{len(packed)} bytes for a mask of {size} bits")
    if size % 8 and packed[-1] & (0xFF >> size % 8):
        raise ValueError("bits are set behind the last position")
    return Bits(packed, size)


def gaps(live: Live) -> Iterator[np.ndarray]:
    """Dead positions before each live one since the live one before it, in parts, int64.

    Example:
        >>> from .live import of_mask
        >>> list(gaps(of_mask(np.array([False, True, True, False, False, True]))))
        [array([1, 0, 2])]
    """
    before = -1
    for part in live.positions():
        if len(part):
            yield np.diff(part, prepend=before) - 1
            before = part[-1]


def rice_parameter(gap_parts: Iterable[np.ndarray]) -> tuple[int, int]:
    """The parameter k whose Rice code of these gaps is shortest (the smallest of equals), and its length in bytes.

    Example:
        >>> rice_parameter([np.array([1, 0, 2])])
        (0, 1)
        >>> rice_parameter([np.array([17, 20]), np.array([15, 19])])
        (3, 3)
    """
    count, sums = 0, [0] * 65  # of all quotients, for each k
    for gap in gap_parts:
        count += len(gap)
        quotient, k = gap, 0
        while total := int(quotient.sum()):
            sums[k] += total
            quotient, k = quotient >> 1, k + 1
    k = 0  # the length is convex in k: the first k that does not help is the end
    while sums[k] - sums[k + 1] > count:
        k += 1
    return k, (count * (k + 1) + sums[k] + 7) // 8


class _BitWriter:
    """Bits that come in parts, packed as they come."""

    def __init__(self, lead: int = 0):
        self._parts: list[np.ndarray] = []
        self._rest = np.zeros(lead, np.uint8)

    def write(self, bits: np.ndarray) -> None:
        bits = np.concatenate([self._rest, bits])
        whole = len(bits) // 8 * 8
        self._parts.append(np.packbits(bits[:whole]))
        self._rest = bits[whole:]

    def close(self) -> np.ndarray:
        return np.concatenate([*self._parts, np.packbits(self._rest)])


def rice_encode(gap_parts: Iterable[np.ndarray], count: int, k: int) -> np.ndarray:
    """All remainders modulo 2**k (k bits each), then all quotients in unary (zeros closed by a one), uint8.

    Args:
        gap_parts: the gaps, in parts.
        count: their number.
        k: the Rice parameter.

    Example:
        >>> rice_encode([np.array([1, 0]), np.array([2])], 3, 0)  # 01 1 001, and two bits of filling
        array([100], dtype=uint8)
    """
    remainders, quotients = _BitWriter(), _BitWriter(lead=count * k % 8)
    shifts = np.arange(k - 1, -1, -1)
    for part in gap_parts:
        for start in range(0, len(part), _CHUNK):
            gap = part[start : start + _CHUNK]
            if k:
                remainders.write(((gap[:, None] >> shifts) & 1).astype(np.uint8).reshape(-1))
            ends = np.cumsum((gap >> k) + 1) - 1  # where each quotient's closing one stands
            bits = np.zeros(ends[-1] + 1, np.uint8)
            bits[ends] = 1
            quotients.write(bits)
    first, second = remainders.close(), quotients.close()
    if count * k % 8:  # a byte they share
        second[0] |= first[-1]
        first = first[:-1]
    return np.concatenate([first, second])


def rice_decode(packed: np.ndarray, count: int, k: int, size: int) -> np.ndarray:
    """The inverse of ``rice_encode``, as live positions: int64, rising, (count,).

    Args:
        packed: exactly the bytes of this code, uint8.
        count: gaps in the code.
        k: the Rice parameter.
        size: positions of the tensor; no live one may lie beyond.

    Raises:
        ValueError: the bytes are not a code of ``count`` gaps, or a gap leads beyond the end.

    Example:
        >>> rice_decode(np.array([100], np.uint8), count=3, k=0, size=6)
        array([1, 2, 5])
    """
    if not 0 <= k <= max(size, 1).bit_length() or not 0 <= count <= size:
        raise ValueError(f"a Rice code of {count} gaps with parameter {k} for {size} positions")
    if count * (k + 1) > 8 * len(packed):
        raise ValueError(f"{len(packed)} bytes are too few for {count} gaps with parameter {k}")
    position = _quotients(packed, count, k)  # then, in place, gaps and positions
    if count and int(position.max()) > size >> k:
        raise ValueError("a gap leads beyond the end of the tensor")
    position <<= k
    weight = 1 << np.arange(k - 1, -1, -1)
    for start in range(0, count if k else 0, _CHUNK):
        stop = min(start + _CHUNK, count)
        bits = np.unpackbits(packed[start * k // 8 : (stop * k + 7) // 8], count=(stop - start) * k)
        position[start:stop] += bits.reshape(-1, k) @ weight
    position += 1
    np.cumsum(position, out=position)
    position -= 1
    if count and (int(position[-1]) >= size or int(position.min()) < 0):  # negative: the sum ran over 2**63
        raise ValueError("a gap leads beyond the end of the tensor")
    return position


def _quotients(packed: np.ndarray, count: int, k: int) -> np.ndarray:
    """The unary half of a Rice code: int64 (count,)."""
    quotient = np.empty(count, np.int64)
    found, before = 0, count * k - 1  # codes so far, and where the last one ends
    for start in range(count * k // 8, len(packed), _CHUNK):
        bits = np.unpackbits(packed[start : start + _CHUNK])
        bits[: max(count * k - 8 * start, 0)] = 0  # remainders
        ends = np.flatnonzero(bits) + 8 * start
        if found + len(ends) <= count:
            quotient[found : found + len(ends)] = np.diff(ends, prepend=before) - 1
        found, before = found + len(ends), ends[-1] if len(ends) else before
    if found != count:
        raise ValueError(f"{found} gaps where {count} are announced")
    if len(packed) != (int(before) + 8) // 8:
        raise ValueError("bytes behind the last gap")
    return quotient
