"""Masks to bytes and back, in integers: one bit a position, or Golomb-Rice coded gaps between live positions.

Pure numpy over whole arrays. The bit orders are those of ``docs/formats/compact_file.md``. Decoders trust nothing:
they raise ``ValueError`` on whatever an encoder would not have written.
"""

from __future__ import annotations

import numpy as np

_CHUNK = 1 << 20  # remainders whose bits are spread out at a time


def pack_bits(mask: np.ndarray) -> np.ndarray:
    """One bit a position, the first in the highest bit: bool (size,) -> uint8 (ceil(size / 8),).

    Example:
        >>> pack_bits(np.array([True, False, False, False, False, False, False, True, True]))
        array([129, 128], dtype=uint8)
    """
    return np.packbits(mask)


def unpack_bits(packed: np.ndarray, size: int) -> np.ndarray:
    """The inverse of ``pack_bits``: bool (size,).

    Raises:
        ValueError: another number of bytes, or bits set behind the last position.
    """
    if len(packed) != (size + 7) // 8:
        raise ValueError(f"{len(packed)} bytes for a mask of {size} bits")
    if size % 8 and packed[-1] & (0xFF >> size % 8):
        raise ValueError("bits are set behind the last position")
    return np.unpackbits(packed, count=size).view(bool)


def gaps(mask: np.ndarray) -> np.ndarray:
    """Dead positions before each live one since the live one before it: bool (size,) -> int64 (count,).

    Example:
        >>> gaps(np.array([False, True, True, False, False, True]))
        array([1, 0, 2])
    """
    return np.diff(np.flatnonzero(mask), prepend=-1) - 1


def rice_parameter(gap: np.ndarray) -> tuple[int, int]:
    """The parameter k whose Rice code of these gaps is shortest (the smallest of equals), and its length in bytes.

    Example:
        >>> rice_parameter(np.array([1, 0, 2]))
        (0, 1)
        >>> rice_parameter(np.array([17, 20, 15, 19]))
        (3, 3)
    """
    k, bits = 0, len(gap) + int(gap.sum())
    quotient = gap
    while True:  # the length is convex in k: the first k that does not help is the end
        quotient = quotient >> 1
        longer = len(gap) * (k + 2) + int(quotient.sum())
        if longer >= bits:
            return k, (bits + 7) // 8
        k, bits = k + 1, longer


def rice_encode(gap: np.ndarray, k: int) -> np.ndarray:
    """All remainders modulo 2**k (k bits each), then all quotients in unary (zeros closed by a one), uint8.

    Example:
        >>> rice_encode(np.array([1, 0, 2]), 0)  # 01 1 001, and two bits of filling
        array([100], dtype=uint8)
    """
    count = len(gap)
    ends = np.cumsum((gap >> k) + 1) - 1  # where each quotient's closing one stands
    bits = np.zeros(count * k + (int(ends[-1]) + 1 if count else 0), np.uint8)
    shifts = np.arange(k - 1, -1, -1)
    for lo in range(0, count if k else 0, _CHUNK):
        part = gap[lo : lo + _CHUNK, None]
        bits[lo * k : (lo + len(part)) * k] = ((part >> shifts) & 1).reshape(-1)
    bits[count * k + ends] = 1
    return np.packbits(bits)


def rice_decode(packed: np.ndarray, count: int, k: int, size: int) -> np.ndarray:
    """The inverse of ``rice_encode``, as a mask: bool (size,) with ``count`` live positions.

    Args:
        packed: exactly the bytes of this code, uint8.
        count: gaps in the code.
        k: the Rice parameter.
        size: positions of the mask; no live one may lie beyond.

    Raises:
        ValueError: the bytes are not a code of ``count`` gaps, or a gap leads beyond the end.

    Example:
        >>> rice_decode(np.array([100], np.uint8), count=3, k=0, size=6)
        array([False,  True,  True, False, False,  True])
    """
    if not 0 <= k <= max(size, 1).bit_length() or not 0 <= count <= size:
        raise ValueError(f"a Rice code of {count} gaps with parameter {k} for {size} positions")
    if count * (k + 1) > 8 * len(packed):
        raise ValueError(f"{len(packed)} bytes are too few for {count} gaps with parameter {k}")
    bits = np.unpackbits(packed)
    ends = np.flatnonzero(bits[count * k :])
    if len(ends) != count:
        raise ValueError(f"{len(ends)} gaps where {count} are announced")
    if len(packed) != (count * k + (int(ends[-1]) + 1 if count else 0) + 7) // 8:
        raise ValueError("bytes behind the last gap")
    position = np.diff(ends, prepend=-1) - 1  # the quotients; then, in place, gaps and positions
    if count and int(position.max()) > size >> k:
        raise ValueError("a gap leads beyond the end of the tensor")
    position <<= k
    weight = 1 << np.arange(k - 1, -1, -1)
    for lo in range(0, count if k else 0, _CHUNK):
        hi = min(lo + _CHUNK, count)
        position[lo:hi] += bits[lo * k : hi * k].reshape(-1, k) @ weight
    position += 1
    np.cumsum(position, out=position)
    position -= 1
    if count and (int(position[-1]) >= size or int(position.min()) < 0):  # negative: the sum ran over 2**63
        raise ValueError("a gap leads beyond the end of the tensor")
    mask = np.zeros(size, bool)
    mask[position] = True
    return mask
