"""What a strong ticket claims, and the check of it from the target's weights and the source's draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from .audit import CertificateError
from .certificate import Sealed, close, difference, probes_for, same, source_of
from .frozen import Frozen
from .graph import Target
from .network import SubNetwork
from .source import INPUTS, Source
from .ticket_bound import ticket_error
from .ticket_solving import Counts
from .ticket_source import TicketSource
from .tracing import trace


@dataclass(frozen=True)
class TicketCertificate(Sealed):
    """What was found where.

    Attributes:
        construction: its name.
        target: sha256 of the target's weight layers.
        model: sha256 of the sub-network's tensors.
        source: as plain data.
        scales: layer -> frozen weights are uniform in [-scale, scale); biases in [-1, 1).
        eps: what was asked for.
        delta: failure probability the widths were made for.
        box: [low, high] of the inputs.
        tolerances: layer -> how far each sum may be off.
        solved: subset sums, how many were widened, units dropped for an unsolved one.
        edges: active positions used.
        source_positions: positions of the source.
        error_bounded: no output is off by more, for any input in the box.
        error_measured: largest difference seen.
        probes: inputs measured.
    """

    construction: str
    target: str
    model: str
    source: dict[str, Any]
    scales: dict[str, float]
    eps: float
    delta: float
    box: tuple[float, float]
    tolerances: dict[str, float]
    solved: dict[str, int]
    edges: int
    source_positions: int
    error_bounded: float
    error_measured: float
    probes: int
    version: int = 1


def certify_ticket(
    target: nn.Module,
    traced: Target,
    where: TicketSource,
    model: SubNetwork,
    eps: float,
    delta: float,
    box: tuple[float, float],
    tolerances: Mapping[str, float],
    counts: Counts,
    error: float,
) -> TicketCertificate:
    """Write down what was found."""
    probes = probes_for(target, traced, box, None)
    return TicketCertificate(
        construction="strong ticket, L layers in L + 1, subset sums",
        target=traced.digest,
        model=model.digest(),
        source=where.source.describe(),
        scales=dict(where.scales),
        eps=eps,
        delta=delta,
        box=box,
        tolerances=dict(tolerances),
        solved=asdict(counts),
        edges=model.edges,
        source_positions=where.source.positions,
        error_bounded=error,
        error_measured=difference(target, model, probes),
        probes=len(probes),
    )


def verify_ticket(
    certificate: TicketCertificate | str, target: nn.Module, model: SubNetwork | Mapping[str, Tensor]
) -> list[str]:
    """Check a strong ticket, trusting neither certificate nor sub-network.

    All weights and biases are drawn again from the seed and compared bit by bit; the error bound is computed again from
    the sums they make.

    Raises:
        CertificateError: with the reason.
    """
    if not isinstance(certificate, TicketCertificate):
        certificate = TicketCertificate.from_json(certificate)
    traced = trace(target)
    same(
        "the target's weights (sha256)",
        certificate.target,
        traced.digest,
        "another target, or it was changed",
    )
    source = source_of(certificate.source, None)
    if not isinstance(model, SubNetwork):
        try:
            model = SubNetwork(traced, {}, model)
        except (KeyError, IndexError, ValueError, RuntimeError) as error:
            raise CertificateError(f"these tensors are not a sub-network of the target: {error}") from None
    same(
        "the sub-network's tensors (sha256)",
        certificate.model,
        model.digest(),
        "another one, or it was changed",
    )
    _audit(traced, source, certificate.scales, model)
    same("the number of edges", certificate.edges, model.edges)
    same("the source's positions", certificate.source_positions, source.positions)
    low, high = certificate.box
    magnitude = np.full(traced.inputs, max(abs(low), abs(high)))
    bounded = ticket_error(traced, model, magnitude, 1 if low >= 0 else 2)
    close("the error bound", certificate.error_bounded, bounded)
    if not bounded <= certificate.eps:
        raise CertificateError(f"the error bound {bounded:g} is above eps = {certificate.eps:g}")
    probes = probes_for(target, traced, certificate.box, None)
    again = difference(target, model, probes)
    for what, seen in (("measured", again), ("certified as measured", certificate.error_measured)):
        if not seen <= bounded:
            raise CertificateError(f"the error {what}, {seen:g}, is above the bound {bounded:g}")
    return [
        f"target and sub-network are those of the certificate ({certificate.target[:12]}, {certificate.model[:12]})",
        f"all {model.edges:,} edges lie on active positions and have the source's frozen weights; biases too, or zero",
        f"outputs differ by {again:.2g} on {len(probes)} inputs, by {bounded:.2g} at most in the box",
    ]


def _audit(target: Target, source: Source, scales: Mapping[str, float], model: SubNetwork) -> None:
    """Refuse a sub-network that is not a mask over the source's frozen weights, or serves what is not there."""
    first = source.layers[INPUTS]
    entrance = model.entrance
    units, reads, weight = entrance.units.numpy(), entrance.reads.numpy(), entrance.weight.numpy()
    _in_order(INPUTS, units, first.outputs)
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
        _in_order(name, units, layer.outputs)
        counts, columns = np.diff(found.crow.numpy()), found.columns.numpy()
        held = model.held[target.nodes[name].reads[0]]
        crow = found.crow.numpy()
        sound = len(crow) == len(units) + 1 == len(serves) + 1 and crow[0] == 0 and crow[-1] == len(columns)
        if (
            not sound
            or (counts < 0).any()
            or not ((columns >= 0) & (columns < len(held) * affine.taps)).all()
        ):
            raise CertificateError(f"layer {name}: its compressed rows are not sound")
        if not ((serves >= -1) & (serves < affine.outputs)).all():
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
            if not np.array_equal(weights[at], found.values.numpy()[edges]):
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


def _in_order(name: str, units: np.ndarray, outputs: int) -> None:
    if len(units) and (units[0] < 0 or units[-1] >= outputs or (np.diff(units) <= 0).any()):
        raise CertificateError(f"layer {name}: its units are not units of the source, in order")


def _biases(name: str, bias: np.ndarray, frozen: np.ndarray) -> None:
    if ((bias != 0) & (bias != frozen)).any():
        raise CertificateError(f"layer {name}: a bias is neither the source's frozen one nor zero")
