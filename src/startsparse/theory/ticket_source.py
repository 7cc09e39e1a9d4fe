"""Sources for strong tickets: how exact each sum must be, how many copies that takes, and the frozen weights' scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .graph import Target
from .source import INPUTS, Source, SourceLayer
from .subset_sums import numbers_safe
from .ticket_bound import channel_bounds
from .widths import input_units


@dataclass(frozen=True)
class TicketSource:
    """Positions, the scale of frozen weights by layer, and how many units of a layer are there to be constants."""

    source: Source
    scales: dict[str, float]
    spare: dict[str, int]

    def serving(self, layer: str) -> int:
        """Units of a layer that serve channels; those behind them are constants."""
        return self.source.layers[layer].outputs - self.spare[layer]


def tolerances(target: Target, magnitude: np.ndarray, eps: float) -> dict[str, float]:
    """How far each weight and bias may be off, by layer, for outputs to be off by eps at most.

    ``eps / (n_L L) / ((1 + B) (1 + eps / L) prod (norm + eps / L))``: B bounds the 1-norm of what the layer reads, the
    product is over the layers between it and the last.

    References:
        Gadhikar et al. 2023, theorem 2.5, as recalled; it takes all copies of a unit for equally good.
    """
    layers, bounds = list(target.layers.items()), channel_bounds(target, magnitude)
    norms = [float(np.abs(layer.weight).sum(axis=(1, 2)).max()) for _, layer in layers]
    depth, outputs, found = len(layers), layers[-1][1].outputs, {}
    for i, (name, layer) in enumerate(layers):
        below = float(bounds[target.nodes[name].reads[0]].sum()) * layer.taps
        later = math.prod(norm + eps / depth for norm in norms[i + 1 : -1])
        found[name] = eps / (outputs * depth) / ((1 + below) * (1 + eps / depth) * later)
    return found


def ticket_source(
    target: Target, density: float, allowed: Mapping[str, float], delta: float, seed: int, signs: int
) -> TicketSource:
    """A source wide enough that all subset sums of a target are there with probability about 1 - delta.

    Args:
        allowed: layer -> tolerance of its weights.
        signs: of the inputs.
    """
    names, affines = list(target.layers), list(target.layers.values())
    scales, copies, constants = {INPUTS: 1.0}, [], []
    for i, (name, affine) in enumerate(target.layers.items()):
        # twice the largest number where it is made of products: of inputs' weights, and of constants, below one
        weight, bias = float(np.abs(affine.weight).max()), float(np.abs(affine.bias).max())
        scales[name] = max(weight * (2 if i == 0 else 1), 2 * bias, 1e-300)
        share = delta / (affine.weight.size * signs + affine.outputs) / len(affines)
        exactness = allowed[name] / scales[name]
        copies.append(numbers_safe(density, exactness, share, products=i == 0))
        constants.append(numbers_safe(density, exactness, share, products=True))
    # half of the frozen weights and biases have the wrong sign: twice as many units of the first layer, and constants
    spare = {INPUTS: 2 * constants[0]}
    read = input_units(target.inputs, density, 2 * copies[0], delta / 10) + spare[INPUTS]
    layers = [SourceLayer(INPUTS, read, target.inputs, 1, 1, density, seed)]
    for i, affine in enumerate(affines):
        last = i == len(affines) - 1
        spare[names[i]] = 0 if last else 2 * constants[i + 1]
        units = affine.outputs * (1 if last else copies[i + 1]) + spare[names[i]]
        layers.append(SourceLayer(names[i], units, read, affine.taps, 1, density, seed))
        read = units
    return TicketSource(Source({layer.name: layer for layer in layers}, {}, seed), scales, spare)
