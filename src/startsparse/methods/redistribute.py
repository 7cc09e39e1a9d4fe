"""How many weights each layer gets when weights move across layers: exact counts under floors and ceilings.

Everything here is a function of names, numbers and scores. The order of the layers never matters: where two layers are
equal, the one whose name sorts first comes first.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..distributions import water_fill, whole
from ..selection import top_k_across

Counts = Mapping[str, int]


def shared(total: int, wishes: Mapping[str, float], room: Counts) -> dict[str, int]:
    """``total`` weights shared in proportion to ``wishes``; what a full layer cannot take goes to the others.

    Args:
        total: weights to share, at most the sum of ``room``.
        wishes: layer name -> any number >= 0. Where all of them, or all of the layers that still have room, wish for
            nothing, the room itself decides.
        room: layer name -> the most it can take.

    Returns:
        Layer name -> count, in the order of ``room``; they add up to ``total``.

    Raises:
        ValueError: there is less room than ``total``.

    Example:
        >>> shared(10, {"a": 3.0, "b": 1.0, "c": 1.0}, {"a": 4, "b": 9, "c": 9})
        {'a': 4, 'b': 3, 'c': 3}
    """
    if total > sum(room.values()):
        raise ValueError(f"{total} weights cannot be shared: the layers have room for {sum(room.values())}")
    names = sorted(room)
    wanting = {name: room[name] for name in names if wishes[name] > 0}
    asked = min(total, sum(wanting.values()))
    counts = dict.fromkeys(room, 0) | _spread(asked, {name: float(wishes[name]) for name in wanting}, wanting)
    rest = {name: room[name] - counts[name] for name in names if name not in wanting}
    return counts | _spread(total - asked, {name: float(left) for name, left in rest.items()}, rest)


def _spread(total: int, wishes: dict[str, float], room: dict[str, int]) -> dict[str, int]:
    return whole(water_fill(wishes, room, float(total)), total, room) if total else dict.fromkeys(room, 0)


def counts_by_rank(
    scores: Mapping[str, Tensor], total: int, otherwise: Counts, room: Counts
) -> dict[str, int]:
    """How many of the ``total`` highest scores of all layers together lie in each layer.

    Only scores above zero are ranked: a position whose score is zero was asked for by nobody. What is left of
    ``total`` then is shared as ``otherwise``.

    Args:
        scores: layer name -> scores of its best candidates, (at most ``room``,). Which of a layer's positions they
            belong to does not matter; no layer's top ``min(total, room)`` may be missing.
        total: weights to place.
        otherwise: layer name -> its share where the scores say nothing.
        room: layer name -> the most it can take.

    Example:
        >>> import torch
        >>> scores = {"a": torch.tensor([5.0, 1.0]), "b": torch.tensor([4.0, 0.0, 3.0])}
        >>> counts_by_rank(scores, 3, {"a": 2, "b": 1}, {"a": 2, "b": 3})
        {'a': 1, 'b': 2}
    """
    positive = {name: scores[name][scores[name] > 0] for name in sorted(scores)}
    ranked = min(total, sum(map(len, positive.values())))
    taken = top_k_across(positive, ranked)
    counts = {name: int(taken[name].sum()) for name in scores}
    left = shared(total - ranked, otherwise, {name: room[name] - counts[name] for name in scores})
    return {name: counts[name] + left[name] for name in scores}


def affordable(
    drops: Counts, live: Counts, free: Counts, limit: Counts, returning: bool
) -> tuple[dict[str, int], dict[str, int]]:
    """Drops of which as many weights can grow again, and the room for growth after them.

    Without room enough (layers above their ceiling, or dropped positions that must stay away in a nearly full source)
    all drops shrink in proportion.

    Args:
        drops: layer name -> weights it would drop.
        live: layer name -> live weights before.
        free: layer name -> inactive positions of its source before.
        limit: layer name -> the most live weights it may have.
        returning: whether a dropped position may grow again at once.

    Example:
        >>> affordable({"a": 4}, {"a": 8}, {"a": 2}, {"a": 10}, returning=False)
        ({'a': 2}, {'a': 2})
    """
    now = {name: min(drops[name], live[name]) for name in sorted(drops)}
    while True:
        room = {
            name: max(
                0,
                min(free[name] + (count if returning else 0), limit[name] - live[name] + count),
            )
            for name, count in now.items()
        }
        total = sum(room.values())
        if sum(now.values()) <= total:
            return now, room
        now = shared(total, {name: float(count) for name, count in now.items()}, now)
