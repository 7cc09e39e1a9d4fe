"""The check of a sub-network, edge by edge, from the target's weights and the source's positions alone."""

from __future__ import annotations

import numpy as np

from .entrance import signed_weight
from .graph import Target
from .network import SubNetwork, shifted_bias
from .sealed import CertificateError
from .source import INPUTS, Source


def audit(target: Target, source: Source, model: SubNetwork, signs: int, shift: float) -> None:
    """Refuse a sub-network that is not the target on active positions of the source.

    By induction over the values of the target, every unit kept computes the value of the channel it serves: each of its
    edges comes from a unit that serves the right channel, edges of one channel and tap add up to the target's weight, and
    there are no others.

    Raises:
        CertificateError: the layer and what is wrong.
    """
    if signs not in (1, 2):
        raise CertificateError(f"signs must be 1 or 2, and the certificate says {signs}")
    serves = {target.entry: _entrance(target, source, model, signs, shift)}
    for name, node in target.nodes.items():
        if node.affine is not None:
            serves[name] = _layer(target, source, model, name, serves[node.reads[0]], signs, shift)
        elif node.kind in ("each", "flatten"):
            serves[name] = serves[node.reads[0]]
        elif node.kind == "lift":
            serves[name] = serves[node.reads[0]] + node.shift[0]
        elif node.kind == "add":
            serves[name] = _sum(target, model, name, serves)
    out = serves[target.output]
    if not np.array_equal(out, np.arange(target.nodes[target.output].channels)):
        raise CertificateError(
            "the sub-network's outputs are not those of the target, one by one and in order"
        )


def _entrance(target: Target, source: Source, model: SubNetwork, signs: int, shift: float) -> np.ndarray:
    entrance, layer = model.entrance, source.layers[INPUTS]
    units, reads = entrance.units.numpy(), entrance.reads.numpy()
    check_units(INPUTS, units, layer.outputs)
    if len(units) and not (reads.min() >= 0 and reads.max() < target.inputs):
        raise CertificateError("the first layer reads inputs the target does not have")
    per_group, size = layer.outputs // layer.groups, target.inputs // layer.groups
    if (units // per_group != reads // size).any():
        raise CertificateError("the first layer reads inputs of another group")
    weight, bias = entrance.weight.numpy(), entrance.bias.numpy()
    if not np.isin(weight, [1.0, -1.0][:signs]).all() or (bias != shift).any():
        raise CertificateError(
            "the first layer does not copy its inputs: weights must be 1 or -1, biases the shift"
        )
    for part in layer.parts(np.arange(len(units))):
        seen = layer.rows(units[part])[np.arange(len(part)), reads[part] % size, 0]
        if not seen.all():
            raise CertificateError(
                f"an edge of layer {INPUTS} lies on a position that is not active in the source"
            )
    return np.where(weight < 0, target.inputs, 0) + reads


def _layer(
    target: Target, source: Source, model: SubNetwork, name: str, read: np.ndarray, signs: int, shift: float
) -> np.ndarray:
    kept, layer, affine = model.layer(name), source.layers[name], target.layers[name]
    units, serves = kept.units.numpy(), kept.serves.numpy()
    check_units(name, units, layer.outputs)
    crow, columns, values = kept.crow.numpy(), kept.columns.numpy(), kept.values.numpy()
    held, taps = model.held[target.nodes[name].reads[0]], affine.taps
    check_rows(name, crow, len(units), columns, len(values), len(held) * taps)
    sizes = np.diff(crow)
    if len(serves) != len(units) or (len(serves) and not 0 <= serves.min() <= serves.max() < affine.outputs):
        raise CertificateError(f"layer {name}: units serve neurons the target does not have")
    if (units // (layer.outputs // layer.groups) != serves // (affine.outputs // affine.groups)).any():
        raise CertificateError(f"layer {name}: units serve neurons of another group")
    first = target.nodes[name].reads[0] == target.entry
    weight = signed_weight(target, name, signs)
    bias = affine.bias
    if first and shift:
        bias = bias + shifted_bias(affine, np.full(target.inputs, -shift))
    if not np.array_equal(kept.bias.numpy(), bias[serves]):
        raise CertificateError(f"layer {name}: a bias is not that of the target")
    channels = _local(read, affine.groups, target.inputs if first else affine.inputs, first and signs == 2)
    in_group = layer.inputs // layer.groups
    for part in layer.parts(np.arange(len(units))):
        edges = slice(int(crow[part[0]]), int(crow[part[-1] + 1]))
        row = np.repeat(np.arange(len(part)), sizes[part])
        place, tap = columns[edges] // taps, columns[edges] % taps
        column = held[place] - units[part][row] // (layer.outputs // layer.groups) * in_group
        if ((column < 0) | (column >= in_group)).any():
            raise CertificateError(f"layer {name}: an edge comes from another group")
        if not layer.rows(units[part])[row, column, tap].all():
            raise CertificateError(
                f"an edge of layer {name} lies on a position that is not active in the source"
            )
        carried = np.zeros((len(part), *weight.shape[1:]))
        np.add.at(carried, (row, channels[place], tap), values[edges])
        if not np.array_equal(carried, weight[serves[part]]):
            raise CertificateError(f"layer {name}: a unit does not carry the weights of the neuron it serves")
    return serves


def _local(read: np.ndarray, groups: int, inputs: int, both: bool) -> np.ndarray:
    """Channels within their group, as the columns of ``signed_weight`` number them."""
    per_group = inputs // groups
    sign = read // inputs if both else 0
    return sign * per_group + read % inputs % per_group


def _sum(target: Target, model: SubNetwork, name: str, serves: dict[str, np.ndarray]) -> np.ndarray:
    """Units meet at an addition by number: they must serve the same channel; only a lifted side may have none."""
    node, kept = target.nodes[name], model.held[name]
    sides = []
    for read in node.reads:
        _, there, at = np.intersect1d(kept, model.held[read], assume_unique=True, return_indices=True)
        sides.append(np.full(len(kept), -1))
        sides[-1][there] = serves[read][at]
    found = np.maximum(*sides)
    for read, side in zip(node.reads, sides, strict=True):
        lifted = target.nodes[read]
        low = lifted.shift[0] if lifted.kind == "lift" else 0
        inside = (found >= low) & (found < lifted.channels - lifted.shift[1])
        if not np.array_equal(side, np.where(inside, found, -1)):
            raise CertificateError(f"{name}: an addition joins units that serve different channels")
    return found


def check_units(name: str, units: np.ndarray, outputs: int) -> None:
    """Refuse units that are not units of the source, in order."""
    if len(units) and (units[0] < 0 or units[-1] >= outputs or (np.diff(units) <= 0).any()):
        raise CertificateError(f"layer {name}: its units are not units of the source, in order")


def check_rows(name: str, crow: np.ndarray, units: int, columns: np.ndarray, values: int, width: int) -> None:
    """Refuse compressed rows that do not have a row for each unit and a value for each column in range."""
    sound = len(crow) == units + 1 and crow[0] == 0 and crow[-1] == len(columns) == values
    inside = not len(columns) or 0 <= columns.min() <= columns.max() < width
    if not sound or (np.diff(crow) < 0).any() or not inside:
        raise CertificateError(f"layer {name}: its compressed rows are not sound")
