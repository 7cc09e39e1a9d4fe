"""Running means of squared gradients: the diagonal of the curvature, as optimal brain damage takes it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..execution.hooks import _overflow as overflow
from ..layers import Layer

MEMORY = 0.99  # of the mean, a step


class Squares:
    """Watches the gradients of layers, step by step.

    Attributes:
        means: name -> mean of the squared gradient, of the weight's shape; layers without a gradient so far lack.
    """

    def __init__(self, means: Mapping[str, Tensor] | None = None):
        self.means = dict(means or {})

    @torch.no_grad()
    def watch(self, layers: Mapping[str, Layer], optimizer: Optimizer) -> None:
        """Before an optimizer's step; one that a gradient scaler skips does not count."""
        if overflow(optimizer):
            return
        scale = getattr(optimizer, "grad_scale", None)  # a fused optimizer holds scaled gradients
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for name, layer in layers.items():
            gradient = layer.parameter.grad
            if gradient is None or id(layer.parameter) not in held:
                continue
            plain = gradient if scale is None else gradient / scale
            mean = self.means.setdefault(name, torch.zeros_like(gradient))
            mean.mul_(MEMORY).addcmul_(plain, plain, value=1 - MEMORY)

    def root(self, name: str) -> Tensor | None:
        """Root mean square gradient of a layer, if one was seen."""
        return self.means[name].sqrt() if name in self.means else None
