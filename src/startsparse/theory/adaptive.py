"""Adaptive assignment: a source unit serves whichever target unit it can, where it is missed most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .entrance import SourceTooNarrow
from .graph import Target
from .source import Source, SourceLayer
from .wiring import Demand, feasible

_LOOKED_AT = 1 << 28  # comparisons; where there are more, units go to the channel that has fewest


@dataclass(frozen=True)
class Readers:
    """The layer that reads what is given out.

    Attributes:
        layer: of the source.
        needs: (its units or 1, channels, taps) whether a unit needs a channel through a tap; 1 row where any unit may come to
            serve any channel.
    """

    layer: SourceLayer
    needs: np.ndarray


def readers_of(target: Target, source: Source, name: str) -> Readers:
    """The layer that reads a layer of a chain."""
    readers, at = target.readers, name
    while True:
        at = readers[at][0]
        if (affine := target.nodes[at].affine) is not None:
            break
    layer, needs = source.layers[at], affine.weight != 0
    if affine.groups > 1 or layer.outputs > affine.outputs:
        needs = needs.reshape(affine.groups, -1, *needs.shape[1:]).any(axis=1)
        needs = needs.reshape(1, -1, affine.taps)
    return Readers(layer, needs)


def give_out(want: Demand, name: str, readers: Readers) -> np.ndarray:
    """Give units out: the least flexible first, each to a feasible channel.

    Of those, to the one that most of the reading units would newly see through it, and among equals to the one with fewest
    units. A unit stays in the group of the next layer that its place belongs to.

    Returns:
        (units,) the channel each serves, -1 for none.

    Raises:
        SourceTooNarrow: a channel that is read gets no unit.
    """
    units, groups = np.arange(want.layer.outputs), readers.layer.groups
    can = feasible(want, units)
    channels = can.shape[1]
    can &= (units * groups // len(units))[:, None] == np.arange(channels) * groups // channels
    seen = _seen(readers, len(units), channels)
    lacking = np.broadcast_to(readers.needs, (readers.layer.outputs, *readers.needs.shape[1:])).transpose(
        1, 0, 2
    )
    lacking = lacking.reshape(channels, -1).copy()
    serves, counts = np.full(len(units), -1), np.zeros(channels, np.int64)
    for unit in np.argsort(can.sum(axis=1), kind="stable"):
        options = np.flatnonzero(can[unit])
        if not len(options):
            continue
        if seen is not None:
            gain = (lacking[options] & seen[unit]).sum(axis=1)
            options = options[gain == gain.max()]
        serves[unit] = chosen = options[counts[options].argmin()]
        counts[chosen] += 1
        if seen is not None:
            lacking[chosen] &= ~seen[unit]
    lost = np.flatnonzero((counts == 0) & readers.needs.any(axis=(0, 2)))
    if len(lost):
        raise SourceTooNarrow(
            f"layer {name}: none of the source's {len(units)} units sees a copy of every input of neuron {lost[0]}"
        )
    return serves


def _seen(readers: Readers, units: int, channels: int) -> np.ndarray | None:
    """Which (reading unit, tap) sees each unit, (units, reading units * taps); None where that is too much to look at."""
    layer = readers.layer
    if layer.groups > 1 or layer.size * channels > _LOOKED_AT:
        return None
    return layer.rows(np.arange(layer.outputs)).transpose(1, 0, 2).reshape(units, -1)
