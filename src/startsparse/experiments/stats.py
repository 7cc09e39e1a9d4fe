"""What a handful of paired runs can tell: intervals, exact tests, and one word for it.

Two nets trained with the same seed share initial weights, order of the examples and split, so their difference is
one number per seed. Everything here works on those differences, and is deterministic.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from startsparse.training.names import require

Array = NDArray[np.float64]

FEWEST = 5  # seeds below which nothing is decided: the signs say too little there
ENUMERATED = 7  # seeds up to which every resample is gone through
DRAWN = 20_000  # resamples beyond
EXACT_SIGNS = 20  # seeds up to which every sign pattern is gone through


@dataclass(frozen=True)
class Difference:
    """A mean paired difference and what may be said of it.

    Attributes:
        mean: over the seeds.
        low, high: its interval; infinite for one seed.
        confidence: of the interval.
        p: two-sided, of the paired t test; after ``holm_all`` adjusted for a family.
        p_signs: two-sided, of the exact sign-flip test; at least 2 / 2**seeds.
        seeds: differences that went in.
        adjusted: for how many comparisons ``p`` is adjusted.
    """

    mean: float
    low: float
    high: float
    confidence: float
    p: float
    p_signs: float
    seeds: int
    adjusted: int = 1

    @property
    def verdict(self) -> str:
        """``"higher"``, ``"lower"``, ``"same"`` or ``"cannot tell"``.

        Decided where all agree: the interval leaves zero out, ``p`` is at most 1 - confidence, and so is ``p_signs``,
        or it is the smallest that so few seeds can give (1/16 with five: all five have one sign). Below five seeds
        nothing is decided.
        """
        alpha = 1 - self.confidence + 1e-12
        if self.low == self.high == 0:
            return "same"
        signs = self.p_signs <= max(alpha, 2.0 ** (1 - self.seeds))
        if self.seeds < FEWEST or self.low <= 0 <= self.high or self.p > alpha or not signs:
            return "cannot tell"
        return "higher" if self.mean > 0 else "lower"

    def judge(self, higher_is_better: bool = True) -> str:
        """``"better"``, ``"worse"``, ``"same"`` or ``"cannot tell with n seeds"``."""
        if self.verdict == "cannot tell":
            return f"cannot tell with {self.seeds} seed{'s' * (self.seeds != 1)}"
        if self.verdict == "same":
            return "same"
        return "better" if (self.verdict == "higher") == higher_is_better else "worse"


def paired(differences: ArrayLike, confidence: float = 0.95) -> Difference:
    """The mean of paired differences, its interval and its tests.

    The interval is that of the bootstrap (percentiles of the means of resamples), widened about the mean by
    t / z * sqrt(n / (n - 1)), z and t being quantiles of the normal law and of Student's: as it stands, it is far too
    narrow for a handful of seeds (85 % instead of 95 with five). Up to seven seeds every resample is gone through,
    beyond them a fixed draw is used, so equal differences give equal intervals.

    Args:
        differences: one per seed, of any unit.
        confidence: of the interval, two-sided, in (0, 1).

    Raises:
        ValueError: no differences, or one that is no finite number.

    References:
        Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician 2015 (narrowness of the
        percentile interval in small samples, and its expansion).

    Fidelity:
        The width is expanded, not the percentiles, which cannot reach beyond the smallest and largest difference.

    Example:
        >>> found = paired([0.012, 0.015, 0.011, 0.016, 0.013])
        >>> round(found.mean, 4), round(found.low, 4), round(found.high, 4), found.p_signs, found.judge()
        (0.0134, 0.0109, 0.0159, 0.0625, 'better')
        >>> paired([0.012, -0.015, 0.011, 0.016, 0.013]).judge()
        'cannot tell with 5 seeds'
    """
    values = np.asarray(differences, dtype=np.float64).reshape(-1)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(
            f"differences must be finite numbers, at least one, got {np.asarray(differences).tolist()}"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    mean, signs = float(values.mean()), sign_flip(values)
    spread = float(values.std(ddof=1)) if len(values) > 1 else math.inf
    if (
        spread <= 1e-12 * abs(mean) or spread == 0
    ):  # all alike: no spread to learn from, the signs alone count
        return Difference(mean, mean, mean, confidence, signs, signs, len(values))
    if len(values) == 1:
        return Difference(mean, -math.inf, math.inf, confidence, 1.0, signs, 1)
    count = len(values)
    wider = _wider(count, confidence)
    copies, weights = _resamples(count)
    off = np.round(copies @ ((values - mean) / spread) / count, 12)  # rounded: equal on paper, equal here
    low = mean - _upper(-off, weights, (1 - confidence) / 2) * spread * wider
    high = mean + _upper(off, weights, (1 - confidence) / 2) * spread * wider
    special = require("scipy.special", "comparing runs")
    student = special.stdtr(count - 1, -abs(mean) / spread * math.sqrt(count))
    return Difference(mean, float(low), float(high), confidence, float(2 * student), signs, count)


@functools.lru_cache(maxsize=64)
def _wider(count: int, confidence: float) -> float:
    """How many times wider the bootstrap's interval must be for so few values."""
    law, tail = require("scipy.stats", "comparing runs"), (1 - confidence) / 2
    return float(law.t.isf(tail, count - 1) / law.norm.isf(tail) * math.sqrt(count / (count - 1)))


