"""How wide a random source must be: width factors, their lower bound, and exact probabilities of success.

A source whose positions are active independently with density p holds ``q`` copies of every unit of a target. Each
copy of a unit needs, for each of its incoming weights, an active position to one of the copies at the other end:
it misses all of them with probability ``(1 - p) ** q``. Everything here follows from that one line.

References:
    Gadhikar, Mukherjee, Burkholz: Why Random Pruning Is All We Need to Start Sparse, ICML 2023, section 2,
    https://arxiv.org/abs/2210.02412

Fidelity:
    The theorems are stated as recalled from the paper, whose text was not at hand; their proofs were done again here,
    and the tests compare the closed forms with draws. Constants of the paper may differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


def check_density(density: object, what: str = "density") -> float:
    """The density, if it is in (0, 1]."""
    if isinstance(density, bool) or not isinstance(density, int | float) or not 0 < density <= 1:
        raise ValueError(f"{what} must be in (0, 1], got {density!r}")
    return float(density)


def check_probability(value: float, what: str = "delta") -> float:
    """The probability, if it is in (0, 1)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ValueError(f"{what} must be in (0, 1), got {value!r}")
    return float(value)


def rarity(density: float) -> float:
    """log(1 / (1 - density)): what each further copy takes off the logarithm of the failure probability.

    Example:
        >>> [round(1 / rarity(p), 2) for p in (0.5, 0.3, 0.1, 0.05, 0.01)]
        [1.44, 2.8, 9.49, 19.5, 99.5]
    """
    return math.inf if density == 1 else -math.log1p(-density)


@dataclass(frozen=True)
class Link:
    """One weight layer of a target: how many weights it has, how dense the source is there, and what it joins.

    Args:
        weights: non-zero weights of the target's layer (for a convolution, filter taps).
        density: of the source's layer.
        reads: name of the group of units it reads; groups that an addition ties together share a name.
        writes: name of the group of units it writes.
    """

    weights: int
    density: float
    reads: str
    writes: str


def factors(links: Sequence[Link], delta: float, events: int, fixed: Mapping[str, int]) -> dict[str, int]:
    """The smallest copies per unit, by group, for which every link fails with probability delta / events at most.

    Args:
        links: the target's weight layers.
        delta: failure probability to be shared.
        events: into how many equal shares.
        fixed: groups whose number of copies is given (the output: 1).
    """
    copies = {name: 1 for link in links for name in (link.reads, link.writes)} | dict(fixed)
    changed = True
    while changed:  # one pass for a chain; a few where groups are tied, each a logarithm of the last
        changed = False
        for link in reversed(links):
            if link.reads in fixed or link.weights == 0:
                continue
            needed = math.log(events * link.weights * copies[link.writes] / delta) / rarity(link.density)
            needed = max(1, math.ceil(needed - 1e-12))
            if needed > copies[link.reads]:
                copies[link.reads], changed = needed, True
    return copies


def chain(weights: Sequence[int], density: float | Sequence[float]) -> list[Link]:
    """Links of a plain feed-forward target: its layers' weights, in order, each reading what the last one wrote."""
    densities = [density] * len(weights) if isinstance(density, int | float) else list(density)
    if len(densities) != len(weights) or not weights:
        raise ValueError(f"{len(weights)} layers need as many densities, got {len(densities)}")
    for count in weights:
        if count < 0:
            raise ValueError(f"a layer has a number of weights, got {count}")
    return [
        Link(count, check_density(p), str(i), str(i + 1))
        for i, (count, p) in enumerate(zip(weights, densities, strict=True))
    ]


def width_factors(weights: Sequence[int], density: float | Sequence[float], delta: float = 0.1) -> list[int]:
    """Copies of every unit, input to output, with which a random source of L + 1 layers holds a target of L.

    ``q[l-1] = ceil(log(L * weights[l] * q[l] / delta) / log(1 / (1 - p[l])))``, computed backwards from ``q[L] = 1``.
    The source has one layer more than the target because inputs cannot be copied: its first layer makes the
    ``q[0]`` copies of each input.

    Args:
        weights: non-zero weights of each layer of the target, first to last.
        density: of the source, one number or one a layer.
        delta: the probability of failure that is allowed.

    Returns:
        L + 1 integers; the last is 1.

    References:
        Gadhikar et al. 2023, theorem 2.2 (2.1 for two layers), as recalled; derived again here: each event has
        probability ``(1 - p) ** q``, and the union bound over ``weights * q`` events in each of L layers gives delta.

    Example:
        >>> width_factors([10_000, 10_000], 0.5, delta=0.05)
        [23, 19, 1]
    """
    links = chain(weights, density)
    last = str(len(links))
    copies = factors(links, check_probability(delta), len(links), {last: 1})
    return [copies[str(i)] for i in range(len(links) + 1)]


def log_success(links: Sequence[Link], copies: Callable[[str], int]) -> float:
    """Natural logarithm of the probability that every copy of every unit finds all its parents."""
    total = 0.0
    for link in links:
        miss = -rarity(link.density) * copies(link.reads)
        if link.weights:
            total += link.weights * copies(link.writes) * math.log1p(-math.exp(miss))
    return total


