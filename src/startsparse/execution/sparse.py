"""Truly sparse execution on the CPU: a layer's parameter is the vector of its live values, and nothing is dense.

The dense gradient exists only at a method's update steps, a block of rows at a time: until then the layer's inputs and
output gradients of the step's micro-batches are kept (or, where the weight is smaller than these, their product).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..criteria import gradient as gradient_score
from ..draw import Drawn, Permutation
from ..kernels import Pattern, dense_gradient, watch
from ..layers import Layer
from ..masks import pack_positions
from ..methods import Change, Method
from ..selection import top_k
from .interface import Site
from .modules import _Sparse, to_dense, to_sparse
from .optimizers import replace, slots

_BITMAP = 1 << 28  # positions whose membership is kept as bits: 32 MiB


class SparseView:
    """A sparse layer as a method sees it."""

    def __init__(self, site: SparseSite):
        self._site = site
        self.name, self.shape, self.source = site.name, site.shape, site.source
        self.geometry = site.layer.geometry
        self.frozen = not site.parameter.requires_grad
        self._inside = _membership(site.source)
        self.capacity = math.prod(site.shape)
        if site.source is not None:
            self.capacity = (
                int(site.source.count or 0) if isinstance(site.source, Drawn) else int(site.source.sum())
            )
        self._live = site.module.live()

    @property
    def num_active(self) -> int:
        return self._live.nnz

    def active_positions(self) -> Tensor:
        return self._live.positions()

    def active_weights(self) -> Tensor:
        weight = (
            self._site.parameter if self._site.weight_before_step is None else self._site.weight_before_step
        )
        return weight.detach()[self._live.order()]

    def active_gradients(self) -> Tensor:
        gradient = self._site.parameter.grad
        return torch.zeros(self._live.nnz) if gradient is None else gradient[self._live.order()]

    def num_growable(self, returning: Tensor) -> int:
        return self.capacity - self.num_active + len(returning)

    def grow_by_gradient(self, count: int, returning: Tensor) -> Tensor:
        kept = self._kept(returning)
        best = self._highest_gradients(count, kept, guess=True)
        if best.num_seen < count:  # the guessed bar was too high
            best = self._highest_gradients(count, kept, guess=False)
        if best.num_seen < count:  # no gradient arrived: as with a gradient of zeros, the lowest positions
            lowest = np.setdiff1d(np.arange(min(math.prod(self.shape), 4 * count + len(kept) + 1)), kept)
            return torch.from_numpy(lowest[self._allowed(kept)(lowest)][:count])
        return best.positions()

    def _highest_gradients(self, count: int, kept: np.ndarray, guess: bool) -> _Best:
        """The highest ones above a bar that few more than ``count`` should pass, or above none."""
        best, inside = _Best(count, self.name), self._inside
        for start, gradient in self._site.gradient_blocks():
            score = gradient_score(gradient).reshape(-1)
            low, high = np.searchsorted(kept, [start, start + len(score)])
            score[torch.from_numpy(kept[low:high] - start)] = -torch.inf
            if guess and start == 0:
                best.bar = _bar(score, 2 * count / math.prod(self.shape))
            at = (score > best.bar).nonzero().squeeze(1)
            if inside is not None:
                at = at[torch.from_numpy(inside(at.numpy() + start))]
            best.offer(at + start, score[at])
        return best

    def grow_at_random(self, count: int, returning: Tensor, seed: int, step: int) -> Tensor:
        order = Permutation(math.prod(self.shape), f"grow:{step}", seed, self.name)
        return torch.from_numpy(order.first_where(self._allowed(self._kept(returning)), count))

    def _kept(self, returning: Tensor) -> np.ndarray:
        positions = self.active_positions().numpy()
        stays = np.ones(len(positions), bool)
        stays[np.searchsorted(positions, returning.numpy())] = False
        return positions[stays]

    def _allowed(self, kept: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Whether positions may grow: they are not kept, and lie in the source."""
        is_kept = _lookup(kept, math.prod(self.shape))
        if self._inside is None:
            return lambda positions: ~is_kept(positions)
        inside = self._inside
        return lambda positions: ~is_kept(positions) & inside(positions)


def _lookup(positions: np.ndarray, size: int) -> Callable[[np.ndarray], np.ndarray]:
    """Membership in sorted positions: by one bit a position where that is little memory, else by bisection."""
    if size <= _BITMAP:
        bits = pack_positions(torch.from_numpy(positions), 0, size)
        return lambda at: (bits[at >> 3] << (at & 7).astype(np.uint8)) & 128 != 0

    def bisect(at: np.ndarray) -> np.ndarray:
        place = np.minimum(np.searchsorted(positions, at), max(len(positions) - 1, 0))
        return positions[place] == at if len(positions) else np.zeros(len(at), bool)

    return bisect


