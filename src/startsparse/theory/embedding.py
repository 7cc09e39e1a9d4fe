"""``embed``: a target inside a random sparse source, exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from .. import sources
from ..names import nearest
from ..scalars import as_plain
from . import certificate as certificates
from .assignment import ASSIGNMENTS, Assignment, assign, connect
from .certificate import Certificate
from .entrance import SourceTooNarrow, ends
from .graph import Target
from .network import SubNetwork, build
from .source import Source, given_source, random_source
from .tracing import trace
from .widths import check_probability, log_success


@dataclass
class Embedding:
    """A target inside a source.

    Attributes:
        model: the sub-network, a module in float64 that computes the target.
        source: what it is a part of.
        certificate: what was done and what was measured; ``as_json`` and ``save`` write it down.
    """

    model: SubNetwork
    source: Source
    certificate: Certificate

    def __str__(self) -> str:
        found = self.certificate
        return (
            f"{found.construction}: {found.edges:,} edges of a source of {self.source.positions:,} positions; outputs "
            f"differ by {found.error_measured:.2g} on {found.probes} inputs, by {found.error_bounded:.2g} at most"
        )

    def verify(self, target: nn.Module, example_input: Tensor | None = None) -> list[str]:
        """Check the certificate against the target and the sub-network, trusting neither; see ``theory.verify``."""
        return certificates.verify(
            self.certificate, target, self.model, source=self.source, example_input=example_input
        )


def embed(
    target: nn.Module,
    *,
    density: float | Mapping[str, float] | None = None,
    source: Source | nn.Module | None = None,
    delta: float = 0.1,
    seed: int = 0,
    box: tuple[float, float] | None = None,
    assignment: str = "block",
    example_input: Tensor | None = None,
) -> Embedding:
    """Find a trained net inside a random sparse net, exactly: weights are set on the source's active positions.

    With ``density`` the source is as wide as the theory asks for, so that this succeeds with probability 1 - delta over
    seeds. Its positions are drawn where they are looked at; nothing of its size is stored.

    Args:
        target: a feed-forward net of Linear and Conv2d layers (stride, padding, groups), batch norms behind them,
            activations, pooling and residual additions, as it computes in ``eval`` mode.
        density: of the source, one number or layer -> density (``"inputs"`` is the source's first layer).
        source: or the source itself: a ``Source``, or a module one layer deeper than the target, whose zeros are its mask.
        delta: probability of failure that is allowed for.
        seed: of the source's draws.
        box: (low, high) of the inputs, if known. Inputs that are not negative are copied once; others are shifted by
            ``low`` (exact for inputs in the box) unless the first layer pads with zeros. Without a box, both signs of
            each input are copied, which holds for all inputs and doubles the first layer.
        assignment: "block": equally many source units for each target unit, those that miss a parent are not used;
            "strict": as the theorem has it, one such unit is a failure; "adaptive": a source unit serves any target unit
            whose parents it sees, which needs a narrower source; units that meet others at an addition keep their blocks.
        example_input: a batch; its shape is that of the inputs errors are measured on. Needed where it cannot be guessed.

    Returns:
        An ``Embedding``: ``.model``, ``.source``, ``.certificate``, ``.verify(target)``.

    Raises:
        SourceTooNarrow: (a ValueError) the source does not hold the target: where, and what width would do.
        ValueError: a layer that cannot be embedded, weights that are not finite, arguments out of range.

    References:
        Gadhikar, Mukherjee, Burkholz, ICML 2023, theorem 2.2 (as recalled), https://arxiv.org/abs/2210.02412

    Fidelity:
        The theorem is recalled to take the first layer, the copies of inputs, as given; here it is random as the others.
        One position carries each weight, and only units the outputs need are kept. Residual nets and the adaptive
        assignment are ours.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> target = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> found = embed(target, density=0.3)
        >>> x = torch.randn(100, 5, dtype=torch.float64)
        >>> bool((found.model(x) - target.double()(x)).abs().max() < 1e-12)
        True
        >>> found.source.copies
        {'input': 31, '0': 19, '2': 1}
    """
    density, delta, seed = plain_density(density), as_plain(delta), as_plain(seed)
    _check(density, source, delta, assignment)
    traced = trace(target)
    low, high, signs = _box(traced, box)
    if isinstance(source, nn.Module):
        where = given_source(source, traced)
    elif source is not None:
        where = source
    else:
        assert density is not None
        where = random_source(traced, density, delta, seed, signs=signs)
    _check_fit(traced, where)
    try:
        assigned = assign(traced, where, signs, assignment)
        wired = connect(traced, where, assigned)
    except SourceTooNarrow as error:
        raise SourceTooNarrow(f"{error}; {_advice(traced, where, delta, signs, assignment)}") from None
    shift = low if low is not None and signs == 1 and (low < 0).any() else None
    model = build(traced, wired, where.copies, shift)
    made = certificates.certify(
        target, traced, where, model, box=(low, high), signs=signs, delta=delta, assignment=assignment,
        example_input=example_input,
    )  # fmt: skip
    _check_measured(made)
    return Embedding(model, where, made)


def plain_density(density: Any) -> Any:
    """A density, or one for each layer, as Python's own numbers."""
    if isinstance(density, Mapping):
        return {name: as_plain(value) for name, value in density.items()}
    return as_plain(density)


def _check(density: object, source: object, delta: float, assignment: str) -> None:
    if (density is None) == (source is None):
        raise ValueError("embed takes exactly one of density and source")
    if isinstance(source, sources.Source):
        raise ValueError(
            f"a {type(source).__name__} of ss.sources has no widths of its own: give density=, and a random source as wide "
            "as it takes is drawn; or theory.random_source(...)"
        )
    if source is not None and not isinstance(source, Source | nn.Module):
        raise ValueError(f"source must be a theory.Source or a torch module, got {type(source).__name__}")
    check_probability(delta)
    if assignment not in ASSIGNMENTS:
        raise ValueError(f"unknown assignment {assignment!r}: {nearest(str(assignment), ASSIGNMENTS)}")


def _check_measured(made: Certificate) -> None:
    """Refuse what was traced if the target computes something else."""
    if not math.isfinite(made.error_measured):
        raise ValueError(
            f"the target's outputs are not finite in float64 for inputs in {made.box}: its weights are too large"
        )
    if not made.error_measured <= made.error_bounded:
        raise ValueError(
            f"the target's outputs differ by {made.error_measured:.2g} from those of its layers as they were traced, and "
            f"rounding makes {made.error_bounded:.2g} at most: does it change values in place, or draw random numbers?"
        )


def _box(target: Target, box: Sequence[float] | None) -> tuple[np.ndarray | None, np.ndarray | None, int]:
    """Lower and upper ends of each input, and how many signs of it are copied."""
    if box is None:
        return None, None, 2
    low, high = ends(box)
    signs = 2 if low < 0 and target.pads_input else 1
    return np.full(target.inputs, low), np.full(target.inputs, high), signs


def _check_fit(target: Target, source: Source) -> None:
    for name, affine in target.layers.items():
        layer = source.layers.get(name)
        if layer is None or (layer.taps, layer.groups) != (affine.taps, affine.groups):
            raise ValueError(
                f"this source was not made for the target: layer {name} is not in it, or differs"
            )


def _advice(target: Target, source: Source, delta: float, signs: int, assignment: str) -> str:
    """What would do, and how probable success was."""
    densities = {name: layer.density for name, layer in source.layers.items()}
    empty = [name for name, density in densities.items() if density == 0]
    if empty:
        return f"layer {empty[0]} of the source has no active position at all: no width would do"
    wide = random_source(target, densities, delta, 0, signs=signs)
    widths = {name: layer.outputs for name, layer in wide.layers.items()}
    have = {name: layer.outputs for name, layer in source.layers.items()}
    text = f"the source's widths are {have}; {widths} would do with probability {1 - delta:g}"
    if source.copies:
        chance = math.exp(log_success(target.links(densities, signs), lambda group: source.copies[group]))
        text += f", and here all units find their parents with probability {chance:.3g}"
    return text + ("" if assignment == "adaptive" else "; or try another draw, or assignment='adaptive'")


__all__ = ["Assignment", "Embedding", "embed"]
