"""Powerpropagation: the optimizer trains roots of the weights, so that large weights move more than small ones.

A weight is w = r |r|^(power - 1). Between steps the model holds w, zeros in place; around the optimizer's step the root r
and its gradient, power |r|^(power - 1) dL/dw, stand in for weight and gradient. Nothing has to be kept: r is a function
of w. Whoever decides on weights, masks or gradients sees w.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..methods import Method
from .interface import Site

Held = list[
    tuple[nn.Parameter, Tensor | None]
]  # parameters that hold roots, and their gradients as they arrived


def check(power: float, method: Method) -> None:
    """Refuse a power that is none, and grown weights that could never leave zero.

    Raises:
        ValueError: says what would be right.
    """
    number = isinstance(power, int | float) and not isinstance(power, bool) and math.isfinite(power)
    if not number or power < 1:
        raise ValueError(f"power must be a number >= 1 (1: no powerpropagation), got {power!r}")
    if power > 1 and method.grows and method.grown_value == "zero":
        raise ValueError(
            f"{method.name} grows weights at zero, where powerpropagation (power={power:g}) passes no gradient, so they "
            "would never move: give it grown_value='normal' or 'gradient_sign', or another method if it has no such choice"
        )


@torch.no_grad()
def to_roots(sites: Iterable[Site], optimizer: Optimizer, power: float) -> Held:
    """Before a step: put roots and their gradients in the place of weights and gradients."""
    groups = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    held: Held = []
    for site in sites:
        parameter = site.parameter
        if id(parameter) not in groups or not parameter.requires_grad:
            continue
        held.append((parameter, parameter.grad))
        root = parameter.detach()
        root.copy_(root.sign() * root.abs() ** (1 / power))
        if parameter.grad is not None:
            parameter.grad = parameter.grad * (power * root.abs() ** (power - 1))
    return held


@torch.no_grad()
def from_roots(held: Held, power: float) -> None:
    """After it: the weights and the gradients that arrived."""
    for parameter, gradient in held:
        root = parameter.detach()
        root.copy_(root.sign() * root.abs() ** power)
        if parameter.grad is not None:
            parameter.grad = gradient
