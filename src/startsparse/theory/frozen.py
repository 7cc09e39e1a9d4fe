"""Frozen random weights of a source: a function of the seed, like its positions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..draw import key, words
from .source import SourceLayer


@dataclass(frozen=True)
class Frozen:
    """Weights and biases of a source's layer, uniform in [-scale, scale).

    Args:
        layer: its positions.
        scale: of the weights.
        bias_scale: of the biases.
    """

    layer: SourceLayer
    scale: float
    bias_scale: float = 1.0

    def rows(self, units: np.ndarray) -> np.ndarray:
        """Weights of some units at all positions, active or not, (len(units), inputs, taps)."""
        width, generator = self.layer.width, key("frozen", self.layer.seed or 0, f"{self.layer.name}.weight")
        found = [words(generator, int(unit) * width, (int(unit) + 1) * width) for unit in units]
        raw = np.concatenate(found or [np.empty(0, np.uint64)])
        shape = (len(units), self.layer.width // self.layer.taps, self.layer.taps)
        return uniform(raw).reshape(shape) * self.scale

    def biases(self) -> np.ndarray:
        """Biases of all units, (outputs,)."""
        generator = key("frozen", self.layer.seed or 0, f"{self.layer.name}.bias")
        return uniform(words(generator, 0, self.layer.outputs)) * self.bias_scale


def uniform(raw: np.ndarray) -> np.ndarray:
    """The upper 53 bits of each word as a number in [-1, 1), float64, the same on every machine.

    Example:
        >>> uniform(np.array([0, 1 << 63, (1 << 64) - 1], np.uint64))
        array([-1.,  0.,  1.])
    """
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0
