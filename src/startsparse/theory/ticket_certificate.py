"""What a strong ticket claims, and the check of it from the target's weights and the source's draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from .checking import difference, measured, opened, probes_for
from .graph import Target
from .network import SubNetwork
from .sealed import CertificateError, Sealed, close, same
from .ticket_audit import audit_ticket
from .ticket_bound import ticket_error
from .ticket_solving import Counts
from .ticket_source import TicketSource


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
    traced, where, model = opened(certificate, target, model, None)
    audit_ticket(traced, where, certificate.scales, model)
    same("the number of edges", certificate.edges, model.edges)
    same("the source's positions", certificate.source_positions, where.positions)
    low, high = certificate.box
    magnitude = np.full(traced.inputs, max(abs(low), abs(high)))
    bounded = ticket_error(traced, model, magnitude, 1 if low >= 0 else 2)
    close("the error bound", certificate.error_bounded, bounded)
    if not bounded <= certificate.eps:
        raise CertificateError(f"the error bound {bounded:g} is above eps = {certificate.eps:g}")
    probes = probes_for(target, traced, certificate.box, None)
    again = measured(certificate, target, model, probes, bounded)
    return [
        f"target and sub-network are those of the certificate ({certificate.target[:12]}, {certificate.model[:12]})",
        f"all {model.edges:,} edges lie on active positions and have the source's frozen weights; biases too, or zero",
        f"outputs differ by {again:.2g} on {len(probes)} inputs, by {bounded:.2g} at most in the box",
    ]
