"""The first layer of a source: each of its random units stands for one input that it sees."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from .graph import Target
from .source import INPUTS, Source


class SourceTooNarrow(ValueError):
    """A source that does not hold the target; the message names layer, unit, and the width that would do."""


def ends(box: object) -> tuple[float, float]:
    """The lower and the upper end of the inputs.

    Raises:
        ValueError: it is not two finite numbers in order.
    """
    try:
        low, high = (float(end) for end in box)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        low, high = math.inf, -math.inf
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"box must be (low, high), two finite numbers in order, got {box!r}")
    return low, high


def stand_for(source: Source, inputs: int, groups: int, signs: int, copies: int) -> np.ndarray:
    """Which signed input each unit of the first layer stands for.

    Units are given out one by one to the input they see that has fewest; where an input is left with too few, units
    are passed on along augmenting paths, so that ``copies`` for each are found whenever they exist.

    Args:
        source: its layer ``"inputs"`` is looked at.
        inputs: of the target.
        groups: of the layers that read the inputs.
        signs: 1 or 2 copies of each input are wanted for each of ``copies``.
        copies: of each signed input.

    Returns:
        (units,) int64: ``sign * inputs + input``, or -1 for a unit that sees none.
    """
    layer = source.layers[INPUTS]
    per_group, size = layer.outputs // groups, inputs // groups
    found = np.full(layer.outputs, -1)
    for group in range(groups):
        units = np.arange(group * per_group, (group + 1) * per_group)
        serves, seen = _greedy(layer, units, size)
        serves = _even_out(serves, seen, size, signs * copies)
        found[units] = _with_signs(serves, size, signs, inputs, group)
    return found


def _greedy(layer, units: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    serves, counts = np.full(len(units), -1), np.zeros(size, np.int64)
    kept, at = [], 0
    for part in layer.parts(units):
        seen = layer.rows(part)[:, :, 0]
        kept.append(np.packbits(seen, axis=1))
        for row in seen:
            candidates = np.flatnonzero(row)
            if len(candidates):
                serves[at] = chosen = candidates[counts[candidates].argmin()]
                counts[chosen] += 1
            at += 1
    return serves, np.concatenate(kept)


def _even_out(serves: np.ndarray, seen: np.ndarray, size: int, wanted: int) -> np.ndarray:
    """Pass units on until every input has ``wanted`` of them, as far as that is possible."""
    counts = np.bincount(serves[serves >= 0], minlength=size)
    for poor in np.flatnonzero(counts < wanted):
        while counts[poor] < wanted and (path := _path(serves, seen, counts, int(poor), wanted)):
            rich = serves[path[-1][0]]
            for unit, receiver in reversed(path):
                serves[unit] = receiver
            counts[poor] += 1
            counts[rich] -= 1
    return serves


def _path(
    serves: np.ndarray, seen: np.ndarray, counts: np.ndarray, poor: int, wanted: int
) -> list[tuple[int, int]]:
    """Units to pass on, (unit, to which input), from a poor input to one that can spare a unit."""
    came: dict[int, tuple[int, int]] = {}
    queue, visited = deque([poor]), {poor}
    while queue:
        receiver = queue.popleft()
        sees = (seen[:, receiver // 8] >> (7 - receiver % 8) & 1).astype(bool) & (serves >= 0)
        givers, first = np.unique(serves[sees], return_index=True)
        for giver, unit in zip(givers.tolist(), np.flatnonzero(sees)[first].tolist(), strict=True):
            if giver in visited:
                continue
            visited.add(giver)
            came[giver] = (unit, receiver)
            if counts[giver] > wanted:
                path, at = [], giver
                while at != poor:
                    path.append(came[at])
                    at = came[at][1]
                return path[::-1]
            queue.append(giver)
    return []


def _with_signs(serves: np.ndarray, size: int, signs: int, inputs: int, group: int) -> np.ndarray:
    """Every second unit of an input takes the negative sign."""
    order = np.argsort(serves, kind="stable")
    ranked = serves[order]
    place = np.arange(len(serves)) - np.searchsorted(ranked, ranked)
    sign = np.empty(len(serves), np.int64)
    sign[order] = place % signs
    return np.where(serves < 0, -1, sign * inputs + group * size + serves)


def signed_weight(target: Target, name: str, signs: int) -> np.ndarray:
    """A layer's weight over the signed inputs of its group, (outputs, signs * inputs / groups, taps)."""
    affine = target.layers[name]
    if target.nodes[name].reads[0] != target.entry or signs == 1:
        return affine.weight
    return np.concatenate([affine.weight, -affine.weight], axis=1)


def table_of(serves: np.ndarray, channels: int) -> np.ndarray:
    """Units by what they serve, (channels, most copies), filled up with -1.

    Example:
        >>> table_of(np.array([1, 0, 1, -1, 1]), 2)
        array([[ 1, -1, -1],
               [ 0,  2,  4]])
    """
    order = np.argsort(serves, kind="stable")
    order = order[serves[order] >= 0]
    ranked = serves[order]
    place = np.arange(len(order)) - np.searchsorted(ranked, ranked)
    table = np.full((channels, int(place.max(initial=0)) + 1), -1)
    table[ranked, place] = order
    return table
