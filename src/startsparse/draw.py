"""Random draws that cost a seed: pure functions of (rule, seed, name), with random access, in integers alone.

All randomness is the raw output of Philox4x64-10 (a counter-based generator), keyed by a hash of the rule, the
seed and the layer's name. No floating-point sampler takes part, so a draw is bit-identical on every machine and
library version; ``docs/formats/drawn_masks.md`` writes the rules down, and golden hashes in the tests hold them.

- ``Permutation`` is an order of n positions that can be looked up in both directions without being stored. An exact
  draw keeps the first k positions of the order: draws of one seed are nested, and drawing k positions costs k.
- ``bernoulli`` decides each position for itself, by comparing its own 32-bit word with a threshold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

_STORED = 4096  # orders of at most so many positions are sorted and kept; larger ones are computed on look-up
_ROUNDS = 8
_CHUNK = 1 << 16  # positions computed at a time: the working arrays stay in the second-level cache


def key(rule: str, seed: int, name: str) -> int:
    """The 128-bit generator key of a draw.

    Example:
        >>> hex(key("exact", 0, "fc1.weight"))
        '0x6081bedea8147993cafacb6f5dd04e7e'
    """
    digest = hashlib.sha256(f"startsparse.draw.1|{rule}|{seed}|{name}".encode()).digest()
    return int.from_bytes(digest[:16], "little")


def words(generator_key: int, start: int, stop: int) -> np.ndarray:
    """Raw 64-bit integers number ``start`` up to ``stop`` of a key's stream, shape (stop - start,), uint64."""
    block, skip = divmod(start, 4)
    stream = np.random.Philox(key=generator_key, counter=block)
    return np.atleast_1d(stream.random_raw(stop - start + skip))[skip:]


