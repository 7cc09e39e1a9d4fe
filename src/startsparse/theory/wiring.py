"""Which active position carries which weight of the target: candidates, and the choice among them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .source import SourceLayer

_COVER = 1 << 27  # larger choices take the first candidate instead of looking for few parents


@dataclass
class Demand:
    """What a weight layer needs of a source.

    Attributes:
        layer: the source's layer.
        weight: the target's, (channels out, channels in of a group, taps).
        table: units that serve each channel read, (channels in of all groups, copies), -1 where there is none.
    """

    layer: SourceLayer
    weight: np.ndarray
    table: np.ndarray

    def seen(self, units: np.ndarray, group: int) -> np.ndarray:
        """Active positions by channel and copy, (units, channels in of the group, copies, taps), bool."""
        rows = self.layer.rows(units)
        per_group = self.weight.shape[1]
        table = self.table[group * per_group : (group + 1) * per_group]
        local = np.where(table < 0, rows.shape[1], table - group * rows.shape[1])
        if (local < 0).any() or (local > rows.shape[1]).any():
            raise AssertionError("a unit serves a channel of another group")
        rows = np.concatenate([rows, np.zeros((len(rows), 1, rows.shape[2]), bool)], axis=1)
        return rows.take(local.reshape(-1), axis=1).reshape(len(rows), *local.shape, -1)

    def group_of(self, unit: np.ndarray) -> np.ndarray:
        """The group of output units."""
        return unit // (self.layer.outputs // self.layer.groups)

    def by_group(self, units: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Parts of the units that can be looked at together: (group, units)."""
        groups = self.group_of(units)
        return [
            (int(group), part)
            for group in np.unique(groups)
            for part in self.layer.parts(units[groups == group])
        ]


@dataclass
class Edges:
    """Edges of some units: one for each non-zero weight of the channel they serve.

    Attributes:
        units: (units,) sorted.
        serves: (units,) the target's channel.
        counts: (units,) edges of each.
        columns: (edges,) ``input unit * taps + tap``, by unit.
        values: (edges,)
        missing: unit -> the channel and tap of a weight no active position can carry.
    """

    units: np.ndarray
    serves: np.ndarray
    counts: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    missing: dict[int, tuple[int, int]]


def feasible(demand: Demand, units: np.ndarray) -> np.ndarray:
    """Which channels each unit could serve, (units, channels out), bool: it sees a copy of all their parents."""
    channels = len(demand.weight)
    per_group = channels // demand.layer.groups
    needs = (demand.weight.reshape(channels, -1) != 0).astype(np.float32)
    found = np.zeros((len(units), channels), bool)
    place = {int(unit): i for i, unit in enumerate(units)}
    for group, part in demand.by_group(units):
        absent = ~demand.seen(part, group).any(axis=2).reshape(len(part), -1)
        inside = slice(group * per_group, (group + 1) * per_group)
        rows = np.array([place[int(unit)] for unit in part])
        found[rows, inside] = absent.astype(np.float32) @ needs[inside].T == 0
    return found


def wire(demand: Demand, units: np.ndarray, serves: np.ndarray, few: bool) -> Edges:
    """Choose one active position for every weight the units need.

    Args:
        demand: the layer.
        units: to wire, sorted.
        serves: the channel each serves.
        few: look for few parents in all (a greedy cover); otherwise take the first copy that is there.
    """
    counts, columns, values, missing = [], [], [], {}
    by_unit: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    place = {int(unit): int(channel) for unit, channel in zip(units, serves, strict=True)}
    total = len(units) * demand.table.shape[1] * demand.weight.shape[1] * demand.weight.shape[2]
    for group, part in _groups(demand, units, whole=few and total <= _COVER):
        seen = demand.seen(part, group)
        needed = demand.weight[[place[int(unit)] for unit in part]]
        chosen = _cover(seen, needed != 0) if few and total <= _COVER else _first(seen)
        per_group = demand.weight.shape[1]
        table = demand.table[group * per_group : (group + 1) * per_group]
        for unit, weight, copy in zip(part.tolist(), needed, chosen, strict=True):
            channel, tap = np.nonzero(weight)
            picked = copy[channel, tap]
            if len(lost := np.flatnonzero(picked < 0)):
                missing[unit] = (int(channel[lost[0]]) + group * per_group, int(tap[lost[0]]))
                continue
            column = table[channel, picked] * weight.shape[1] + tap
            order = np.argsort(column)
            by_unit[unit] = (column[order], weight[channel, tap][order])
    for unit in units.tolist():
        column, value = by_unit.get(unit, (np.empty(0, np.int64), np.empty(0)))
        counts.append(len(column))
        columns.append(column)
        values.append(value)
    empty = [np.empty(0, np.int64)]
    return Edges(
        units,
        serves,
        np.array(counts, np.int64),
        np.concatenate(columns or empty),
        np.concatenate(values or [np.empty(0)]),
        missing,
    )


def _groups(demand: Demand, units: np.ndarray, whole: bool) -> list[tuple[int, np.ndarray]]:
    if not whole:
        return demand.by_group(units)
    groups = demand.group_of(units)
    return [(int(group), units[groups == group]) for group in np.unique(groups)]


def _first(seen: np.ndarray) -> np.ndarray:
    """The first copy seen, (units, channels, taps); -1 where none is."""
    first = seen.argmax(axis=2)
    there = np.take_along_axis(seen, first[:, :, None], axis=2)[:, :, 0]
    return np.where(there, first, -1)


def _cover(seen: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """Copies such that few are used: for each channel, again and again the copy most of what is left can use."""
    units, channels, copies, taps = seen.shape
    chosen = np.full((channels, units * taps), -1)
    for channel in range(channels):
        can = seen[:, channel].transpose(0, 2, 1).reshape(-1, copies)
        left = np.flatnonzero(needed[:, channel].reshape(-1) & can.any(axis=1))
        can = can[left]
        while len(left):
            best = int(can.sum(axis=0).argmax())
            hit = can[:, best]
            chosen[channel, left[hit]] = best
            left, can = left[~hit], can[~hit]
    return chosen.reshape(channels, units, taps).transpose(1, 0, 2)
