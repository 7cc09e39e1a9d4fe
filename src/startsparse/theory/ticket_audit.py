"""The check of a strong ticket, edge by edge, from the source's draws alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .audit import check_rows, check_units
from .frozen import Frozen
from .graph import Target
from .network import SubNetwork
from .sealed import CertificateError
from .source import INPUTS, Source


def audit_ticket(target: Target, source: Source, scales: Mapping[str, float], model: SubNetwork) -> None:
    """Refuse a sub-network that is not a mask over the source's frozen weights, or serves what is not there.

    Raises:
        CertificateError: the layer and what is wrong.
    """
    first = source.layers[INPUTS]
    entrance = model.entrance
    units, reads, weight = entrance.units.numpy(), entrance.reads.numpy(), entrance.weight.numpy()
    check_units(INPUTS, units, first.outputs)
    if (
        len(reads) != len(units)
        or len(weight) != len(units)
        or not ((reads >= 0) & (reads < target.inputs)).all()
    ):
        raise CertificateError("the first layer reads inputs the target does not have")
    frozen, kept = Frozen(first, scales[INPUTS]), weight != 0
    at = np.arange(len(units))
    active = first.rows(units)[at, reads, 0]
    if (kept & ((frozen.rows(units)[at, reads, 0] != weight) | ~active)).any():
        raise CertificateError("the first layer keeps a weight that is not the source's")
    bias = entrance.bias.numpy()
    _biases(INPUTS, bias, frozen.biases()[units])
    if (kept & (bias != 0)).any() or (~kept & (bias < 0)).any():
        raise CertificateError("the first layer must keep one weight, or a positive bias, of each unit")
    for name, affine in target.layers.items():
        layer, found = source.layers[name], model.layer(name)
        units, serves = found.units.numpy(), found.serves.numpy()
        check_units(name, units, layer.outputs)
        crow, columns, values = found.crow.numpy(), found.columns.numpy(), found.values.numpy()
        held = model.held[target.nodes[name].reads[0]]
        check_rows(name, crow, len(units), columns, len(values), len(held) * affine.taps)
        counts = np.diff(crow)
        if len(serves) != len(units) or not ((serves >= -1) & (serves < affine.outputs)).all():
            raise CertificateError(f"layer {name}: units serve neurons the target does not have")
        row = np.repeat(np.arange(len(units)), counts)
        flat = held[columns // affine.taps] * affine.taps + columns % affine.taps
        if len(np.unique(row * layer.width + flat)) != len(flat):
            raise CertificateError(f"layer {name}: a position is used twice")
        for part in layer.parts(np.arange(len(units))):
            edges = slice(int(crow[part[0]]), int(crow[part[-1] + 1]))
            at = (row[edges] - part[0], flat[edges])
            if not layer.rows(units[part]).reshape(len(part), -1)[at].all():
                raise CertificateError(
                    f"an edge of layer {name} lies on a position that is not active in the source"
                )
            weights = Frozen(layer, scales[name]).rows(units[part]).reshape(len(part), -1)
            if not np.array_equal(weights[at], values[edges]):
                raise CertificateError(f"layer {name}: a weight is not the source's frozen one")
        bias = found.bias.numpy()
        _biases(name, bias, Frozen(layer, scales[name]).biases()[units])
        if ((serves < 0) & ((counts > 0) | (bias < 0))).any():
            raise CertificateError(f"layer {name}: a constant unit must have a positive bias and no edges")
    last = model.layer(list(target.layers)[-1]).serves.numpy()
    if not np.array_equal(last, np.arange(target.nodes[target.output].channels)):
        raise CertificateError(
            "the sub-network's outputs are not those of the target, one by one and in order"
        )


def _biases(name: str, bias: np.ndarray, frozen: np.ndarray) -> None:
    if ((bias != 0) & (bias != frozen)).any():
        raise CertificateError(f"layer {name}: a bias is neither the source's frozen one nor zero")
