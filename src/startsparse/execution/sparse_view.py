"""A sparse layer as a method sees it: its live values in rising position, and where new ones may grow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..criteria import gradient as gradient_score
from ..draw import Drawn, Permutation
from ..kernels import backend
from ..kernels.library import threads
from ..selection import top_k

if TYPE_CHECKING:
    from .sparse import SparseSite

_BITMAP = 1 << 28  # positions whose membership is kept as bits: 32 MiB
_PART = 1 << 22  # positions looked at in one piece
_MARGINS = (
    1.5,
    4.0,
)  # times more candidates than needed that a guessed bar should let pass: at first, and then


class SparseView:
    """A sparse layer as a method sees it."""

    def __init__(self, site: SparseSite):
        self._site = site
        self.name, self.shape, self.source = site.name, site.shape, site.source
        self.memory = site.memory
        self.geometry = site.layer.geometry
        self.frozen = not site.parameter.requires_grad
        self._inside = _membership(site.source)
        self.capacity = math.prod(site.shape)
        if site.source is not None:
            self.capacity = (
                int(site.source.count or 0) if isinstance(site.source, Drawn) else int(site.source.sum())
            )
        self.live = site.module.live()

    @property
    def num_active(self) -> int:
        return self.live.nnz

    def active_positions(self) -> Tensor:
        return self.live.positions()

    def left_out(self, kept: Tensor) -> Tensor:
        return backend().pick(self.active_positions(), kept, False, threads())

    def active_weights(self) -> Tensor:
        weight = (
            self._site.parameter if self._site.weight_before_step is None else self._site.weight_before_step
        )
        return self.live.in_rows(weight)

    def active_gradients(self) -> Tensor:
        gradient = self._site.parameter.grad
        return (
            self._site.parameter.new_zeros(self.live.nnz) if gradient is None else self.live.in_rows(gradient)
        )

    def gradients_at(self, positions: Tensor) -> Tensor:
        found = self._site.gradient_at(positions)
        return self._site.parameter.new_zeros(len(positions)) if found is None else found

    def num_growable(self, returning: Tensor) -> int:
        return self.capacity - self.num_active + len(returning)

    def grow_by_gradient(self, count: int, returning: Tensor) -> Tensor:
        return self._highest(count, returning, scored=False)[0]

    def candidates(self, count: int, returning: Tensor) -> tuple[Tensor, Tensor]:
        return self._highest(min(count, self.num_growable(returning)), returning, scored=True)

    def _highest(self, count: int, returning: Tensor, scored: bool) -> tuple[Tensor, Tensor]:
        if count == 0:
            return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float32)
        if not self._site.has_gradient():  # as with a gradient of zeros: the lowest positions
            allowed = self._allowed(returning)
            lowest = torch.from_numpy(_lowest(allowed, count, math.prod(self.shape)))
            return lowest, torch.zeros(len(lowest), dtype=torch.float32)
        best = None
        for bar in self._bars(count / math.prod(self.shape), returning):
            best = self._highest_gradients(count, returning, bar)
            if best.num_seen >= count:
                break
        assert best is not None
        return best.result(scored)

    def _highest_gradients(self, count: int, returning: Tensor, bar: float) -> _Best:
        """The highest ones above a bar that few more than ``count`` should pass."""
        best, inside, live = _Best(count, self.name, bar), self._inside, self.active_positions()
        for start, gradient in self._site.gradient_blocks(reuse=True):
            block = gradient, start, live, returning, best.bar, threads()
            if inside is None:  # criteria.gradient, but for the kept
                backend().above(*block, room=best.room)
            else:
                found = backend().above(*block)
                allowed = torch.from_numpy(inside(found[0].numpy()))
                for to, items in zip(best.room(int(allowed.count_nonzero())), found, strict=True):
                    to.copy_(items[allowed])
        return best

    def _bars(self, share: float, returning: Tensor) -> Iterator[float]:
        """Scores that a bit more, then many more than a ``share`` of all positions pass that may grow, then none.

        The first ones are guessed from a sample.
        """
        positions, gradient = self._site.gradient_sample()
        scores = gradient_score(gradient)
        live, back = (backend().find(p, positions, threads()) for p in (self.active_positions(), returning))
        free = backend().pick(scores, (live < 0) | (back >= 0), True, threads()).numpy()
        for margin in _MARGINS:
            above = int(margin * share * len(scores)) + 16
            if above < len(free):
                yield float(np.partition(free, -above)[-above])
        yield -math.inf

    def apart(self, dropped: Tensor, grown: Tensor) -> tuple[Tensor, Tensor]:
        return backend().part(dropped, grown, threads())

    def grow_at_random(self, count: int, returning: Tensor, seed: int, step: int) -> Tensor:
        order = Permutation(math.prod(self.shape), f"grow:{step}", seed, self.name)
        return torch.from_numpy(order.first_where(self._allowed(returning), count))

    def _allowed(self, returning: Tensor) -> Callable[[np.ndarray], np.ndarray]:
        """Whether positions may grow: they are not live, or returning, and lie in the source."""
        is_kept = _lookup(self.active_positions(), returning, math.prod(self.shape))
        if self._inside is None:
            return lambda positions: ~is_kept(positions)
        inside = self._inside
        return lambda positions: ~is_kept(positions) & inside(positions)


def mark(bits: Tensor, positions: Tensor) -> None:
    """Set the bits (uint8, the first of each byte highest) of rising positions (int64)."""
    backend().mark(bits, positions.contiguous(), threads())


def _lowest(allowed: Callable[[np.ndarray], np.ndarray], count: int, size: int) -> np.ndarray:
    """The ``count`` lowest positions that are allowed."""
    found: list[np.ndarray] = []
    for start in range(0, size, _PART):
        part = np.arange(start, min(start + _PART, size))
        found.append(part[allowed(part)])
        if sum(map(len, found)) >= count:
            break
    return np.concatenate(found)[:count]


def _lookup(positions: Tensor, but: Tensor, size: int) -> Callable[[np.ndarray], np.ndarray]:
    """Membership in sorted positions, without some others: by one bit a position where that is little memory, else by
    bisection."""
    if size <= _BITMAP:
        bits, others = (torch.zeros(-(-size // 8), dtype=torch.uint8) for _ in range(2))
        mark(bits, positions)
        mark(others, but)
        bits &= others.bitwise_not_()
        return lambda at: backend().marked(bits, torch.from_numpy(at), threads()).numpy()

    live = backend().part(positions, but, threads())[0].numpy()

    def bisect(at: np.ndarray) -> np.ndarray:
        place = np.minimum(np.searchsorted(live, at), max(len(live) - 1, 0))
        return live[place] == at if len(live) else np.zeros(len(at), bool)

    return bisect


class _Best:
    """The ``count`` highest scores of those offered so far; ties to the lower position.

    Positions must be offered in rising order, and only scores above ``bar`` need to be: what lies at it or below comes
    too late.
    """

    def __init__(self, count: int, name: str, bar: float):
        self._count, self._name = count, name
        self._bar = bar
        self.num_seen = 0
        self._held = 0
        self._positions = torch.empty(0, dtype=torch.int64)
        self._scores = torch.empty(0, dtype=torch.float32)

    @property
    def bar(self) -> float:
        if self._held > 2 * self._count:
            self._reduce()
        return self._bar

    def room(self, number: int) -> tuple[Tensor, Tensor]:
        """Where so many candidates of higher position than all before are to be written: positions and scores."""
        if self._held + number > len(self._scores):
            size = 2 * self._count + number
            for name in ("_positions", "_scores"):
                old = getattr(self, name)
                new = old.new_empty(size)
                new[: self._held] = old[: self._held]
                setattr(self, name, new)
        start = self._held
        self._held += number
        self.num_seen += number
        return self._positions[start : self._held], self._scores[start : self._held]

    def result(self, scored: bool) -> tuple[Tensor, Tensor]:
        """The highest ones in rising position, and if wanted their scores."""
        taken, positions, scores = self._taken()
        picked = backend().pick(positions, taken, True, threads())
        return picked, backend().pick(scores, taken, True, threads()) if scored else scores[:0]

    def _taken(self) -> tuple[Tensor, Tensor, Tensor]:
        positions, scores = self._positions[: self._held], self._scores[: self._held]
        return top_k(scores, self._count, what=self._name), positions, scores

    def _reduce(self) -> None:
        taken, positions, scores = self._taken()
        self._held = self._count
        self._positions[: self._held] = backend().pick(positions, taken, True, threads())
        self._scores[: self._held] = backend().pick(scores, taken, True, threads())
        self._bar = float(self._scores[: self._held].min())


def _membership(source: Tensor | Drawn | None) -> Callable[[np.ndarray], np.ndarray] | None:
    """Whether positions lie in a source; a draw is looked up, not stored."""
    if source is None:
        return None
    if isinstance(source, Drawn):
        order, limit = Permutation(source.size, "exact", source.seed, source.name), int(source.count or 0)
        return lambda positions: order.ranks(positions) < limit
    flat = source.numpy()
    return lambda positions: flat[positions]