class Permutation:
    """A pseudo-random order of the positions 0 .. size-1 that is computed where it is looked at.

    Small orders sort one generator word per position. Large ones run a Feistel network (8 rounds of a 32-bit
    mixing function over the smallest power of two that holds ``size``) and walk the cycle back into range, so a
    layer of billions of positions needs no memory.

    Example:
        >>> order = Permutation(6, "exact", 0, "fc1.weight")
        >>> order.positions(0, 6)
        array([1, 3, 4, 5, 0, 2])
        >>> order.ranks(np.array([1, 3]))
        array([0, 1])
    """

    def __init__(self, size: int, rule: str, seed: int, name: str):
        self.size = size
        generator_key = key(rule, seed, name)
        if size <= _STORED:
            self._order = np.argsort(words(generator_key, 0, size), kind="stable")
            self._ranks = np.argsort(self._order)
            return
        self._order = self._ranks = None
        bits = (size - 1).bit_length()
        self._high, self._low = bits // 2, bits - bits // 2
        raw = words(generator_key, 0, _ROUNDS // 2)
        keys = [np.uint32(raw[i // 2] >> np.uint64(32 * (i % 2)) & 0xFFFFFFFF) for i in range(_ROUNDS)]
        self._rounds = [(i % 2 == 0, round_key) for i, round_key in enumerate(keys)]

    def positions(self, start: int, stop: int) -> np.ndarray:
        """The positions at places ``start`` .. ``stop`` - 1 of the order, int64."""
        if self._order is not None:
            return self._order[start:stop]
        return self._map(lambda lo, hi: np.arange(start + lo, start + hi), stop - start, self._rounds[::-1])

    def ranks(self, positions: np.ndarray) -> np.ndarray:
        """The place of each position in the order, int64: the inverse of ``positions``."""
        if self._ranks is not None:
            return self._ranks[positions]
        return self._map(lambda lo, hi: positions[lo:hi], len(positions), self._rounds)

    def first(self, positions: np.ndarray, count: int) -> np.ndarray:
        """Those ``count`` of the given positions that come first in the order, in rising position."""
        if count >= len(positions):
            return positions
        ranks = self.ranks(positions)
        return positions[ranks <= np.partition(ranks, count - 1)[count - 1]] if count else positions[:0]

    def first_where(self, allowed: Callable[[np.ndarray], np.ndarray], count: int) -> np.ndarray:
        """The ``count`` positions that come first in the order among those ``allowed``, in rising position.

        Walks the order until there are enough: costs little where many positions are allowed.

        Args:
            allowed: positions -> bool, elementwise; at least ``count`` positions must be allowed.

        Example:
            >>> Permutation(6, "exact", 0, "fc1.weight").first_where(lambda p: p % 2 == 1, 2)
            array([1, 3])
        """
        found: list[np.ndarray] = [np.empty(0, np.int64)]
        start, missing, part = 0, count, max(count + count // 8, 1024)  # nearly all are, as a rule
        while missing > 0:
            if start >= self.size:
                raise ValueError(f"only {count - missing} of {count} positions are allowed")
            part_positions = self.positions(start, min(start + part, self.size))
            taken = part_positions[np.flatnonzero(allowed(part_positions))[:missing]]
            found.append(taken)
            missing -= len(taken)
            start, part = start + part, 2 * part
        return np.sort(np.concatenate(found))

    def _map(self, part: Callable[[int, int], np.ndarray], count: int, rounds: _Rounds) -> np.ndarray:
        """Push values through the network, in chunks, and again those that left the range, until none is outside."""
        network = _Network(self._high, self._low, rounds)
        out = np.empty(count, np.int64)
        for lo in range(0, count, _CHUNK):
            hi = min(lo + _CHUNK, count)
            network(part(lo, hi), out[lo:hi])
        outside = np.flatnonzero(out >= self.size)
        while len(outside):  # walking the cycle until it re-enters the range makes a permutation of the range
            values = out[outside]
            for lo in range(0, len(values), _CHUNK):
                network(values[lo : lo + _CHUNK], values[lo : lo + _CHUNK])
            out[outside] = values
            outside = outside[values >= self.size]
        return out


_Rounds = list[tuple[bool, np.uint32]]  # whether the low half changes, and the round's key


class _Network:
    """The Feistel network on int64 arrays of at most ``_CHUNK`` values, in buffers that are used again."""

    def __init__(self, high: int, low: int, rounds: _Rounds):
        self._bits, self._rounds = {True: low, False: high}, rounds
        self._shift, self._mask = np.int64(low), np.int64((1 << low) - 1)
        self._buffers = [np.empty(_CHUNK, np.uint32) for _ in range(4)]
        self._wide = np.empty(_CHUNK, np.int64)

    def __call__(self, values: np.ndarray, out: np.ndarray) -> None:
        """``out`` = the network of ``values``; both may be the same array."""
        n = len(values)
        high, low, mixed, moved = (buffer[:n] for buffer in self._buffers)
        wide = self._wide[:n]
        np.right_shift(values, self._shift, out=wide)
        high[:] = wide
        np.bitwise_and(values, self._mask, out=wide)
        low[:] = wide
        for changes_low, round_key in self._rounds:
            target, other = (low, high) if changes_low else (high, low)
            _mix(other, round_key, self._bits[changes_low], mixed, moved)
            np.bitwise_xor(target, mixed, out=target)
        out[:] = high
        np.left_shift(out, self._shift, out=out)
        np.bitwise_or(out, low, out=out)


def _mix(half: np.ndarray, round_key: np.uint32, bits: int, x: np.ndarray, moved: np.ndarray) -> None:
    """The round function: 32-bit multiply and shift; ``x`` = ``bits`` top bits of the result, ``moved`` is scratch."""
    np.multiply(half, np.uint32(0x9E3779B1), out=x)
    np.add(x, round_key, out=x)
    np.right_shift(x, np.uint32(16), out=moved)
    np.bitwise_xor(x, moved, out=x)
    np.multiply(x, np.uint32(0x85EBCA6B), out=x)
    np.right_shift(x, np.uint32(13), out=moved)
    np.bitwise_xor(x, moved, out=x)
    np.multiply(x, np.uint32(0xC2B2AE35), out=x)
    np.right_shift(x, np.uint32(32 - bits), out=x)


def exact(size: int, count: int, seed: int, name: str) -> np.ndarray:
    """A mask of exactly ``count`` active positions, uniformly drawn, shape (size,), bool.

    Masks of one seed and name are nested: a larger count keeps all that a smaller one drew.

    Example:
        >>> exact(6, 2, 0, "fc1.weight")
        array([False,  True, False,  True, False, False])
    """
    order = Permutation(size, "exact", seed, name)
    few = count <= size // 2
    mask = np.full(size, not few)
    mask[order.positions(0, count) if few else order.positions(count, size)] = few
    return mask


def exact_part(size: int, count: int, seed: int, name: str, start: int, stop: int) -> np.ndarray:
    """Positions ``start`` .. ``stop`` - 1 of ``exact(size, count, seed, name)``, without drawing the rest."""
    return Permutation(size, "exact", seed, name).ranks(np.arange(start, stop)) < count


def bernoulli(
    size: int, density: float, seed: int, name: str, start: int = 0, stop: int | None = None
) -> np.ndarray:
    """A mask whose positions are active independently with probability ``density``, bool.

    Position i is active when its 32-bit word is below ``floor(density * 2**32)``: word i is the low (i even) or
    high (i odd) half of raw integer i // 2. ``start`` and ``stop`` draw a part without the whole.

    Example:
        >>> whole = bernoulli(1000, 0.3, 7, "conv1.weight")
        >>> bool((whole[100:200] == bernoulli(1000, 0.3, 7, "conv1.weight", 100, 200)).all())
        True
    """
    stop = size if stop is None else stop
    generator_key = key("bernoulli", seed, name)
    threshold = int(density * 2**32)  # exact: a float times a power of two, then truncated
    if threshold >= 2**32:
        return np.ones(stop - start, bool)
    out = np.empty(stop - start, bool)
    for lo in range(start, stop, 8 * _CHUNK):
        hi = min(lo + 8 * _CHUNK, stop)
        pairs = words(generator_key, lo // 2, (hi + 1) // 2).astype("<u8").view("<u4")
        out[lo - start : hi - start] = pairs[lo % 2 : lo % 2 + hi - lo] < threshold
    return out


@dataclass(frozen=True)
class Drawn:
    """A mask that costs a seed: everything needed to draw it again.

    Args:
        rule: "exact" (``count`` positions) or "bernoulli" (each with probability ``density``).
        name: the layer's name, part of the key.
        size: number of positions.
    """

    rule: str
    seed: int
    name: str
    size: int
    count: int | None = None
    density: float | None = None

    def mask(self, inside: np.ndarray | None = None) -> np.ndarray:
        """The mask, flat bool of ``size``; with ``inside`` (flat bool), a draw from those positions alone.

        An exact draw takes the first ``count`` positions of the order that lie inside.
        """
        if self.rule == "bernoulli":
            drawn = bernoulli(self.size, float(self.density or 0.0), self.seed, self.name)
            return drawn if inside is None else drawn & inside
        count = int(self.count or 0)
        if inside is None:
            return exact(self.size, count, self.seed, self.name)
        chosen = Permutation(self.size, "exact", self.seed, self.name).first(np.flatnonzero(inside), count)
        mask = np.zeros(self.size, bool)
        mask[chosen] = True
        return mask

    def nests_in(self, source: Drawn | None) -> bool:
        """Whether drawing inside ``source`` gives the same mask as drawing anywhere: both take the same order."""
        same = source is not None and (source.seed, source.name, source.size) == (
            self.seed,
            self.name,
            self.size,
        )
        return same and self.rule == "exact" and source.rule == "exact"  # type: ignore[union-attr]

    def positions(self) -> np.ndarray:
        """The active positions, rising, int64; an exact draw needs no memory for the others."""
        if self.rule == "exact":
            return np.sort(
                Permutation(self.size, "exact", self.seed, self.name).positions(0, int(self.count or 0))
            )
        return np.flatnonzero(self.mask())

    def as_dict(self) -> dict[str, int | float | str]:
        """The fields that are set, as plain data."""
        return {key: value for key, value in asdict(self).items() if value is not None}
