"""Masked-dense execution, the reference: the model stays the plain module it was, its inactive weights are zero."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..draw import Drawn
from ..layers import Layer
from ..methods import Change, DenseView, Method
from ..methods.base import LEAVING
from ..methods.reduced import ReducedView
from .arriving import Arriving
from .hooks import ThawHook
from .interface import KEPT, Site
from .optimizers import replace, slots

_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}


class MaskedSite(Site):
    """One layer under masked execution: keeps gradient and weight on the mask, and the dense gradient when asked.

    Args:
        layer: the layer.
        source: flat bool of the positions that may live, or None for all.

    Attributes:
        arriving: what a step's gradient is reduced to when it arrives; None: it is kept whole.
        arrivals: gradients that arrived at this step.
    """

    execution = "masked"

    def __init__(self, layer: Layer, source: Tensor | None):
        self.parameter: nn.Parameter = layer.parameter
        super().__init__(layer, None if source is None else source.to(self.parameter.device))
        self._mask = torch.ones(layer.shape, dtype=torch.bool, device=self.parameter.device)
        if self.source is not None:
            self._mask.copy_(self.source.view(layer.shape))
        self.arriving: Arriving | None = None
        self.arrivals = 0
        self._capturing = False
        self._capture_handle = None
        self._begins = True
        self._dense_gradient: Tensor | None = None
        self._weight_before_step: Tensor | None = None
        self._loaded: Tensor | None = None
        self._bits: Tensor | None = None
        self._handle = None
        self._thaw = None

    @property
    def num_active(self) -> int:
        return int(self._mask.count_nonzero())

    @property
    def mask(self) -> Tensor:
        return self._mask

    def positions(self) -> Tensor:
        return self._mask.reshape(-1).nonzero().squeeze(1).cpu()

    def dense_weight(self) -> Tensor:
        return self.parameter.detach()

    def index_of(self, positions: Tensor) -> Tensor:
        return positions.to(self.parameter.device)

    def leaving(self) -> Tensor | None:
        if LEAVING not in self.memory:
            return None
        self.memory[LEAVING] = self.memory[LEAVING].to(self.parameter.device)
        return self.memory[LEAVING]

    def view(self) -> DenseView:
        weight = self.parameter if self._weight_before_step is None else self._weight_before_step
        reduced = None if self.arriving is None else self.arriving.of(self.name)
        view = (DenseView if reduced is None else ReducedView)(
            self.name,
            weight.detach(),
            self._mask,
            self.source,
            self._dense_gradient,
            frozen=not self.parameter.requires_grad,
            geometry=self.layer.geometry,
            memory=self.memory,
        )
        if isinstance(view, ReducedView) and reduced is not None:
            view.kept = reduced
        return view

    # -- hooks and invariants ----------------------------------------------------------------------------------

    def hook(self) -> None:
        """Keep arriving gradients on the mask from now on; a frozen weight's, once it is not frozen any more."""
        if self._handle is None and self.parameter.requires_grad:
            self._handle = self.parameter.register_post_accumulate_grad_hook(self._on_gradient)
            self.capturing = self._capturing
            self._stop_waiting()
        elif self._handle is None and self._thaw is None:
            self._thaw = self.layer.module.register_forward_pre_hook(ThawHook(weakref.ref(self)))

    def _stop_waiting(self) -> None:
        if self._thaw is not None:
            self._thaw.remove()
            self._thaw = None

    def unhook(self) -> None:
        self.capturing = False
        self._stop_waiting()
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def release(self, optimizers: Iterable[Optimizer]) -> MaskedSite:
        self.unhook()
        return self

    @property
    def capturing(self) -> bool:  # type: ignore[override]
        return self._capturing

    @capturing.setter
    def capturing(self, wanted: bool) -> None:
        self._capturing = wanted
        if self._capture_handle is not None:
            self._capture_handle.remove()
            self._capture_handle = None
        if wanted and self.parameter.requires_grad:
            self._capture_handle = self.parameter.register_hook(self._before_gradient)

    @torch.no_grad()
    def _before_gradient(self, gradient: Tensor) -> None:
        """Whether a gradient that is about to arrive begins a new sum: nothing is accumulated yet.

        So the micro-batches of a step that was skipped do not leak into the next one.
        """
        accumulated = self.parameter.grad
        self._begins = accumulated is None or accumulated.is_sparse or not bool(accumulated.any())

    @torch.no_grad()
    def _on_gradient(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        if gradient is None:
            return
        if gradient.layout != torch.strided:
            raise ValueError(
                f"{self.name}: its gradient is a sparse tensor; build the layer with sparse=False"
            )
        self.arrivals += 1
        if self._capturing and self.arriving is not None:
            source, mask = self.source, self._mask.reshape(-1)
            self.arriving.take(self.name, gradient, mask, source, self._begins)
        elif self._capturing:
            self._capture(gradient)
        self._mask_gradient(gradient)

    def _mask_gradient(self, gradient: Tensor) -> None:
        self._zero_outside(gradient)

    def _capture(self, gradient: Tensor) -> None:
        """Keep the dense gradient, summed over the micro-batches of one optimizer step.

        One that goes on accumulating is the masked sum of before plus the new micro-batch: live positions already
        hold the whole sum, the others are added here.
        """
        if self._begins and self._weight_before_step is not None and self._dense_gradient is not None:
            return  # a closure is called again: its first gradient is that of the remembered weight
        if self._begins or self._dense_gradient is None:
            self._dense_gradient = gradient.clone()
        else:
            self._dense_gradient = torch.where(self._mask, gradient, self._dense_gradient + gradient)

    def _zero_outside(self, tensor: Tensor) -> None:
        """Zero the inactive positions by clearing bits: exact for NaN and infinity, and as fast as a product."""
        self._follow()
        if tensor.dtype != self.parameter.dtype:
            tensor.masked_fill_(~self._mask, 0)
            return
        if self._bits is None:
            self._bits = torch.empty_like(self.parameter, dtype=_INTEGERS[self.parameter.element_size()])
            self._bits.copy_(self._mask).neg_()
        tensor.view(self._bits.dtype).bitwise_and_(self._bits)

    def _follow(self) -> None:
        """Follow the parameter to another device or dtype."""
        parameter = self.parameter
        if self._mask.device != parameter.device:
            self._mask = self._mask.to(parameter.device)
            self.source = None if self.source is None else self.source.to(parameter.device)
            self._bits = None
        if self._bits is not None and self._bits.element_size() != parameter.element_size():
            self._bits = None

    @torch.no_grad()
    def remask(self) -> None:
        self._zero_outside(self.parameter.detach())

    # -- the dense gradient ------------------------------------------------------------------------------------

    def average_gradient(self) -> None:
        if self._dense_gradient is None:
            self._dense_gradient = torch.zeros_like(self.parameter)
        torch.distributed.all_reduce(self._dense_gradient)
        self._dense_gradient /= torch.distributed.get_world_size()

    def gradient_is_finite(self) -> bool:
        if self.arriving is not None:
            found = self.arriving.of(self.name)
            return found is None or found.finite
        return self._dense_gradient is None or bool(self._dense_gradient.isfinite().all())

    def has_gradient(self) -> bool:
        reduced = self.arriving is not None and self.arriving.of(self.name) is not None
        return reduced or self._dense_gradient is not None

    def gradient_state(self) -> Tensor | None:
        found = None if self.arriving is None else self.arriving.of(self.name)
        return self._dense_gradient if found is None else found.spread(self._mask)

    def remember_weight(self) -> None:
        self._weight_before_step = self.parameter.detach().clone()

    def add_kept_gradient(self, carry: float) -> None:
        kept = self.memory.pop(KEPT, None)
        if kept is not None and carry:
            kept *= carry
            self._dense_gradient = kept if self._dense_gradient is None else kept.add_(self._dense_gradient)

    def keep_gradient(self) -> None:
        if self._dense_gradient is not None and self.gradient_is_finite():
            half = self._dense_gradient.dtype in (torch.float16, torch.bfloat16)  # too coarse to sum in
            self.memory[KEPT] = self._dense_gradient.float() if half else self._dense_gradient

    def forget_gradient(self) -> None:
        self._dense_gradient = self._weight_before_step = self._loaded = self.arriving = None

    # -- changes -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def place(self, positions: Tensor) -> None:
        """Take over a whole mask, given by its active positions."""
        self._mask.zero_()
        self._mask.view(-1)[positions.to(self._mask.device)] = True
        self._bits = None

    @torch.no_grad()
    def apply(self, change: Change, optimizers: Iterable[Optimizer], method: Method, step: int) -> None:
        dropped = torch.unravel_index(change.dropped.to(self._mask.device), self.shape)
        grown = torch.unravel_index(change.grown.to(self._mask.device), self.shape)
        weight = self.parameter.detach()
        gradient = None if self._dense_gradient is None else self._dense_gradient[grown]
        values = self.grown_values(method, step, len(change.grown), weight[self._mask], gradient)
        if method.grown_state != "keep":
            for slot in slots(optimizers, self.parameter):
                average = method.grown_state == "mean" and bool(self._mask.any())
                first = slot.tensor[self._mask].mean() if average else slot.fresh
                slot.tensor[dropped] = slot.fresh
                slot.tensor[grown] = first
        self._mask[dropped] = False
        self._mask[grown] = True
        if self._bits is not None:
            self._bits[dropped] = 0
            self._bits[grown] = -1
        weight[dropped] = 0
        weight[grown] = 0 if values is None else values
        if self.parameter.grad is not None:
            self.parameter.grad[dropped] = 0

    @torch.no_grad()
    def restore(
        self,
        positions: Tensor,
        source: Tensor | Drawn | None,
        gradient: Tensor | None,
        optimizers: Iterable[Optimizer],
    ) -> None:
        device = self.parameter.device
        if isinstance(source, Drawn):
            source = torch.from_numpy(source.mask())
        self.source = None if source is None else source.to(device)
        self.place(positions)
        if self._loaded is not None:
            self.parameter.copy_(self._loaded)
        self.remask()
        self.forget_gradient()
        self._dense_gradient = None if gradient is None else gradient.to(device).clone()

    def after_load(self, optimizers: Iterable[Optimizer]) -> bool:
        if self.layer.parameter is not self.parameter:
            self._rebind(self.layer.parameter, optimizers)
        weight = self.parameter.detach()
        self._loaded = weight.clone() if bool((weight[~self._mask] != 0).any()) else None
        self.remask()
        return False

    def _rebind(self, parameter: nn.Parameter, optimizers: Iterable[Optimizer]) -> None:
        """Follow the module to another parameter object (``load_state_dict(assign=True)``): hooks and optimizers."""
        replace(optimizers, self.parameter, parameter, lambda state, fresh: state)
        wanted = self._capturing
        self.unhook()
        self.parameter = parameter
        self._bits = None
        self._follow()
        self.forget_gradient()
        self._capturing = wanted
        self.hook()
