"""Flow preservation: give every unit that a random mask cut off an input and an output weight back.

At high sparsity a random mask leaves rows (output units without any input) and columns (inputs that nothing reads)
empty. ``preserve`` adds one weight to each of them, and can give up as many others to keep the budget.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .draw import Permutation
from .layers import Geometry

POLICIES = ("none", "add", "keep_budget")


@dataclass(frozen=True)
class Repair:
    """What a repair did to one layer, in weights (added, removed) and units (dead rows plus dead columns)."""

    added: int
    removed: int
    dead_before: int
    dead_after: int


def dead_units(mask: np.ndarray, shape: tuple[int, ...], geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Units without a live weight: bool arrays (groups, out / groups) and (groups, in / groups).

    Example:
        >>> rows, columns = dead_units(np.array([True, False, False, False]), (2, 2), Geometry())
        >>> rows.tolist(), columns.tolist()
        ([[False, True]], [[False, True]])
    """
    grid = _grid(mask, shape, geometry)
    return np.asarray(~grid.any(axis=(2, 3))), np.asarray(~grid.any(axis=(1, 3)))


def count_dead(positions: np.ndarray, shape: tuple[int, ...], geometry: Geometry) -> int:
    """Units without a live weight, outputs and inputs together, from the live positions alone.

    Example:
        >>> count_dead(np.array([0]), (2, 2), Geometry())
        2
    """
    taps, groups = math.prod(shape[2:]), geometry.groups
    first, second = positions // (shape[1] * taps), positions // taps % shape[1]
    group = first // (shape[0] // groups)
    num_second = shape[1] * groups  # the second axis counts the units of one group
    live = len(np.unique(first)) + len(np.unique(group * shape[1] + second))
    return shape[0] + num_second - live


def preserve(
    mask: np.ndarray,
    shape: tuple[int, ...],
    geometry: Geometry,
    seed: int,
    name: str,
    policy: str = "add",
    source: np.ndarray | None = None,
) -> tuple[np.ndarray, Repair]:
    """A mask in which no unit is dead, as far as the source allows, and the report of the repair.

    Each dead row, then each column still dead, gets the one of its positions that comes first in the order that drew
    the mask, so a repair is a pure function of its arguments. "keep_budget" then removes as many weights, last in the
    order first, wherever both ends keep another one.

    Args:
        mask: flat bool, row-major.
        shape: the weight's shape.
        geometry: its axes and groups.
        seed, name: of the draw.
        policy: "none", "add" or "keep_budget".
        source: flat bool of the positions that may live, or None for all.

    References:
        Gadhikar et al. 2023 (flow preservation), https://arxiv.org/abs/2210.02412

    Fidelity:
        The published code loses the repair of columns when more than one is dead and never gives the added weights
        back; both are mended here.

    Example:
        >>> mask = np.array([True, True, False, False])
        >>> repaired, report = preserve(mask, (2, 2), Geometry(), 0, "w", "add")
        >>> int(repaired.sum()), report.dead_before, report.dead_after
        (3, 1, 0)
    """
    rows, columns = dead_units(mask, shape, geometry)
    before = int(rows.sum() + columns.sum())
    if policy == "none" or before == 0:
        return mask, Repair(0, 0, before, before)
    order = Permutation(math.prod(shape), "exact", seed, name)
    index = _grid(np.arange(mask.size), shape, geometry)
    repaired = mask.copy()
    _fill(repaired, [index[g, unit] for g, unit in np.argwhere(rows)], order, source)
    columns = dead_units(repaired, shape, geometry)[1]
    _fill(repaired, [index[g, :, unit] for g, unit in np.argwhere(columns)], order, source)
    added = int(repaired.sum() - mask.sum())
    removed = _give_back(repaired, mask, index, order, added) if policy == "keep_budget" else 0
    rows, columns = dead_units(repaired, shape, geometry)
    return repaired, Repair(added, removed, before, int(rows.sum() + columns.sum()))


def _grid(flat: np.ndarray, shape: tuple[int, ...], geometry: Geometry) -> np.ndarray:
    """The flat array as (groups, out, in, taps), whatever the weight's own axis order."""
    groups = geometry.groups
    grid = flat.reshape(groups, shape[0] // groups, shape[1], math.prod(shape[2:]))
    return grid.swapaxes(1, 2) if geometry.transposed else grid


def _fill(mask: np.ndarray, units: list[np.ndarray], order: Permutation, source: np.ndarray | None) -> None:
    for unit in units:
        positions = unit.reshape(-1)
        if source is not None:
            positions = positions[source[positions]]
        if len(positions):
            mask[positions[np.argmin(order.ranks(positions))]] = True


def _give_back(mask: np.ndarray, drawn: np.ndarray, index: np.ndarray, order: Permutation, count: int) -> int:
    """Remove up to ``count`` drawn weights whose row and column keep another one; the number removed."""
    row_of, column_of = np.empty(mask.size, np.int64), np.empty(mask.size, np.int64)
    groups, outs, ins, _ = index.shape
    row_of[index] = np.arange(groups * outs).reshape(groups, outs, 1, 1)
    column_of[index] = np.arange(groups * ins).reshape(groups, 1, ins, 1)
    row_degree = np.bincount(row_of[mask], minlength=groups * outs)
    column_degree = np.bincount(column_of[mask], minlength=groups * ins)
    candidates = np.flatnonzero(drawn)
    removed = 0
    for position in candidates[np.argsort(-order.ranks(candidates), kind="stable")]:
        if removed == count:
            break
        row, column = row_of[position], column_of[position]
        if row_degree[row] > 1 and column_degree[column] > 1:
            mask[position] = False
            row_degree[row] -= 1
            column_degree[column] -= 1
            removed += 1
    return removed
