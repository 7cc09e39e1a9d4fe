"""Masked-dense execution, the reference: the model stays the plain module it was, its inactive weights are zero.

One ``MaskedSite`` per layer holds the mask, keeps gradient and weight on it, keeps the dense gradient when a method
asks for it, and carries out topology changes on the weight and on any optimizer's state of its shape.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..draw import key
from ..layers import Layer
from ..methods import Change, DenseView, Method

_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}


class MaskedSite:
    """One layer under masked execution.

    Args:
        layer: the layer.
        source: flat bool of the positions that may live, or None for all.
    """

    def __init__(self, layer: Layer, source: Tensor | None):
        self.layer = layer
        self.name = layer.name
        self.parameter: nn.Parameter = layer.parameter
        self.source = None if source is None else source.to(self.parameter.device)
        if self.source is None:
            self.mask = torch.ones(layer.shape, dtype=torch.bool, device=self.parameter.device)
        else:
            self.mask = self.source.view(layer.shape).clone()
        self.capturing = False
        self.dense_gradient: Tensor | None = None
        self.weight_before_step: Tensor | None = None
        self._bits: Tensor | None = None
        self._seen: tuple[int, int] | None = None  # storage and version of the gradient that was masked last
        self._handle = None

    # -- hooks -------------------------------------------------------------------------------------------------

    def hook(self) -> None:
        """Keep arriving gradients on the mask from now on (a frozen weight gets none and needs no hook)."""
        if self._handle is None and self.parameter.requires_grad:
            self._handle = self.parameter.register_post_accumulate_grad_hook(self._on_gradient)

    def unhook(self) -> None:
        """Undo ``hook``."""
        self.capturing = False
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    @torch.no_grad()
    def _on_gradient(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        if gradient is None:
            return
        if gradient.layout != torch.strided:
            raise ValueError(
                f"{self.name}: its gradient is a sparse tensor; build the layer with sparse=False"
            )
        if self.capturing:
            self._capture(gradient)
        self._zero_outside(gradient)
        self._seen = (gradient.data_ptr(), gradient._version)

    def _capture(self, gradient: Tensor) -> None:
        """Keep the dense gradient, summed over the micro-batches of one optimizer step.

        A gradient that goes on accumulating is the masked one of before plus the new micro-batch: live positions
        already hold the sum, the others are added here. Anything else (another tensor, or one that was zeroed since)
        starts anew, so that the micro-batches of a step that was skipped do not leak into the next one.
        """
        continues = self._seen == (gradient.data_ptr(), gradient._version - 1)
        if continues and self.dense_gradient is not None:
            self.dense_gradient = torch.where(self.mask, gradient, self.dense_gradient + gradient)
        else:
            self.dense_gradient = gradient.clone()

    # -- invariants --------------------------------------------------------------------------------------------

    def _zero_outside(self, tensor: Tensor) -> None:
        """Zero the inactive positions by clearing bits: exact for NaN and infinity, and as fast as a product."""
        if tensor.dtype != self.parameter.dtype:
            tensor.masked_fill_(~self.mask, 0)
            return
        if self._bits is None:
            self._bits = torch.empty_like(self.parameter, dtype=_INTEGERS[self.parameter.element_size()])
            self._bits.copy_(self.mask).neg_()
        tensor.view(self._bits.dtype).bitwise_and_(self._bits)

    @torch.no_grad()
    def remask(self) -> None:
        """Set the inactive weights to zero."""
        self._zero_outside(self.parameter.detach())

    @property
    def num_active(self) -> int:
        """Live weights."""
        return int(self.mask.sum())

    def view(self) -> DenseView:
        """The layer as a method sees it."""
        weight = self.parameter if self.weight_before_step is None else self.weight_before_step
        return DenseView(
            self.name,
            weight.detach(),
            self.mask,
            self.source,
            self.dense_gradient,
            frozen=not self.parameter.requires_grad,
            geometry=self.layer.geometry,
        )

    def has_values_outside(self) -> bool:
        """Whether an inactive weight is not zero."""
        return bool((self.parameter.detach()[~self.mask] != 0).any())

    def remember_weight(self) -> None:
        """Keep the weight as it is before a step whose closure brings the gradient."""
        self.weight_before_step = self.parameter.detach().clone()

    def average_gradient(self) -> None:
        """Average the dense gradient over the ranks; one that did not arrive counts as zeros."""
        if self.dense_gradient is None:
            self.dense_gradient = torch.zeros_like(self.parameter)
        torch.distributed.all_reduce(self.dense_gradient)
        self.dense_gradient /= torch.distributed.get_world_size()

    def gradient_is_finite(self) -> bool:
        """Whether the dense gradient can be ranked; one that did not arrive can."""
        return self.dense_gradient is None or bool(self.dense_gradient.isfinite().all())

    def gradient_state(self) -> Tensor | None:
        """What a checkpoint between two micro-batches of an update step must keep."""
        return self.dense_gradient

    @torch.no_grad()
    def restore(
        self, mask: Tensor, source: Tensor | None, gradient: Tensor | None, weight: Tensor | None
    ) -> None:
        """Take over a saved mask, source and dense gradient, and the weight that was loaded before its mask."""
        device = self.parameter.device
        self.source = None if source is None else source.to(device)
        self.place(mask.to(device))
        self.dense_gradient = None if gradient is None else gradient.to(device).clone()
        if weight is not None:
            self.parameter.copy_(weight)
        self.remask()

    def forget_gradient(self) -> None:
        """Let the dense gradient go."""
        self.dense_gradient = self.weight_before_step = self._seen = None

    # -- changes -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def place(self, mask: Tensor) -> None:
        """Take over a whole mask, any shape with the weight's number of positions."""
        self.mask.copy_(mask.view(self.layer.shape))
        self._bits = None

    @torch.no_grad()
    def apply(self, change: Change, optimizers: Iterable[Optimizer], method: Method, step: int) -> None:
        """Carry out a topology change: mask, weight, gradient, optimizer state.

        Args:
            change: what was dropped and grown.
            optimizers: their state of the weight's shape follows the weights.
            method: its policies for the value and state of grown weights.
            step: of the change.
        """
        state = method.grown_state
        dropped = torch.unravel_index(change.dropped.to(self.mask.device), self.layer.shape)
        grown = torch.unravel_index(change.grown.to(self.mask.device), self.layer.shape)
        values = self._grown_values(grown, len(change.grown), method, step)
        live = self.mask.clone() if state == "mean" else self.mask
        self.mask[dropped] = False
        self.mask[grown] = True
        if self._bits is not None:
            self._bits[dropped] = 0
            self._bits[grown] = -1
        weight = self.parameter.detach()
        weight[dropped] = 0
        weight[grown] = values
        if self.parameter.grad is not None:
            self.parameter.grad[dropped] = 0
        for tensor in self.states(optimizers):
            if state != "keep":
                mean = tensor[live].mean() if state == "mean" and bool(live.any()) else 0
                tensor[dropped] = 0
                tensor[grown] = mean

    def states(self, optimizers: Iterable[Optimizer]) -> list[Tensor]:
        """Every optimizer state tensor of the weight's shape: it belongs to the weights."""
        found = [
            tensor for optimizer in optimizers for tensor in optimizer.state.get(self.parameter, {}).values()
        ]
        return [t for t in found if isinstance(t, Tensor) and t.shape == self.parameter.shape and t.dim() > 0]

    def _grown_values(self, grown, count: int, method: Method, step: int) -> Tensor | float:
        if method.grown_value == "zero" or count == 0:
            return 0.0
        weight = self.parameter.detach()
        spread = (
            weight[self.mask].float().std(unbiased=False) if bool(self.mask.any()) else weight.new_zeros(())
        )
        if method.grown_value == "normal":
            generator = torch.Generator().manual_seed(key(f"value:{step}", method.seed, self.name) % 2**63)
            drawn = torch.randn(count, generator=generator).to(weight.device)
        else:
            drawn = torch.zeros(count) if self.dense_gradient is None else -self.dense_gradient[grown].sign()
        return (drawn.to(weight.device) * spread).to(weight.dtype)

    def rebind(self, parameter: nn.Parameter, optimizers: Iterable[Optimizer]) -> None:
        """Follow the module to another parameter object (``load_state_dict(assign=True)``): hooks and optimizers."""
        old = self.parameter
        self.unhook()
        self.parameter = parameter
        self.mask = self.mask.to(parameter.device)
        self.source = None if self.source is None else self.source.to(parameter.device)
        self._bits = None
        self.forget_gradient()
        self.hook()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["params"] = [parameter if p is old else p for p in group["params"]]
            if old in optimizer.state:
                optimizer.state[parameter] = optimizer.state.pop(old)