def _upper(values: Array, weights: Array, share: float) -> float:
    """The smallest value with at most ``share`` of the weight strictly above it."""
    order = np.argsort(values)
    above = 1 - np.cumsum(weights[order])
    return float(values[order][np.argmax(above <= share + 1e-12)])


@functools.lru_cache(maxsize=32)
def _resamples(count: int) -> tuple[Array, Array]:
    """How often each value is in each resample, (resamples, count), and the probability of each."""
    if count > ENUMERATED:
        drawn = np.random.Generator(np.random.Philox(count)).multinomial(count, [1 / count] * count, DRAWN)
        return drawn.astype(np.float64), np.full(DRAWN, 1 / DRAWN)
    rows = [
        np.bincount(chosen, minlength=count)
        for chosen in itertools.combinations_with_replacement(range(count), count)
    ]
    ways = [math.factorial(count) / math.prod(math.factorial(int(times)) for times in row) for row in rows]
    return np.array(rows, dtype=np.float64), np.array(ways) / count**count


def sign_flip(differences: ArrayLike) -> float:
    """Exact two-sided p of the mean, if each difference might as well have had the other sign.

    It assumes nothing but that: no normal law, no spread. Its smallest value is 2 / 2**n, 1/16 for five seeds. Beyond
    20 seeds a fixed draw of sign patterns stands for all.

    References:
        Fisher, The Design of Experiments, 1935, section 21.

    Example:
        >>> sign_flip([1, 2, 3, 4, 5]), sign_flip([1, 1, 1, 1, 1, -1]), sign_flip([1, -1])
        (0.0625, 0.21875, 1.0)
    """
    values = np.asarray(differences, dtype=np.float64).reshape(-1)
    slack = 1e-9 * np.abs(values).sum()
    seen = abs(values.sum()) - slack
    if len(values) <= EXACT_SIGNS:
        sums = np.zeros(1)
        for value in values:
            sums = np.concatenate([sums + value, sums - value])
        return float(np.mean(np.abs(sums) >= seen))
    signs = np.random.Generator(np.random.Philox(len(values))).integers(0, 2, (DRAWN, len(values))) * 2 - 1
    return float((1 + np.sum(np.abs(signs @ values) >= seen)) / (1 + DRAWN))


def holm(p_values: Sequence[float]) -> list[float]:
    """p values of a family, adjusted so that the chance of any false alarm in it stays below the level.

    References:
        Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 1979.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def holm_all(found: Sequence[Difference]) -> list[Difference]:
    """The same differences with ``p`` adjusted for being a family; intervals stay those of one comparison.

    Example:
        >>> alone = paired([0.3, 0.2, 0.25, 0.1, 0.3])
        >>> holm_all([alone, alone])[0].p == 2 * alone.p
        True
    """
    adjusted = holm([one.p for one in found])
    return [replace(one, p=p, adjusted=len(found)) for one, p in zip(found, adjusted, strict=True)]
