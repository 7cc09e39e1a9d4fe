"""What the checks of all certificates share: the parts they are about, and errors measured on inputs of their own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .graph import Target
from .network import SubNetwork
from .sealed import CertificateError, same
from .source import Source, from_description
from .tracing import trace

_SIZES = (8, 16, 28, 32, 64, 96, 224, *range(1, 64))  # sides of an image, tried until the target takes one
_PROBES = {"linear": 256, "image": 16}


class Certified(Protocol):
    """What every certificate states."""

    @property
    def target(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def source(self) -> dict[str, Any]: ...
    @property
    def error_measured(self) -> float: ...


def opened(
    certificate: Certified,
    target: nn.Module,
    model: SubNetwork | Mapping[str, Tensor],
    source: Source | None,
) -> tuple[Target, Source, SubNetwork]:
    """Target, source and sub-network, if they are those of the certificate.

    Raises:
        CertificateError: with the reason.
    """
    traced = trace(target)
    hint = "another target, or it was changed"
    same("the target's weights (sha256)", certificate.target, traced.digest, hint)
    where = source_of(certificate.source, source)
    if not isinstance(model, SubNetwork):
        try:
            model = SubNetwork(traced, where.copies, model)
        except KeyError as error:
            raise CertificateError(f"these tensors are not a sub-network of the target: no {error}") from None
        except (IndexError, ValueError, RuntimeError) as error:
            raise CertificateError(f"these tensors are not a sub-network of the target: {error}") from None
    hint = "another one, or it was changed"
    same("the sub-network's tensors (sha256)", certificate.model, model.digest(), hint)
    return traced, where, model


def measured(
    certificate: Certified, target: nn.Module, model: SubNetwork, probes: Tensor, bound: float
) -> float:
    """The largest difference on the probes; refused, as the stated one is, above the bound."""
    again = difference(target, model, probes)
    for what, error in (("measured", again), ("certified as measured", certificate.error_measured)):
        if not error <= bound:
            raise CertificateError(f"the error {what}, {error:g}, is above the bound {bound:g}")
    return again


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


def probes_for(target: nn.Module, traced: Target, box: tuple[float, float], example: Tensor | None) -> Tensor:
    """Inputs in the box, by a generator of their own; of the example's shape, or of one the target takes."""
    generator = torch.Generator().manual_seed(0)
    still = _double(target)
    if example is not None:
        if example.dim() < 2:
            raise ValueError(f"example_input must be a batch, got a tensor of shape {tuple(example.shape)}")
        probes = torch.rand(example.shape, generator=generator, dtype=torch.float64)
        probes = probes * (box[1] - box[0]) + box[0]
        try:
            with torch.no_grad():
                still(probes)
        except (RuntimeError, IndexError, ValueError) as error:
            raise ValueError(
                f"the target does not take example_input, a batch of shape {tuple(example.shape)}: {error}"
            ) from None
        return probes
    first = next(a for name, a in traced.layers.items() if traced.nodes[name].reads[0] == traced.entry)
    if first.geometry is None:
        shapes = [(_PROBES["linear"], traced.inputs)]
    else:
        shapes = [(_PROBES["image"], traced.inputs, side, side) for side in _SIZES]
    for shape in shapes:
        probes = torch.rand(shape, generator=generator, dtype=torch.float64) * (box[1] - box[0]) + box[0]
        try:
            with torch.no_grad():
                if len(still(probes[:1])) == 1:  # not so if a view made several examples of one
                    return probes
        except RuntimeError:
            continue
    raise ValueError("the shape of the target's inputs cannot be guessed: pass example_input")


def _double(target: nn.Module) -> nn.Module:
    return copy.deepcopy(target).cpu().eval().double()


def difference(target: nn.Module, model: SubNetwork, probes: Tensor) -> float:
    """The largest difference of outputs."""
    still = _double(target)
    with torch.no_grad():
        return max(float((still(x) - model(x)).abs().max()) for x in probes.split(64))