def _bar(scores: Tensor, share: float) -> float:
    """A score that about a ``share`` of these pass, from a sample of them."""
    sample = scores[:: max(1, len(scores) >> 15)]
    above = int(share * len(sample)) + 16
    sample = sample[~sample.isneginf()]
    return float(sample[top_k(sample, above)].min()) if above < len(sample) else -torch.inf


class _Best:
    """The ``count`` highest scores of those offered so far; ties to the lower position.

    Positions must be offered in rising order, and only scores above ``bar`` need to be: what lies at it or below comes
    too late.
    """

    def __init__(self, count: int, name: str):
        self._count, self._name = count, name
        self.bar = -torch.inf
        self.num_seen = 0
        self._positions: list[Tensor] = []
        self._scores: list[Tensor] = []

    def offer(self, positions: Tensor, scores: Tensor) -> None:
        """Candidates of higher position than all before."""
        self.num_seen += len(positions)
        self._positions.append(positions)
        self._scores.append(scores)
        if sum(map(len, self._scores)) > 2 * self._count:
            self._reduce()

    def positions(self) -> Tensor:
        """The highest ones, rising."""
        self._reduce()
        return self._positions[0]

    def _reduce(self) -> None:
        positions, scores = torch.cat(self._positions), torch.cat(self._scores)
        taken = top_k(scores, self._count, what=self._name)
        self._positions, self._scores = [positions[taken]], [scores[taken]]
        self.bar = float(self._scores[0].min()) if self._count else torch.inf


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
        old = layer.parameter
        self.parameter: nn.Parameter = to_sparse(layer.module, layer.shape, positions, values)
        where = self.module.live().value_positions()
        replace(optimizers, old, self.parameter, lambda state: state.reshape(-1)[where].clone())
        self.weight_before_step: Tensor | None = None
        self._dense: Tensor | None = None
        self._batches: list[tuple[Tensor, Tensor]] = []
        self._pattern = self.module.pattern
        self._pass = -1  # the backward pass seen last
        self._watch = None
        self._capturing = False

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

    def view(self) -> SparseView:
        return SparseView(self)

    # -- hooks and invariants ----------------------------------------------------------------------------------

    def hook(self) -> None:
        """Nothing to do: the gradient of live values is all there is."""

    def unhook(self) -> None:
        self.capturing = False

    def remask(self) -> None:
        """Nothing to do: there are no inactive weights."""

    def release(self, optimizers: Iterable[Optimizer]) -> None:
        self.unhook()
        where = self.module.live().value_positions()
        old = self.parameter
        self.parameter = to_dense(self.module)

        def dense(state: Tensor) -> Tensor:
            whole = state.new_zeros(math.prod(self.shape))
            whole[where] = state
            return whole.view(self.shape)

        replace(optimizers, old, self.parameter, dense)

    # -- the dense gradient ------------------------------------------------------------------------------------

    @property
    def capturing(self) -> bool:  # type: ignore[override]
        return self._capturing

    @capturing.setter
    def capturing(self, wanted: bool) -> None:
        self._capturing = wanted
        if self._watch is not None:
            self._watch.remove()
            self._watch = None
        if wanted:
            self._watch = watch(self.module.pattern, self._on_backward)

    @torch.no_grad()
    def _on_backward(self, x: Tensor, dy: Tensor) -> None:
        """Keep a micro-batch's inputs and output gradients, or their product where that is less."""
        gradient, pass_ = self.parameter.grad, torch._C._current_graph_task_id()
        anew = pass_ != self._pass and (gradient is None or not bool(gradient.any()))
        if anew and self.weight_before_step is not None and (self._batches or self._dense is not None):
            return  # a closure is called again: its first gradient is that of the remembered weight
        if anew:
            self._batches, self._dense = [], None  # of a step that was skipped
        self._pass = pass_
        if x.numel() + dy.numel() < math.prod(self.shape):
            self._batches.append((x.detach(), dy.detach()))
            return
        if self._dense is None:
            self._dense = torch.zeros(self.shape[0], math.prod(self.shape[1:]))
        for row, block in dense_gradient(x, dy, **self._convolution()):
            self._dense[row : row + len(block)] += block

    def gradient_blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Blocks of rows of the step's dense gradient, with the position each begins at."""
        cols = math.prod(self.shape[1:])
        if self._batches:
            parts = [dense_gradient(x, dy, **self._convolution()) for x, dy in self._batches]
            for blocks in zip(*parts, strict=True):
                row, total = blocks[0]
                for _, block in blocks[1:]:
                    total = total + block
                if self._dense is not None:
                    total = total + self._dense[row : row + len(total)]
                yield row * cols, _averaged(total)
        elif self._dense is not None:
            yield 0, _averaged(self._dense)

    def _convolution(self) -> dict:
        if len(self.shape) == 2:
            return {}
        m = self.module
        names = ("kernel_size", "stride", "padding", "dilation", "groups")
        return {name: getattr(m, name) for name in names}

    def average_gradient(self) -> None:
        """Done block by block, where the blocks are made."""

    def gradient_is_finite(self) -> bool:
        kept = [tensor for pair in self._batches for tensor in pair]
        kept += [tensor for tensor in (self._dense, self.parameter.grad) if tensor is not None]
        return all(bool(tensor.isfinite().all()) for tensor in kept)

    def has_gradient(self) -> bool:
        return bool(self._batches) or self._dense is not None

    def gradient_state(self) -> Tensor | None:
        blocks = [block for _, block in self.gradient_blocks()]
        return torch.cat([block.reshape(-1) for block in blocks]).view(self.shape) if blocks else None

    def remember_weight(self) -> None:
        self.weight_before_step = self.parameter.detach().clone()

    def forget_gradient(self) -> None:
        self._batches, self._dense, self.weight_before_step = [], None, None
        self.module.__dict__.pop("loaded_dense", None)

    # -- changes -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def apply(self, change: Change, optimizers: Iterable[Optimizer], method: Method, step: int) -> None:
        old = self.module.live()
        new = old.changed(change.dropped, change.grown, taps=math.prod(self.shape[2:]))
        positions, order = new.positions(), new.order()
        grown = order[torch.searchsorted(positions, change.grown)]
        downhill = self._at(change.grown) if method.grown_value == "gradient_sign" else None
        values = self.grown_values(method, step, len(change.grown), self.parameter.detach(), downhill)
        held = slots(optimizers, self.parameter)
        gradient = [] if self.parameter.grad is None else [self.parameter.grad]
        before = [slot.tensor for slot in held]
        weight, *moved = old.move(new, [self.parameter.detach(), *before, *gradient])
        if values is not None:
            weight[grown] = values
        for slot, was, now in zip(held, before, moved, strict=False):
            now[grown] = was.mean() if method.grown_state == "mean" and was.numel() else slot.fresh
            slot.holder[slot.key] = now
        self.module.put(new, weight)
        self.parameter.grad = moved[-1] if gradient else None
        self._pattern = self.module.pattern
        self.capturing = self._capturing

    def _at(self, positions: Tensor) -> Tensor | None:
        """The dense gradient at some positions."""
        found = None
        for start, gradient in self.gradient_blocks():
            flat = gradient.reshape(-1)
            found = torch.zeros(len(positions)) if found is None else found
            inside = (positions >= start) & (positions < start + len(flat))
            found[inside] = flat[positions[inside] - start]
        return found

    @torch.no_grad()
    def restore(self, positions: Tensor, source: Tensor | Drawn | None, gradient: Tensor | None) -> None:
        self.source = source
        loaded = self.module.__dict__.get("loaded_dense")
        old = self.module.live()
        if loaded is not None or not torch.equal(old.positions(), positions):
            new = Pattern.build(positions, old.rows, old.cols, old.groups, math.prod(self.shape[2:]))
            weight = old.move(new, [self.parameter.detach()])[0] if loaded is None else new.take_from(loaded)
            self.module.put(new, weight.to(self.parameter.dtype))
        self.forget_gradient()
        self._dense = None if gradient is None else gradient.reshape(self.shape[0], -1).clone()
        self._pattern = self.module.pattern
        self.capturing = self._capturing

    def after_load(self, optimizers: Iterable[Optimizer]) -> bool:
        moved = self._pattern is not self.module.pattern
        self._pattern = self.module.pattern
        self.capturing = self._capturing  # of the pattern that is there now
        return moved


def _averaged(gradient: Tensor) -> Tensor:
    """The mean over the ranks, where there are several."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return gradient
    gradient = gradient.clone()
    torch.distributed.all_reduce(gradient)
    return gradient / torch.distributed.get_world_size()


def _membership(source: Tensor | Drawn | None) -> Callable[[np.ndarray], np.ndarray] | None:
    """Whether positions lie in a source; a draw is looked up, not stored."""
    if source is None:
        return None
    if isinstance(source, Drawn):
        order, limit = Permutation(source.size, "exact", source.seed, source.name), int(source.count or 0)
        return lambda positions: order.ranks(positions) < limit
    flat = source.numpy()
    return lambda positions: flat[positions]
