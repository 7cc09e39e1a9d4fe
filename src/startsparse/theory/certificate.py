"""What an embedding claims, as plain data, and the check of it by somebody who trusts neither claim nor maker."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from ..artifact import atomic
from .audit import CertificateError, audit
from .graph import Target
from .network import SubNetwork
from .rounding import bound
from .source import Source, from_description
from .tracing import trace
from .widths import log_success

_SIZES = (8, 16, 28, 32, 64, 96, 224)  # sides of an image, tried until the target takes one
_PROBES = {"linear": 256, "image": 16}


@dataclass(frozen=True)
class Sealed:
    """A certificate as a JSON text that carries the sha256 of its content."""

    def as_json(self) -> str:
        """The certificate with the sha256 of its content, JSON."""
        content = asdict(self)
        return json.dumps(content | {"sha256": _seal(content)}, indent=1)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file, as a whole or not at all."""
        atomic.write(path, [np.frombuffer(self.as_json().encode() + b"\n", np.uint8)])

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a certificate.

        Raises:
            CertificateError: it is not one, or was altered.
        """
        try:
            content = json.loads(text)
            seal = content.pop("sha256")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CertificateError(f"this is not a certificate: {error}") from None
        if seal != _seal(content):
            raise CertificateError(
                "the certificate was altered: its content does not have the sha256 it states"
            )
        if set(content) != {field.name for field in fields(cls)} or content["version"] != 1:
            raise CertificateError(
                "the certificate is of another version: its fields are not those of version 1"
            )
        found = cls(**content | {"box": tuple(content["box"])})
        if text.strip() != found.as_json():
            raise CertificateError("the certificate was altered: it is not written the way certificates are")
        return found


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
        example_input: for measuring, where the shape of inputs cannot be guessed.

    Returns:
        What was checked, in sentences.

    Raises:
        CertificateError: (a ValueError) with the reason.
    """
    if not isinstance(certificate, Certificate):
        certificate = Certificate.from_json(certificate)
    traced = trace(target)
    same(
        "the target's weights (sha256)",
        certificate.target,
        traced.digest,
        "another target, or it was changed",
    )
    where = source_of(certificate.source, source)
    if not isinstance(model, SubNetwork):
        try:
            model = SubNetwork(traced, where.copies, model)
        except (KeyError, IndexError, ValueError, RuntimeError) as error:
            raise CertificateError(f"these tensors are not a sub-network of the target: {error}") from None
    same(
        "the sub-network's tensors (sha256)",
        certificate.model,
        model.digest(),
        "another one, or it was changed",
    )
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
    again = difference(target, model, probes)
    for what, error in (("measured", again), ("certified as measured", certificate.error_measured)):
        if not error <= certificate.error_bounded:
            raise CertificateError(
                f"the error {what}, {error:g}, is above the bound {certificate.error_bounded:g}"
            )
    return [
        f"target and sub-network are those of the certificate ({certificate.target[:12]}, {certificate.model[:12]})",
        f"all {model.edges:,} edges lie on active positions of the source",
        "every unit carries exactly the weights of the target unit it serves",
        f"outputs differ by {again:.2g} on {len(probes)} inputs, by {certificate.error_bounded:.2g} at most in the box",
    ]


def source_of(described: Mapping[str, Any], given: Source | None) -> Source:
    """The source a certificate describes, drawn anew; or the given one, if its masks are those described."""
    if described.get("rule") == "bernoulli":
        try:
            return from_description(described)
        except (KeyError, TypeError, ValueError) as error:
            raise CertificateError(f"the certificate's source cannot be drawn: {error}") from None
    if given is None:
        raise CertificateError(
            "the certificate is about a source that was given as a module: pass it as source="
        )
    same("the source's masks (sha256)", described.get("sha256"), given.describe().get("sha256"))
    return given


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


def probes_for(target: nn.Module, traced: Target, box: tuple[float, float], example: Tensor | None) -> Tensor:
    """Inputs in the box, by a generator of their own."""
    generator = torch.Generator().manual_seed(0)
    if example is not None:
        return example.detach().to("cpu", torch.float64)
    first = next(a for name, a in traced.layers.items() if traced.nodes[name].reads[0] == traced.entry)
    if first.geometry is None:
        shapes = [(_PROBES["linear"], traced.inputs)]
    else:
        shapes = [(_PROBES["image"], traced.inputs, side, side) for side in _SIZES]
    still = _double(target)
    for shape in shapes:
        probes = torch.rand(shape, generator=generator, dtype=torch.float64) * (box[1] - box[0]) + box[0]
        try:
            with torch.no_grad():
                still(probes[:1])
        except RuntimeError:
            continue
        return probes
    raise ValueError("the shape of the target's inputs cannot be guessed: pass example_input")


def _double(target: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(target).cpu().eval().double()


def difference(target: nn.Module, model: SubNetwork, probes: Tensor) -> float:
    still = _double(target)
    with torch.no_grad():
        return max(float((still(x) - model(x)).abs().max()) for x in probes.split(64))


def _seal(content: Mapping[str, Any]) -> str:
    plain = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(plain.encode()).hexdigest()


def same(what: str, stated: object, found: object, hint: str = "") -> None:
    if stated != found:
        shown = f"stated {stated}, found {found}"
        raise CertificateError(f"{what} differ from the certificate{': ' + hint if hint else ''} ({shown})")


def close(what: str, stated: float | None, found: float | None) -> None:
    if stated is None or found is None:
        same = stated is found
    else:
        same = math.isclose(stated, found, rel_tol=1e-9)
    if not same:
        raise CertificateError(f"{what} differs from the certificate: stated {stated}, found {found}")
