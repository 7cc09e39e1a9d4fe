"""Truly sparse execution on the CPU: a layer's parameter is the vector of its live values, and nothing is dense.

The dense gradient exists only at a method's update steps, a block of rows at a time: until then the layer's inputs and
output gradients of the step's micro-batches are kept (or, where the weight is smaller than these, their product).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..draw import Drawn
from ..kernels import Pattern, dense_gradient, watch
from ..layers import Layer
from ..methods import Change, Method
from ..methods.base import LEAVING
from .interface import KEPT, Site
from .masked import MaskedSite
from .modules import _Sparse, to_dense, to_sparse
from .optimizers import replace, slots, states
from .sparse_view import SparseView

_SAMPLED = 1 << 14  # entries of a layer's gradient that can stand for all of it, at least
_SPARED = 1 << 10  # one entry of so many is enough


class SparseSite(Site):
    """One layer under sparse execution.

    Args:
        layer: its module is turned sparse in place.
        source: flat bool of the positions that may live, or None for all.
        positions: where weights live first, int64, rising.
        values: the weights there.
        optimizers: they update the vector of live values from now on; their state follows.
    """

    execution = "sparse"

    def __init__(
        self,
        layer: Layer,
        source: Tensor | Drawn | None,
        positions: Tensor,
        values: Tensor,
        optimizers: Iterable[Optimizer],
    ):
        super().__init__(layer, source)
        self._optimizers = [weakref.ref(optimizer) for optimizer in optimizers]  # they hold the sparsifier
        old = layer.parameter
        self.parameter: nn.Parameter = to_sparse(layer.module, layer.shape, positions, values)
        where = self.module.live().value_positions()
        replace(optimizers, old, self.parameter, lambda state, fresh: _gathered(state, where, fresh))
        self.module.__dict__["attached"] = True
        self.weight_before_step: Tensor | None = None
        self._dense: Tensor | None = None
        self._batches: list[tuple[Tensor, Tensor]] = []
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._pass = -1  # the backward pass that the pending ones are of
        self._begins = True
        self._pattern = self.module.pattern
        self._seen: Pattern | None = None
        self._states: list[Tensor] = []  # optimizer state known to follow this pattern
        self._watches: list = []
        self._capturing = False
        self._leaving: tuple[Tensor, Tensor, Tensor] | None = (
            None  # memory, its pattern, in the order of values
        )

    @property
    def module(self) -> _Sparse:
        """The layer's module, sparse."""
        module = self.layer.module
        assert isinstance(module, _Sparse)
        return module

    @property
    def num_active(self) -> int:
        return self.parameter.numel()

    @property
    def mask(self) -> Tensor:
        mask = torch.zeros(math.prod(self.shape), dtype=torch.bool)
        mask[self.positions()] = True
        return mask.view(self.shape)

    def positions(self) -> Tensor:
        return self.module.live().positions()

    def dense_weight(self) -> Tensor:
        return self.module.dense_weight()

    def index_of(self, positions: Tensor) -> Tensor:
        live = self.module.live()
        return live.order()[torch.searchsorted(live.positions(), positions)]

    def leaving(self) -> Tensor | None:
        leaving = self.memory.get(LEAVING)
        if leaving is None:
            return None
        if self._leaving is None or self._leaving[0] is not leaving or self._leaving[1] is not self._pattern:
            where = self.module.live().value_positions()
            self._leaving = leaving, self._pattern, leaving.reshape(-1)[where]
        return self._leaving[2]

    def view(self) -> SparseView:
        view = SparseView(self)
        self._seen = view.live
        return view

    def _live(self) -> Pattern:
        """The live positions: of the step's view where there was one, which has listed them already."""
        seen, self._seen = self._seen, None
        return seen if seen is not None and seen.blob is self.module.pattern else self.module.live()

    # -- hooks and invariants ----------------------------------------------------------------------------------

    def hook(self) -> None:
        """Nothing to do: the gradient of live values is all there is."""

    def unhook(self) -> None:
        self.capturing = False

    def remask(self) -> None:
        """Nothing to do: there are no inactive weights."""

    def release(self, optimizers: Iterable[Optimizer]) -> MaskedSite:
        self.unhook()
        positions, where, old = self.positions(), self.module.live().value_positions(), self.parameter
        dense = to_dense(self.module)

        def spread(state: Tensor, fresh: float) -> Tensor:
            whole = state.new_full((math.prod(self.shape),), fresh)
            whole[where] = state
            return whole.view(self.shape)

        replace(optimizers, old, dense, spread)
        source = self.source.mask() if isinstance(self.source, Drawn) else self.source
        site = MaskedSite(self.layer, torch.from_numpy(source) if isinstance(source, np.ndarray) else source)
        site.place(positions)
        return site

    # -- the dense gradient ------------------------------------------------------------------------------------

    @property
    def capturing(self) -> bool:  # type: ignore[override]
        return self._capturing

    @capturing.setter
    def capturing(self, wanted: bool) -> None:
        self._capturing = wanted
        for handle in self._watches:
            handle.remove()
        self._watches = []
        if wanted and self.parameter.requires_grad:
            accumulated = self.parameter.register_post_accumulate_grad_hook(self._on_accumulated)
            self._watches = [watch(self.module.pattern, self._on_backward), accumulated]

    @torch.no_grad()
    def _on_backward(self, x: Tensor, dy: Tensor) -> None:
        """A use of the layer in a backward pass; whether it counts is known once a gradient is accumulated.

        The input is copied: it may be a buffer that is filled anew before the update.
        """
        pass_ = torch._C._current_graph_task_id()
        if pass_ != self._pass:
            gradient = self.parameter.grad
            self._pass, self._pending = pass_, []
            self._begins = gradient is None or not bool(gradient.any())
        self._pending.append((x.detach().clone(), dy.detach()))

    @torch.no_grad()
    def _on_accumulated(self, parameter: Tensor) -> None:
        """Keep a micro-batch's inputs and output gradients, or their product where that is less."""
        pending, self._pending = self._pending, []
        if self._begins:
            if self.weight_before_step is not None and self.has_gradient():
                return  # a closure is called again: its first gradient is that of the remembered weight
            self._batches, self._dense = [], None  # what is there is of a step that was skipped
            self._begins = False
        self._batches += pending
        if sum(x.numel() + dy.numel() for x, dy in self._batches) >= math.prod(self.shape):
            if self._dense is None:
                self._dense = self.parameter.new_zeros(self.shape[0], math.prod(self.shape[1:]))
            for x, dy in self._batches:
                for row, block in dense_gradient(x, dy, **self._convolution()):
                    self._dense[row : row + len(block)] += block
            self._batches = []

    def gradient_blocks(self, reuse: bool = False) -> Iterator[tuple[int, Tensor]]:
        """Blocks of rows of the step's dense gradient, with the position each begins at; they may be written to.

        With ``reuse``, a block is gone when the next is asked for.
        """
        cols = math.prod(self.shape[1:])
        if self._batches:
            reuse = reuse and len(self._batches) == 1
            parts = [dense_gradient(x, dy, reuse=reuse, **self._convolution()) for x, dy in self._batches]
            for blocks in zip(*parts, strict=True):
                row, total = blocks[0]
                for _, block in blocks[1:]:
                    total = total + block
                if self._dense is not None:
                    total = total + self._dense[row : row + len(total)]
                yield row * cols, total
        elif self._dense is not None:
            yield 0, self._dense.clone()

    def gradient_sample(self) -> tuple[Tensor, Tensor]:
        """Some positions, rising, that stand for all of a layer, and the dense gradient there."""
        rows, cols = self.shape[0], math.prod(self.shape[1:])
        share = max(1, min(_SPARED, rows * cols // _SAMPLED))
        if self._dense is not None or len(self.shape) > 2 or share == 1:
            start, block = next(self.gradient_blocks())
            return torch.arange(start, start + block.numel(), share), block.reshape(-1)[::share]
        step = round(math.sqrt(share))  # units may be dead, and inputs always zero
        row, column = torch.arange(0, rows, step), torch.arange(0, cols, step)
        total = self.parameter.new_zeros(len(row), len(column))
        for x, dy in self._batches:
            total += next(dense_gradient(x[..., column], dy[..., row], block=total.numel()))[1]
        return (row[:, None] * cols + column).view(-1), total.view(-1)

    def _convolution(self) -> dict:
        if len(self.shape) == 2:
            return {}
        m = self.module
        names = ("kernel_size", "stride", "padding", "dilation", "groups")
        return {name: getattr(m, name) for name in names}

    def average_gradient(self) -> None:
        """Nothing to do: several ranks are refused."""

    def gradient_is_finite(self) -> bool:
        kept = [tensor for pair in self._batches for tensor in pair]
        kept += [tensor for tensor in (self._dense, self.parameter.grad) if tensor is not None]
        return all(
            bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all()) for tensor in kept
        )  # a sum that is finite is quicker; one that is not may have overflowed

    def has_gradient(self) -> bool:
        return bool(self._batches) or self._dense is not None

    def gradient_state(self) -> Tensor | None:
        blocks = [block for _, block in self.gradient_blocks()]
        return torch.cat([block.reshape(-1) for block in blocks]).view(self.shape) if blocks else None

    def remember_weight(self) -> None:
        self.weight_before_step = self.parameter.detach().clone()

    def add_kept_gradient(self, carry: float) -> None:
        kept = self.memory.pop(KEPT, None)
        if kept is None or not carry:
            return
        kept *= carry
        for start, block in self.gradient_blocks():
            kept.view(-1)[start : start + block.numel()] += block.reshape(-1)
        self._batches, self._dense = [], kept

    def keep_gradient(self) -> None:
        if not self.has_gradient() or not self.gradient_is_finite():
            return
        kept = self.parameter.new_empty(self.shape[0], math.prod(self.shape[1:]))
        for start, block in self.gradient_blocks():
            kept.view(-1)[start : start + block.numel()] = block.reshape(-1)
        self.memory[KEPT] = kept

    def forget_gradient(self) -> None:
        self._batches, self._dense, self.weight_before_step, self._seen = [], None, None, None
        self.module.__dict__.pop("loaded_dense", None)
        self._states = self._known_states()

    # -- changes -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def apply(self, change: Change, optimizers: Iterable[Optimizer], method: Method, step: int) -> None:
        old = self._live()
        new, source = old.changed(change.dropped, change.grown, taps=math.prod(self.shape[2:]))
        downhill = self.gradient_at(change.grown) if method.grown_value == "gradient_sign" else None
        values = self.grown_values(method, step, len(change.grown), self.parameter.detach(), downhill)
        self._states = []  # they are let go of here, and noted again after the step
        held = slots(optimizers, self.parameter)
        gradient = [] if self.parameter.grad is None else [self.parameter.grad]
        before = [slot.tensor for slot in held]
        weight, *moved = old.take(source, [self.parameter.detach(), *before, *gradient])
        if values is not None:
            weight[new.places(change.grown)] = values
        for slot in held:
            was, now = before.pop(0), moved.pop(0)
            start = was.mean() if method.grown_state == "mean" and was.numel() else slot.fresh
            if start != 0:  # they are zero as they arrive
                now[source < 0] = start
            slot.holder[slot.key] = now
        self.module.put(new, weight)
        self.parameter.grad = moved[0] if gradient else None
        self._pattern = self.module.pattern
        self.capturing = self._capturing

    def gradient_at(self, positions: Tensor) -> Tensor | None:
        """The dense gradient at some positions; None if none arrived."""
        found = None
        for start, gradient in self.gradient_blocks():
            flat = gradient.reshape(-1)
            found = self.parameter.new_zeros(len(positions)) if found is None else found
            inside = (positions >= start) & (positions < start + len(flat))
            found[inside] = flat[positions[inside] - start]
        return found

    @torch.no_grad()
    def restore(
        self,
        positions: Tensor,
        source: Tensor | Drawn | None,
        gradient: Tensor | None,
        optimizers: Iterable[Optimizer],
    ) -> None:
        keep_draw = isinstance(source, Drawn) and isinstance(self.source, Drawn)
        if isinstance(source, Drawn) and not keep_draw:
            source = torch.from_numpy(source.mask())
        self.source = source
        loaded = self.module.__dict__.get("loaded_dense")
        old = self.module.live()
        if loaded is not None or not torch.equal(old.positions(), positions):
            new = Pattern.build(positions, old.rows, old.cols, old.groups, math.prod(self.shape[2:]))
            weight = old.move(new, [self.parameter.detach()])[0] if loaded is None else new.take_from(loaded)
            self._move_states(optimizers, old, new)
            self.module.put(new, weight.to(self.parameter.dtype))
        self._pattern = self.module.pattern
        self.forget_gradient()
        self._dense = None if gradient is None else gradient.reshape(self.shape[0], -1).clone()
        self.capturing = self._capturing

    def after_load(self, optimizers: Iterable[Optimizer]) -> bool:
        moved = self._pattern is not self.module.pattern
        if moved:
            self._move_states(optimizers, Pattern.of(self._pattern), self.module.live())
        self._pattern = self.module.pattern
        self.capturing = self._capturing  # of the pattern that is there now
        return moved

    def _known_states(self) -> list[Tensor]:
        alive = [optimizer for reference in self._optimizers if (optimizer := reference()) is not None]
        return states(alive, self.parameter)

    def _move_states(self, optimizers: Iterable[Optimizer], old: Pattern, new: Pattern) -> None:
        """Let optimizer state follow to another pattern, but not what was loaded since: that belongs there already."""
        for optimizer in optimizers:
            state = optimizer.state.get(self.parameter, {})
            for key, value in state.items():
                if any(value is known for known in self._states):
                    state[key] = old.move(new, [value])[0]
        self._states = []


def _gathered(state: Tensor, where: Tensor, fresh: float) -> Tensor:
    """State of a dense weight at the live positions; that of a weight on the meta device begins now."""
    return (
        torch.full(where.shape, fresh, dtype=state.dtype)
        if state.is_meta
        else state.reshape(-1)[where].clone()
    )
