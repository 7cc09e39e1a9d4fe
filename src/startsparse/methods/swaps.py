"""Restricted swaps: of the changes a ranking asks for, only some are made, and the number of active weights stays.

Many swaps at once disturb each other: each is judged as if the others did not happen. The cap is the short restriction
of Lottery Jackpots.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from ..selection import top_k
from .renewal import Swap, positions

SCHEDULES = ("none", "quartic", "cosine", "single")
ORDERS = ("gap", "curvature", "random")


def cap(restriction: str | float, wanted: int, progress: float) -> int:
    """How many of ``wanted`` swaps are made: ``ceil(wanted * share)``, at least one.

    Args:
        restriction: "none" (all), "quartic" (share ``(1 - progress)**4``), "cosine" (``(1 + cos(pi * progress)) / 2``),
            "single" (one swap), or a constant share.
        wanted: swaps the ranking asks for.
        progress: share of the search that is done, in [0, 1].

    References:
        Zhang et al., Lottery Jackpots Exist in Pre-trained Models, TPAMI 2023, https://arxiv.org/abs/2104.08700

    Fidelity:
        The released code intends the quartic decay per epoch and rounds it up to 1 before it is used, which turns it
        off; here progress is counted in steps.

    Example:
        >>> [cap("quartic", 1000, progress) for progress in (0.0, 0.5, 0.9, 1.0)]
        [1000, 63, 1, 1]
        >>> cap("none", 7, 0.5), cap("single", 7, 0.5), cap(0.1, 7, 0.5), cap("cosine", 0, 0.5)
        (7, 1, 1, 0)
    """
    shares = {
        "none": 1.0,
        "quartic": (1 - progress) ** 4,
        "cosine": (1 + math.cos(math.pi * progress)) / 2,
        "single": 0.0,
    }
    share = shares[restriction] if isinstance(restriction, str) else float(restriction)
    return min(wanted, max(1, math.ceil(wanted * share - 1e-9)))


Worth = Callable[[Tensor, bool], Tensor]
"""(flat positions, whether they would become active) -> how much each should change, higher = first."""


def limited(swap: Swap, limit: Callable[[int], int], worth: Worth, *, row: int | None = None) -> Swap:
    """The most worthy of the changes that are wanted.

    Args:
        swap: what is wanted, positions ascending. What leaves beyond what arrives goes whatever the limit.
        limit: swaps wanted -> swaps made.
        worth: of a change.
        row: where every ``row`` consecutive positions keep their own number of active ones: swaps are then pairs
            within such a row, the best arrival with the best departure first.

    Example:
        >>> import torch
        >>> key = torch.tensor([5.0, 1.0, 2.0, 0.0, 3.0, 4.0])
        >>> wanted = Swap(torch.tensor([4, 5]), torch.tensor([1, 2]))
        >>> one = limited(wanted, lambda n: 1, lambda at, arrives: key[at] if arrives else -key[at])
        >>> one.arriving, one.leaving
        (tensor([5]), tensor([1]))
    """
    arriving, leaving = swap.arriving, swap.leaving
    surplus = len(leaving) - len(arriving)
    assert surplus >= 0, "restricted swaps cannot add weights"
    made = limit(len(arriving))
    if made >= len(arriving):
        return swap
    value_in, value_out = worth(arriving, True), worth(leaving, False)
    if row is None:
        admitted, dropped = _best(value_in, made), _best(value_out, made + surplus)
    else:
        assert surplus == 0, "a row keeps its number of active weights"
        order_in, order_out = _by_row(arriving, value_in, row), _by_row(leaving, value_out, row)
        pairs = _best(value_in[order_in] + value_out[order_out], made)
        admitted, dropped = order_in[pairs], order_out[pairs]
    slots = None if swap.slots is None else swap.slots[dropped]
    return Swap(arriving[admitted], leaving[dropped], slots)


def _best(values: Tensor, count: int) -> Tensor:
    """Where the highest are, ties to the lower index."""
    return positions(top_k(values, count, what="swaps"))


def _by_row(positions: Tensor, worth: Tensor, row: int) -> Tensor:
    """The order by row, and within a row by worth, highest first; ties by position."""
    best = worth.sort(descending=True, stable=True).indices
    return best[(positions[best] // row).sort(stable=True).indices]
