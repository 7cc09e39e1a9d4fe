"""Values behind zeros: what a method keeps of inactive weights, swapped in around the optimizer's step.

Between steps the model holds live weights and exact zeros, as ever. The values of inactive positions are in a shadow,
which is part of the sparsifier's state. Some of them may be *reached* by training: their gradient is let through,
their values are put in place before the optimizer's step and taken back to the shadow after it, so any optimizer
updates them as it updates live weights. The others stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..methods import Change, Method
from ..methods.hidden import HIDDEN, LOGIT, REACHED, THRESHOLD
from .flat import read, write
from .masked import MaskedSite


class ShadowSite(MaskedSite):
    """One layer under masked execution whose inactive weights keep values."""

    _swapped = False

    @property
    def _hidden(self) -> Tensor:
        """Values of inactive positions of the source, zero elsewhere, flat."""
        hidden = self.memory[HIDDEN]
        if hidden.device != self.parameter.device or hidden.dtype != self.parameter.dtype:
            hidden = self.memory[HIDDEN] = hidden.to(self.parameter)
        return hidden.view(-1)

    @property
    def _reached(self) -> Tensor | None:
        """Inactive positions that are trained, or None."""
        reached = self.memory.get(REACHED)
        return None if reached is None or not len(reached) else reached.to(self.parameter.device)

    @torch.no_grad()
    def settle(self) -> None:
        """After a change: what the model sees of live weights. Here all of them."""

    @torch.no_grad()
    def swap_in(self, optimizer: Optimizer, pull: float) -> None:
        """Before a step: put reached values in place; their gradient gets ``pull`` times the value."""
        reached = self._reached
        if reached is None:
            return
        values = self._hidden[reached]
        write(self.parameter.detach(), reached, values)
        self._swapped = True
        gradient = self.parameter.grad
        if pull and gradient is not None:
            scale = getattr(optimizer, "grad_scale", None)  # a fused optimizer holds scaled gradients
            strength = pull * (1.0 if scale is None else float(scale))
            write(gradient, reached, read(gradient, reached) + strength * values)

    @torch.no_grad()
    def remask(self) -> None:
        """Take reached values back, and set the inactive weights to zero."""
        if HIDDEN not in self.memory:
            outside = self._mask if self.source is None else self._mask | ~self.source.view(self.shape)
            self.memory[HIDDEN] = self.parameter.detach().masked_fill(outside, 0).contiguous()
        reached = self._reached
        if self._swapped and reached is not None:
            self._hidden[reached] = read(self.parameter.detach(), reached)
        self._swapped = False
        super().remask()

    def _mask_gradient(self, gradient: Tensor) -> None:
        reached = self._reached
        kept = None if reached is None else read(gradient, reached)
        self._zero_outside(gradient)
        if reached is not None and kept is not None:
            write(gradient, reached, kept)

    @torch.no_grad()
    def apply(self, change: Change, optimizers: Iterable[Optimizer], method: Method, step: int) -> None:
        weight = self.parameter.detach()
        dropped, grown = change.dropped.to(weight.device), change.grown.to(weight.device)
        leaving, coming = read(weight, dropped), self._hidden[grown]
        super().apply(change, optimizers, method, step)
        write(weight, grown, coming)
        self._hidden[grown] = 0
        self._hidden[dropped] = leaving


class ThresholdSite(ShadowSite):
    """A layer whose live weights are shrunk by a threshold that is learnt.

    The model sees weights of which the threshold is taken off; the optimizer, and the method, see them without.
    """

    @torch.no_grad()
    def swap_in(self, optimizer: Optimizer, pull: float) -> None:
        """Before a step: the weights unshrunk; the threshold makes a step of its own, at ``pull`` times their rate."""
        threshold = self.memory.get(THRESHOLD)
        if threshold is None:
            return
        weight, gradient = self.parameter.detach(), self.parameter.grad
        signs, logit = weight.sign(), self.memory[LOGIT]
        if pull and gradient is not None:
            scale = getattr(optimizer, "grad_scale", None)  # a fused optimizer holds scaled gradients
            rate = next(
                g["lr"] for g in optimizer.param_groups if any(p is self.parameter for p in g["params"])
            )
            slope = -(gradient * signs).sum().double() / (1.0 if scale is None else float(scale))
            slope = slope * threshold.double() * (1 - torch.sigmoid(logit))
            self.memory[LOGIT] = logit - float(rate) * pull * slope.to(logit.device)
        weight += signs * threshold.to(weight)

    @torch.no_grad()
    def settle(self) -> None:
        threshold = self.memory.get(THRESHOLD)
        if threshold is not None:
            weight = self.parameter.detach()
            weight.copy_(weight.sign() * (weight.abs() - threshold.to(weight)).clamp_min(0))