def success_probability(
    weights: Sequence[int], density: float | Sequence[float], copies: Sequence[int]
) -> float:
    """The exact probability that *every* copy of every unit finds all its parents: no bound, a closed form.

    Events of different (copy, weight) look at different positions, hence are independent. A target is held in more
    cases than these, since a copy that fails may not be needed.

    Args:
        weights: non-zero weights of each layer of the target.
        density: of the source.
        copies: of every unit, input to output, one number more than layers.

    References:
        Derived here, from the construction of theorem 2.2.

    Example:
        >>> round(success_probability([40, 64, 24], 0.5, [15, 15, 10, 1]), 4)
        0.9405
    """
    links = chain(weights, density)
    if len(copies) != len(links) + 1 or min(copies) < 1:
        raise ValueError(
            f"{len(links)} layers need {len(links) + 1} positive numbers of copies, got {list(copies)}"
        )
    return math.exp(log_success(links, lambda name: copies[int(name)]))


def lower_bound(inputs: int, density: float, delta: float = 0.1) -> float:
    """Below this width, a source with one hidden layer misses some target with probability delta at least.

    The target is one unit that reads all inputs; each input needs one active position into the hidden layer.

    Args:
        inputs: number of inputs, d.
        density: of the layer that reads them.
        delta: probability of failure.

    Returns:
        ``log(1 / (1 - (1 - delta) ** (1 / d))) / log(1 / (1 - density))``, about log(d / delta) / log(1 / (1 - density)).

    References:
        Gadhikar et al. 2023, theorem 2.3, as recalled; derived again here.

    Example:
        >>> round(lower_bound(100, 0.3), 2)
        19.22
    """
    each = -math.expm1(math.log1p(-check_probability(delta)) / inputs)
    return -math.log(each) / rarity(check_density(density))


def hidden_layer_success(inputs: int, width: int, density: float, output_density: float = 1.0) -> float:
    """The exact probability that every input reaches the output through a random hidden layer.

    With ``output_density`` below 1, a hidden unit counts if its own output position is active: the number of those
    is binomial.

    Example:
        >>> [round(hidden_layer_success(100, n, 0.3), 3) for n in (19, 20)]
        [0.892, 0.923]
    """
    for p in (density, output_density):
        _ = check_density(p)
    used = np.arange(width + 1)
    log_weight = np.array(
        [math.lgamma(width + 1) - math.lgamma(k + 1) - math.lgamma(width - k + 1) for k in used]
    )
    if output_density < 1:
        log_weight += used * math.log(output_density) + (width - used) * math.log1p(-output_density)
        weight = np.exp(log_weight)
    else:
        weight = (used == width).astype(float)
    return float(weight @ (1 - (1 - density) ** used) ** inputs)


def input_units(inputs: int, density: float, copies: int, delta: float) -> int:
    """How many units a random first layer needs so that each input can be given ``copies`` units that see it.

    A unit can stand for any one input it sees. By Hall's theorem this fails only if some set of ``a`` inputs is seen by
    fewer than ``a * copies`` units; those are binomial, bounded by Chernoff, and added up over all sets.

    Args:
        inputs: number of inputs.
        density: of the first layer.
        copies: units wanted for each input.
        delta: probability of failure.

    References:
        Derived here: the paper is recalled to take the first layer as given.

    Example:
        >>> input_units(784, 0.3, 56, 0.025) == 784 * 56, input_units(5, 0.3, 20, 0.025)
        (True, 135)
    """
    sets = np.arange(1, inputs + 1)
    log_sets = np.array(
        [math.lgamma(inputs + 1) - math.lgamma(a + 1) - math.lgamma(inputs - a + 1) for a in sets]
    )
    low, high = inputs * copies, inputs * copies
    while _hall(sets, log_sets, copies, rarity(check_density(density)), high) > delta:
        low, high = high + 1, 2 * high
    while low < high:
        middle = (low + high) // 2
        if _hall(sets, log_sets, copies, rarity(density), middle) > delta:
            low = middle + 1
        else:
            high = middle
    return high


def _hall(sets: np.ndarray, log_sets: np.ndarray, copies: int, rare: float, units: int) -> float:
    """Union bound over all sets of inputs that too few of ``units`` units see."""
    blind = -sets * rare  # log of the probability that a unit sees none of a set
    share = (sets * copies - 1) / units
    with np.errstate(divide="ignore", invalid="ignore"):
        away = np.where(share < 1, (1 - share) * (np.log1p(-share) - blind), 0.0)
        divergence = share * (np.log(share) - np.log(-np.expm1(blind))) + away
    likely = share >= -np.expm1(blind)
    divergence = np.where(likely | (share == 0), np.where(share == 0, -blind, 0.0), divergence)
    return float(np.exp(np.minimum(log_sets - units * divergence, 50.0)).sum())
