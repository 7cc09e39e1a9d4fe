"""Weights that are to leave are pulled to zero while they still live: through their gradients, or by themselves."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from ..methods import Method
from .interface import Site

ENOUGH = 20.0  # e-folds: what is left then is below the resolution of float32


def by_gradient(penalty: str, optimizer: Optimizer) -> bool:
    """Whether the pull goes through the gradient: where the optimizer takes it in proportion, unless it is said."""
    return penalty == "gradient" or (penalty == "auto" and isinstance(optimizer, SGD))


@torch.no_grad()
def add_to_gradients(sites: Iterable[Site], optimizer: Optimizer, strength: float) -> None:
    """Add strength * weight to the gradients of leaving weights, in one pass, before the optimizer's step.

    A fused optimizer under a gradient scaler holds scaled gradients: the pull is scaled alike.
    """
    scale = getattr(optimizer, "grad_scale", None)
    gradients: list[Tensor] = []
    weights: list[Tensor] = []
    masks: list[Tensor] = []
    for site, leaving, _ in _held(sites, optimizer):
        if site.parameter.grad is not None:
            gradients.append(site.parameter.grad)
            weights.append(site.parameter.detach())
            masks.append(leaving)
    if gradients:
        torch._foreach_addcmul_(  # type: ignore[attr-defined]
            gradients, weights, masks, value=strength * (1.0 if scale is None else float(scale))
        )


@torch.no_grad()
def shrink(sites: Iterable[Site], optimizer: Optimizer, strength: float) -> None:
    """Shrink leaving weights by learning rate * strength of themselves, at most to zero, after the optimizer's step."""
    for site, leaving, lr in _held(sites, optimizer):
        weight = site.parameter.detach()
        _ = weight.addcmul_(weight, leaving, value=-min(1.0, lr * strength))


def _held(sites: Iterable[Site], optimizer: Optimizer) -> Iterable[tuple[Site, Tensor, float]]:
    """The sites an optimizer updates that have leaving weights, with their learning rate."""
    rates = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    for site in sites:
        leaving = site.leaving()
        if leaving is not None and id(site.parameter) in rates:
            yield site, leaving, rates[id(site.parameter)]


def warn_of_weakness(method: Method, optimizers: Iterable[Optimizer], total_steps: int | None) -> None:
    """Say so if masking will find weights that were hardly pulled, as far as the learning rates tell now."""
    weakest = min(method.decay(_rate(method, one), total_steps) for one in optimizers)
    if 0 < weakest < ENOUGH:
        warnings.warn(
            f"{method.name}: weights outside the ticket shrink by {weakest:.3g} e-folds until they are masked, {ENOUGH:g} "
            f"make masking harmless: {ENOUGH / weakest:.3g} times the bound, learning rate or steps would do (schedules "
            "that change the rate are not foreseen)",
            stacklevel=6,
        )


def _rate(method: Method, optimizer: Optimizer) -> float:
    """The share of a leaving weight that goes a step at strength 1."""
    group = optimizer.param_groups[0]
    lr = max(float(group.get(key) or 0.0) for key in ("lr", "initial_lr", "max_lr"))
    momentum = float(group.get("momentum") or 0.0) if by_gradient(method.penalty, optimizer) else 0.0
    return lr / (1 - momentum)
