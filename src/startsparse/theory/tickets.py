"""Strong tickets: a mask alone, over frozen random weights, that computes a target within a tolerance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from .. import sources
from ..scalars import as_plain
from .entrance import SourceTooNarrow, ends
from .graph import Target
from .network import SubNetwork
from .source import Source
from .subset_sums import MOST
from .ticket_bound import constant_tap, keeps_constants, ticket_error
from .ticket_certificate import TicketCertificate, certify_ticket, verify_ticket
from .ticket_solving import solve_all
from .ticket_source import ticket_source, tolerances
from .tracing import trace
from .widths import check_density, check_probability

_ROUNDS = 6  # times the tolerance is made smaller before giving up
_FINEST = 2.0 ** (2 - MOST)  # of a weight: where the 2^40 sums of 40 numbers leave gaps


@dataclass
class Ticket:
    """A mask over a source with frozen weights that computes a target within a tolerance.

    Attributes:
        model: the sub-network; all its weights and biases are the source's own.
        source: the positions.
        certificate: what was solved, and how far outputs can be off.
    """

    model: SubNetwork
    source: Source
    certificate: TicketCertificate

    def verify(self, target: nn.Module) -> list[str]:
        """Check the certificate from the target's weights and the source's draws alone."""
        return verify_ticket(self.certificate, target, self.model)


def strong_ticket(
    target: nn.Module,
    *,
    density: float | None = None,
    source: None = None,
    eps: float = 0.1,
    delta: float = 0.1,
    seed: int = 0,
    box: tuple[float, float] = (-1.0, 1.0),
) -> Ticket:
    """Find a mask, and only a mask, in a random sparse net with frozen weights, such that it computes the target.

    Every weight of the target becomes a sum of frozen weights over those copies of its input that the source's
    positions reach: a subset sum, solved exactly. Inputs pass through frozen weights of either sign; biases are sums over
    constant units. A unit one of whose sums is not solved is not used.

    Args:
        target: a plain chain of Linear and Conv2d layers without groups, with ReLU or the like; small: each of its
            weights costs a subset sum for each of its copies.
        density: of the source.
        source: none is taken: how wide it has to be follows from ``eps``, and its weights are drawn with its positions.
        eps: how far any output may be off, for inputs in the box.
        delta: failure probability the widths are made for.
        seed: of positions and weights.
        box: (low, high) of the inputs.

    Returns:
        A ``Ticket``; its certificate bounds the error by the sums that were found, not by the tolerance.

    Raises:
        SourceTooNarrow: an output has an unsolved sum, or the error bound stays above ``eps``.
        ValueError: a target or arguments this construction does not take; a tolerance below float64's resolution.

    References:
        Gadhikar, Mukherjee, Burkholz, ICML 2023, theorem 2.5 and lemma 2.4, as recalled. The bound from the sums that
        were found is derived here.

    Fidelity:
        The source has one layer more than the target. Its width grows as 1 / p, which was measured, where the theorem is
        recalled with 1 / log(1 / (1 - p)). The tolerance is made smaller until the bound is kept, since copies of a unit
        are not equally good.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> ticket = strong_ticket(net, density=0.5, eps=0.1)
        >>> x = 2 * torch.rand(100, 2, dtype=torch.float64) - 1
        >>> bool((ticket.model(x) - net.double()(x)).abs().max() <= ticket.certificate.error_bounded <= 0.1)
        True
    """
    eps, delta, seed = as_plain(eps), as_plain(delta), as_plain(seed)
    traced = trace(target)
    density = _check_density(density, source)
    low, high = _check(traced, eps, delta, seed, box)
    signs = 1 if low >= 0 else 2
    magnitude = np.full(traced.inputs, max(abs(low), abs(high)))
    ease, error = 1.0, math.inf
    for _ in range(_ROUNDS):
        allowed = {name: t * ease for name, t in tolerances(traced, magnitude, eps).items()}
        _check_resolution(traced, allowed, eps)
        where = ticket_source(traced, density, allowed, delta, seed, signs)
        tensors, counts = solve_all(traced, where, allowed, magnitude, signs)
        model = SubNetwork(traced, {}, {key: torch.from_numpy(value) for key, value in tensors.items()})
        error = ticket_error(traced, model, magnitude, signs)
        if error <= eps:
            made = certify_ticket(
                target, traced, where, model, eps, delta, (low, high), allowed, counts, error
            )
            return Ticket(model, where.source, made)
        ease *= max(0.05, 0.7 * eps / error)
    raise SourceTooNarrow(
        f"the error bound is {error:.3g}, above eps={eps:g}, after {_ROUNDS} smaller tolerances"
    )


def _check_density(density: object, source: object) -> float:
    if source is None and isinstance(density, sources.Source | Source | nn.Module):
        source = density
    if source is not None:
        raise ValueError(
            f"strong_ticket draws its own source, as wide as eps asks for: give its density as a number, not a "
            f"{type(source).__name__}. theory.embed takes a source that has widths; ss.search(model, method, source=...) takes "
            "locked-in weights too, which would carry here what no sum asked for"
        )
    if density is None:
        raise ValueError("strong_ticket takes the density of the source it draws: density=, in (0, 1]")
    return check_density(as_plain(density))


def _check(
    target: Target, eps: float, delta: float, seed: int, box: tuple[float, float]
) -> tuple[float, float]:
    _ = check_probability(delta)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed must be an int, got {seed!r}")
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps < math.inf:
        raise ValueError(f"eps must be a positive number, got {eps!r}")
    low, high = ends(box)
    if low == high:
        raise ValueError(f"box must be (low, high) with something between them, got {tuple(box)!r}")
    for name, node in target.nodes.items():
        if node.kind in ("add", "lift"):
            raise ValueError(f"{name}: strong tickets are found for plain chains, without additions")
        if node.affine is not None and node.affine.groups > 1:
            raise ValueError(f"{name}: strong tickets are found for layers without groups")
        if node.affine is not None and node.affine.bias.any() and constant_tap(node.affine) is None:
            raise ValueError(f"{name}: its padding leaves no tap through which a bias could come")
        if not keeps_constants(node) or math.isfinite(node.ceiling):
            raise ValueError(f"{name}: a constant unit, of which biases are made, does not pass it unchanged")
    return low, high


def _check_resolution(target: Target, allowed: dict[str, float], eps: float) -> None:
    for name, tolerance in allowed.items():
        largest = float(np.abs(target.layers[name].weight).max())
        if tolerance < _FINEST * largest:
            below = (
                "float64 resolves in a sum" if tolerance < 2.0**-44 * largest else f"{MOST} numbers sum up to"
            )
            raise ValueError(
                f"eps={eps:g} asks for {tolerance:.3g} for each weight of layer {name!r}, the largest of which is "
                f"{largest:.3g}: that is below what {below}; choose a larger eps"
            )
