"""All subset sums of a strong ticket, layer after layer, and what of it the outputs need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from .entrance import SourceTooNarrow, signed_weight, stand_for, table_of
from .frozen import Frozen
from .graph import Target
from .source import INPUTS
from .subset_sums import MOST, solve
from .ticket_bound import channel_bounds, constant_tap
from .ticket_source import TicketSource

_BLOCKS = (16, 24, 32, MOST)  # numbers a subset sum begins with, and is widened to where it is not solved


@dataclass
class Counts:
    """Subset sums, those that needed more numbers, and units given up because one of theirs was not solved."""

    problems: int = 0
    widened: int = 0
    dropped: int = 0


@dataclass
class Readable:
    """What a layer may read.

    Attributes:
        table: for each channel, the units that serve it.
        constants: units that are constant and positive.
        gain: (units,) what a unit's channel is multiplied by; the value of a constant.
        error: (units,) how far each is off.
    """

    table: list[np.ndarray]
    constants: np.ndarray
    gain: np.ndarray
    error: np.ndarray


@dataclass
class Solved:
    """Units of a layer: the channel each serves (-1 for none), its edges and its error."""

    serves: np.ndarray
    biases: np.ndarray
    error: np.ndarray
    columns: dict[int, np.ndarray] = field(default_factory=dict)
    values: dict[int, np.ndarray] = field(default_factory=dict)


def solve_all(
    target: Target, where: TicketSource, allowed: Mapping[str, float], magnitude: np.ndarray, signs: int
) -> tuple[dict[str, np.ndarray], Counts]:
    """The tensors of a ``SubNetwork``, and what was solved for it.

    Raises:
        SourceTooNarrow: a sum of an output, or of all copies of a unit, is not solved.
    """
    counts, solved = Counts(), {}
    bounds = channel_bounds(target, magnitude)
    entrance, readable = _enter(target, where, signs)
    for name in target.layers:
        size = np.tile(bounds[target.nodes[name].reads[0]], signs if not solved else 1)
        solved[name] = _layer(target, where, name, allowed[name], readable, signs, size, counts)
        readable = _on(where, name, solved[name], target.layers[name].outputs)
    return _kept(target, solved, entrance), counts


def _enter(target: Target, where: TicketSource, signs: int) -> tuple[dict[str, np.ndarray], Readable]:
    """The first layer: the input each unit keeps, with its frozen weight; the last units keep their bias alone."""
    layer, serving = where.source.layers[INPUTS], where.serving(INPUTS)
    frozen = Frozen(layer, where.scales[INPUTS])
    serves = stand_for(where.source, target.inputs, 1, 1, serving // target.inputs)
    serves[serving:] = -1
    weight, bias = np.zeros(layer.outputs), np.zeros(layer.outputs)
    for part in layer.parts(np.flatnonzero(serves >= 0)):
        weight[part] = frozen.rows(part)[np.arange(len(part)), serves[part], 0]
    reads = np.maximum(serves, 0)
    negative = weight < 0
    serves = np.where(negative & (serves >= 0), serves + target.inputs if signs == 2 else -1, serves)
    bias[serving:] = frozen.biases()[serving:]
    readable = Readable(
        [row[row >= 0] for row in table_of(serves, signs * target.inputs)],
        serving + np.flatnonzero(bias[serving:] > 0),
        np.where(serves < 0, bias, np.abs(weight)),
        np.zeros(layer.outputs),
    )
    weight[serves < 0] = 0
    return {"reads": reads, "weight": weight, "bias": bias}, readable


def _on(where: TicketSource, name: str, solved: Solved, channels: int) -> Readable:
    """What the next layer may read of a solved one."""
    gain = np.where(solved.serves < 0, solved.biases, 1.0)
    constants = where.serving(name) + np.flatnonzero(solved.biases[where.serving(name) :] > 0)
    return Readable(
        [row[row >= 0] for row in table_of(solved.serves, channels)], constants, gain, solved.error
    )


def _layer(
    target: Target, where: TicketSource, name: str, tolerance: float, read: Readable, signs: int, size: np.ndarray,
    counts: Counts,
) -> Solved:  # fmt: skip
    affine, layer = target.layers[name], where.source.layers[name]
    wanted, frozen, tap = (
        signed_weight(target, name, signs),
        Frozen(layer, where.scales[name]),
        constant_tap(affine),
    )
    serving = where.serving(name)
    copies = serving // affine.outputs
    serves = np.concatenate([np.arange(serving) // copies, np.full(layer.outputs - serving, -1)])
    biases = np.where(np.arange(layer.outputs) < serving, 0.0, frozen.biases())
    solved = Solved(serves, biases, np.zeros(layer.outputs))
    candidates = [row[np.argsort(read.error[row], kind="stable")] for row in read.table]
    for unit in range(serving):
        channel = int(serves[unit])
        mask, weights = layer.rows(np.array([unit]))[0], frozen.rows(np.array([unit]))[0]
        sums = [
            (candidates[j], t, wanted[channel, j, t], float(size[j])) for j, t in np.argwhere(wanted[channel])
        ]
        if affine.bias[channel]:
            sums.append((read.constants, tap or 0, affine.bias[channel], 1.0))
        columns, off = [], 0.0
        for units, t, value, reach in sums:
            there = units[mask[units, t]]
            numbers = weights[there, t] * read.gain[there]
            chosen = _solve(numbers, value, tolerance, counts)
            if chosen is None:
                counts.dropped += 1
                solved.serves[unit] = -1
                break
            off += abs(float(numbers[chosen].sum()) - value) * reach
            off += float(np.abs(weights[there[chosen], t]) @ read.error[there[chosen]])
            columns.append(there[chosen] * affine.taps + t)
        else:
            column = np.sort(np.concatenate(columns or [np.empty(0, np.int64)]))
            solved.columns[unit] = column
            solved.values[unit] = weights.reshape(-1)[column]
            solved.error[unit] = off
    lost = np.setdiff1d(np.arange(affine.outputs), solved.serves)
    if len(lost):
        raise SourceTooNarrow(
            f"layer {name}: of all {copies} copies of neuron {lost[0]} at least one subset sum is not solved within "
            f"{tolerance:.3g}; a lower delta makes the source wider, a larger eps the sums easier"
        )
    return solved


def _solve(numbers: np.ndarray, value: float, tolerance: float, counts: Counts) -> np.ndarray | None:
    """One subset sum, of the first numbers and then of more."""
    counts.problems += 1
    for block in _BLOCKS:
        chosen = solve(numbers[:block], value, tolerance)
        if chosen is not None:
            counts.widened += block > _BLOCKS[0]
            return chosen
        if len(numbers) <= block:
            break
    return None


def _kept(
    target: Target, solved: dict[str, Solved], entrance: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Only the units the outputs need, as tensors of a ``SubNetwork``."""
    tensors: dict[str, np.ndarray] = {}
    names = list(target.layers)
    units = np.arange(target.layers[names[-1]].outputs)
    for i in reversed(range(len(names))):
        layer, taps = solved[names[i]], target.layers[names[i]].taps
        empty = np.empty(0, np.int64)
        columns = [layer.columns.get(int(unit), empty) for unit in units]
        flat = np.concatenate([*columns, empty])
        below = np.unique(flat // taps)
        tensors |= {
            f"layers.{i}.units": units,
            f"layers.{i}.serves": layer.serves[units],
            f"layers.{i}.crow": np.concatenate(
                [[0], np.cumsum([len(column) for column in columns], dtype=np.int64)]
            ),
            f"layers.{i}.columns": np.searchsorted(below, flat // taps) * taps + flat % taps,
            f"layers.{i}.values": np.concatenate(
                [np.empty(0), *(layer.values[u] for u in units.tolist() if u in layer.values)]
            ),
            f"layers.{i}.bias": layer.biases[units],
        }
        units = below
    tensors |= {f"entrance.{key}": value[units] for key, value in entrance.items()}
    return tensors | {"entrance.units": units}
