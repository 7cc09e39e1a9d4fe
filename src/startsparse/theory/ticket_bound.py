"""How far a strong ticket can be from its target: a bound from the sums that were found, for every input of a box."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .entrance import signed_weight
from .graph import Affine, Node, Target
from .network import SubNetwork
from .rounding import UNIT, grouped


def channel_bounds(target: Target, magnitude: np.ndarray) -> dict[str, np.ndarray]:
    """The largest absolute value of each channel of each value of the target, for inputs up to ``magnitude``."""
    found = {target.entry: magnitude}
    for name, node in target.nodes.items():
        if node.affine is not None:
            weight = np.abs(node.affine.weight).sum(axis=2)
            found[name] = grouped(weight, found[node.reads[0]], node.affine.groups) + np.abs(node.affine.bias)
        elif node.kind in ("each", "flatten"):
            found[name] = np.minimum(found[node.reads[0]], node.ceiling)
    return found


def constant_tap(affine: Affine) -> int | None:
    """The tap that never reads the zeros around an image, through which a constant unit stays one; None: there is none."""
    moves = affine.geometry
    if moves is None:
        return 0
    places = [divmod(pad, dilation) for pad, dilation in zip(moves.padding, moves.dilation, strict=True)]
    if any(rest for _, rest in places) or any(p >= k for (p, _), k in zip(places, moves.kernel, strict=True)):
        return None
    return places[0][0] * moves.kernel[1] + places[1][0]


def keeps_constants(node: Node) -> bool:
    """Whether a unit-wise operation leaves ones alone; padded means do not."""
    if node.kind != "each" or node.run is None:
        return True
    for shape in ((1, 1, 16, 16), (1, 1)):
        try:
            out: Tensor = node.run(torch.ones(shape, dtype=torch.float64))
        except (RuntimeError, IndexError):
            continue
        return bool((out - 1).abs().max() < 1e-12)
    return False


def entrance_serves(model: SubNetwork, inputs: int) -> np.ndarray:
    """The signed input each unit of the first layer serves; -1 for constants, which read nothing."""
    weight, reads = model.entrance.weight.numpy(), model.entrance.reads.numpy()
    return np.where(weight == 0, -1, reads + inputs * (weight < 0))


def ticket_error(target: Target, model: SubNetwork, magnitude: np.ndarray, signs: int) -> float:
    """Bound of the difference of any output, by induction over the kept units of each layer.

    A unit serves a channel with error ``sum |carried - w| B + sum |v| e``: what its edges carry in sum against the target's
    weight, times the bound of that input; and its edges' values times the errors of what they read. Roundings are added.

    References:
        Derived here, as a tightening of the recursion behind theorem 2.5 of Gadhikar et al. 2023.
    """
    bounds = channel_bounds(target, magnitude)
    serves = {target.entry: entrance_serves(model, target.inputs)}
    weight, bias = model.entrance.weight.numpy(), model.entrance.bias.numpy()
    gain = {target.entry: np.where(serves[target.entry] < 0, bias, np.abs(weight))}
    errors = {target.entry: np.zeros(len(weight))}
    for name, node in target.nodes.items():
        if node.kind in ("each", "flatten"):
            read = node.reads[0]
            serves[name], gain[name], errors[name] = serves[read], gain[read], errors[read]
        elif node.affine is not None:
            read = node.reads[0]
            first = read == target.entry
            size = np.tile(bounds[read], signs if first else 1)
            layer = model.layer(name)
            serves[name] = layer.serves.numpy()
            gain[name] = np.where(serves[name] < 0, layer.bias.numpy(), 1.0)
            wanted = signed_weight(target, name, signs)
            errors[name] = _layer_error(
                layer, node.affine, wanted, serves[read], gain[read], errors[read], size
            )
    return float(errors[target.output].max())


def _layer_error(
    layer,
    affine: Affine,
    wanted: np.ndarray,
    served: np.ndarray,
    gain: np.ndarray,
    error: np.ndarray,
    size: np.ndarray,
) -> np.ndarray:
    """Errors of the kept units of one layer; constants have none."""
    serves, values = layer.serves.numpy(), layer.values.numpy()
    counts = np.diff(layer.crow.numpy())
    row = np.repeat(np.arange(len(serves)), counts)
    place, tap = layer.columns.numpy() // affine.taps, layer.columns.numpy() % affine.taps
    constant = served[place] < 0
    carried = np.zeros((len(serves), *wanted.shape[1:]))
    np.add.at(
        carried, (row[~constant], served[place][~constant], tap[~constant]), (values * gain[place])[~constant]
    )
    bias = layer.bias.numpy() + np.bincount(row, values * gain[place] * constant, len(serves))
    reach = np.where(constant, gain[place], gain[place] * size[np.maximum(served[place], 0)] + error[place])
    mass = np.bincount(row, np.abs(values) * reach, len(serves)) + np.abs(layer.bias.numpy())
    serving = serves >= 0
    target_mass = np.abs(wanted).sum(axis=2) @ size + np.abs(affine.bias)
    off = (np.abs(carried - wanted[serves]).sum(axis=2) @ size) + np.abs(bias - affine.bias[serves])
    passed = np.bincount(row, np.abs(values) * error[place], len(serves))
    rounded = UNIT * ((counts + 8) * mass + (wanted[0].size + 8) * target_mass[serves]) * 1.01
    return np.where(serving, off + passed + rounded, 0.0)
