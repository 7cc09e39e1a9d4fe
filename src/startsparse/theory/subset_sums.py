"""Random subset sums: which of some given numbers add up to a wanted one, exactly solved.

References:
    Lueker, Exponentially small bounds on the expected optimum of the partition and subset sum problems, 1998.
    Pensia et al., Optimal lottery tickets via subset sum, NeurIPS 2020, https://arxiv.org/abs/2006.07990
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import numpy as np

from .widths import check_density

MOST = 40  # numbers of one problem: two halves of a million sums each
CONSTANT = 2.7  # measured: 12 active numbers for tolerance 0.01 in 95 % of problems are 2.6 log(1 / 0.01)


def closest(values: np.ndarray, wanted: float) -> tuple[np.ndarray, float]:
    """The subset whose sum is nearest to ``wanted``: all 2^n of them are considered, in 2^(n/2) steps.

    Args:
        values: (n,), at most 40.
        wanted: the sum.

    Returns:
        Indices of the subset, and how far its sum is off.

    Raises:
        ValueError: more than 40 numbers.

    Example:
        >>> chosen, error = closest(np.array([0.5, -0.3, 0.9, 0.2]), 0.6)
        >>> chosen, error < 1e-12
        (array([1, 2]), True)
    """
    if len(values) > MOST:
        raise ValueError(f"subset sums of at most {MOST} numbers are solved exactly, got {len(values)}")
    half = len(values) // 2
    first, second = _sums(values[:half]), _sums(values[half:])
    order = np.argsort(second)
    ranked = second[order]
    above = np.searchsorted(ranked, wanted - first)
    sides = [np.clip(above - side, 0, len(ranked) - 1) for side in (0, 1)]
    errors = np.stack([np.abs(first + ranked[side] - wanted) for side in sides])
    which, at = np.unravel_index(errors.argmin(), errors.shape)
    code = int(at) | int(order[sides[int(which)][at]]) << half
    chosen = np.array([i for i in range(len(values)) if code >> i & 1], np.int64)
    return chosen, abs(math.fsum(values[chosen]) - wanted)


def solve(values: np.ndarray, wanted: float, tolerance: float) -> np.ndarray | None:
    """A subset that adds up to ``wanted`` within ``tolerance``, or None where there is none.

    Few numbers are preferred, and of those small ones: what they multiply has errors of its own. Subsets of up to three
    are tried first, then all.

    Example:
        >>> solve(np.array([0.5, -0.3, 0.9, 0.2]), 0.1, 0.01) is None
        True
        >>> solve(np.array([0.5, -0.3, 0.9, 0.2]), -0.1, 0.01)
        array([1, 3])
    """
    if abs(wanted) <= tolerance:
        return np.empty(0, np.int64)
    for size in (1, 2, 3):
        subsets = _subsets(len(values), size)
        picked = values[subsets]
        near = np.flatnonzero(np.abs(picked.sum(axis=1) - wanted) <= tolerance)
        if len(near):
            return subsets[near[np.abs(picked[near]).sum(axis=1).argmin()]]
    chosen, error = closest(values, wanted)
    return chosen if error <= tolerance else None


def numbers_needed(density: float, tolerance: float, delta: float) -> int:
    """How many numbers, each there with probability ``density``, a subset sum needs: C / p * log(1 / min(eps, delta)).

    Args:
        density: p.
        tolerance: eps, in units of the numbers' range.
        delta: probability that there is no such subset.

    References:
        Gadhikar et al. 2023, lemma 2.4. Derived here and measured: the lemma is recalled with 1 / log(1 / (1 - p)) in the
        place of 1 / p, which cannot hold near p = 1, where even a full set needs log(1 / eps) numbers.

    Example:
        >>> [numbers_needed(p, 0.01, 0.05) for p in (1.0, 0.5, 0.3)]
        [13, 25, 42]
    """
    return math.ceil(CONSTANT / check_density(density) * math.log(1 / min(tolerance, delta, 0.5)))


def numbers_safe(density: float, tolerance: float, delta: float, products: bool = False) -> int:
    """A number that also holds for small delta: enough of them are there, and those that are there do.

    Args:
        density: probability that a number is there.
        tolerance: in units of the numbers' range.
        delta: probability that there is no such subset.
        products: of two uniform numbers each, which lie closer to zero: one and a half times as many are taken.

    References:
        Derived here: Lueker's count for those that are there, and the exact binomial tail for how many are.

    Example:
        >>> numbers_safe(1.0, 0.01, 0.05), numbers_safe(0.5, 0.01, 0.05), numbers_safe(0.5, 0.01, 0.0005)
        (13, 37, 70)
    """
    there = math.ceil((1.5 if products else 1.0) * CONSTANT * math.log(1 / min(tolerance, delta, 0.5)))
    number = there
    while _fewer(number, there, check_density(density)) > delta / 2:
        number += 1
    return number


def _fewer(number: int, there: int, density: float) -> float:
    """Probability that fewer than ``there`` of ``number`` are there."""
    if density == 1:
        return float(number < there)
    odds, term, total = density / (1 - density), number * math.log1p(-density), 0.0
    for k in range(there):
        total += math.exp(term)
        term += math.log((number - k) / (k + 1) * odds)
    return total


def _sums(values: np.ndarray) -> np.ndarray:
    """The sums of all subsets; bit i of the place says whether number i is in it."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums, sums + value])
    return sums


@lru_cache(maxsize=128)
def _subsets(number: int, size: int) -> np.ndarray:
    found = np.array(list(itertools.combinations(range(number), size)), np.int64)
    return found.reshape(-1, size)
