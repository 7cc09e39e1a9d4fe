"""How many weights each layer gets when weights move across layers: exact counts under floors and ceilings.

Everything here is a function of names, numbers and scores. The order of the layers never matters: where two layers are
equal, the one whose name sorts first comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from ..distributions import water_fill, whole
from ..selection import top_k

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


def highest(
    candidates: Callable[[str], tuple[Tensor, Tensor]], names: Iterable[str], total: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """The ``total`` highest scores of all layers together, by layer: positions (rising) and scores.

    Only scores above zero are ranked: a position whose score is zero was asked for by nobody. One layer is looked at
    at a time, and never more than about ``2 * total`` candidates are kept besides it.

    Args:
        candidates: layer name -> its best positions, rising, and their scores; none of its top min(total, room) may
            be missing, and no more than its room may be there: then a full layer's share goes to the others.
        names: of the layers.
        total: how many to take; fewer where there are fewer above zero.

    Example:
        >>> import torch
        >>> scores = {"a": torch.tensor([5.0, 1.0]), "b": torch.tensor([4.0, 0.0, 3.0])}
        >>> found = highest(lambda name: (torch.arange(len(scores[name])), scores[name]), scores, 3)
        >>> found["a"][0].tolist(), found["b"][0].tolist()
        ([0], [0, 2])
    """
    order = sorted(names)
    kept: list[tuple[Tensor, Tensor, Tensor]] = []  # scores, positions, number of the layer
    bar, count = 0.0, 0
    for number, name in enumerate(order if total else ()):
        positions, scores = candidates(name)
        above = scores > bar  # what lies at the bar comes too late: ties go to the earlier name
        where = kept[0][0].device if kept else scores.device
        kept.append(
            (
                scores[above].to(where),
                positions[above].to(where),
                torch.full((int(above.sum()),), number, device=where),
            )
        )
        count += len(kept[-1][0])
        if count > 2 * total or number == len(order) - 1:
            merged = [torch.cat(parts) for parts in zip(*kept, strict=True)]
            if count > total:
                best = top_k(merged[0], total)
                merged, count = [part[best] for part in merged], total
                bar = float(merged[0].min())
            kept = [(merged[0], merged[1], merged[2])]
    if not kept:
        return {name: (torch.empty(0, dtype=torch.int64), torch.empty(0)) for name in order}
    scores, positions, layers = kept[0]
    return {
        name: (positions[layers == number], scores[layers == number]) for number, name in enumerate(order)
    }


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
