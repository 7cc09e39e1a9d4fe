"""What an embedding claims, as plain data, and the check of it by somebody who trusts neither claim nor maker."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from .audit import audit
from .checking import difference, measured, opened, probes_for
from .graph import Target
from .network import SubNetwork
from .rounding import bound
from .sealed import Sealed, close, same
from .source import Source
from .widths import log_success


@dataclass(frozen=True)
class Certificate(Sealed):
    """What was embedded in what, how, and how well.

    Attributes:
        construction: "L layers in L + 1, block" and the like.
        target: sha256 of the target's weight layers, as traced.
        model: sha256 of the sub-network's tensors.
        source: the source as plain data: layers [name, outputs, inputs, taps, groups, density], seed, copies.
        signs: copies of each input are of both signs (2) or one (1).
        shift: what is added to every input before it is copied.
        box: [low, high] of the inputs for which the bound holds.
        delta: failure probability the widths were made for.
        chance: exact probability that all units of such a source find their parents; None where its copies are unknown.
        layers: name -> {"units", "edges", "source_units"}.
        edges: active positions used.
        source_positions: positions of the source, active or not.
        source_edges: active ones to be expected.
        error_bounded: largest difference rounding can make for inputs in the box, float64.
        error_measured: largest difference seen.
        probes: inputs measured.
    """

    construction: str
    target: str
    model: str
    source: dict[str, Any]
    signs: int
    shift: float
    box: tuple[float, float]
    delta: float
    chance: float | None
    layers: dict[str, dict[str, int]]
    edges: int
    source_positions: int
    source_edges: int
    error_bounded: float
    error_measured: float
    probes: int
    version: int = 1


def certify(
    target: nn.Module,
    traced: Target,
    source: Source,
    model: SubNetwork,
    *,
    box: tuple[np.ndarray | None, np.ndarray | None],
    signs: int,
    delta: float,
    assignment: str,
    example_input: Tensor | None,
) -> Certificate:
    """Write down what was found; the error is measured on inputs drawn in the box."""
    low = -1.0 if box[0] is None else float(box[0][0])
    high = 1.0 if box[1] is None else float(box[1][0])
    shift = -low if signs == 1 and low < 0 else 0.0
    probes = probes_for(target, traced, (low, high), example_input)
    return Certificate(
        construction=f"L layers in L + 1, {assignment}",
        target=traced.digest,
        model=model.digest(),
        source=source.describe(),
        signs=signs,
        shift=shift,
        box=(low, high),
        delta=delta,
        chance=_chance(traced, source, signs),
        layers=_layers(traced, source, model),
        edges=model.edges,
        source_positions=source.positions,
        source_edges=source.expected_edges,
        error_bounded=_bound(traced, (low, high), shift),
        error_measured=difference(target, model, probes),
        probes=len(probes),
    )


def verify(
    certificate: Certificate | str,
    target: nn.Module,
    model: SubNetwork | Mapping[str, Tensor],
    *,
    source: Source | None = None,
    example_input: Tensor | None = None,
) -> list[str]:
    """Check a certificate against two models, trusting none of the three.

    Everything is done again from the target's weights and the sub-network's edges: positions are drawn again from the
    seed, weights compared one by one, bounds computed, errors measured.

    Args:
        certificate: or its JSON text.
        target: the net it is said to be about.
        model: the sub-network, or its tensors as they were saved.
        source: needed where the source was given as a module.
        example_input: a batch of the inputs' shape, where that cannot be guessed.

    Returns:
        What was checked, in sentences.

    Raises:
        CertificateError: (a ValueError) with the reason.
    """
    if not isinstance(certificate, Certificate):
        certificate = Certificate.from_json(certificate)
    traced, where, model = opened(certificate, target, model, source)
    audit(traced, where, model, certificate.signs, certificate.shift)
    low = certificate.box[0]
    same("shift", certificate.shift, -low if certificate.signs == 1 and low < 0 else 0.0)
    same("the number of edges", certificate.edges, model.edges)
    same("the layers' units and edges", certificate.layers, _layers(traced, where, model))
    same("the source's positions", certificate.source_positions, where.positions)
    same("the source's expected edges", certificate.source_edges, where.expected_edges)
    close("the probability", certificate.chance, _chance(traced, where, certificate.signs))
    close("the error bound", certificate.error_bounded, _bound(traced, certificate.box, certificate.shift))
    probes = probes_for(target, traced, certificate.box, example_input)
    again = measured(certificate, target, model, probes, certificate.error_bounded)
    return [
        f"target and sub-network are those of the certificate ({certificate.target[:12]}, {certificate.model[:12]})",
        f"all {model.edges:,} edges lie on active positions of the source",
        "every unit carries exactly the weights of the target unit it serves",
        f"outputs differ by {again:.2g} on {len(probes)} inputs, by {certificate.error_bounded:.2g} at most in the box",
    ]


def _layers(target: Target, source: Source, model: SubNetwork) -> dict[str, dict[str, int]]:
    first = {"units": len(model.entrance.units), "edges": len(model.entrance.units)}
    found = {"inputs": first | {"source_units": source.layers["inputs"].outputs}}
    for name in target.layers:
        layer = model.layer(name)
        sizes = {"units": len(layer.units), "edges": len(layer.values)}
        found[name] = sizes | {"source_units": source.layers[name].outputs}
    return found


def _chance(target: Target, source: Source, signs: int) -> float | None:
    if not source.copies:
        return None
    densities = {name: layer.density for name, layer in source.layers.items()}
    return math.exp(log_success(target.links(densities, signs), lambda group: source.copies[group]))


def _bound(target: Target, box: tuple[float, float], shift: float) -> float:
    size = target.inputs
    return bound(target, np.full(size, max(abs(box[0]), abs(box[1]))), np.full(size, shift))
