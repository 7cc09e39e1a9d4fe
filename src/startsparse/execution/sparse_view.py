"""A sparse layer as a method sees it: its live values in rising position, and where new ones may grow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..criteria import gradient as gradient_score
from ..draw import Drawn, Permutation
from ..masks import pack_positions
from ..selection import top_k

if TYPE_CHECKING:
    from .sparse import SparseSite

_BITMAP = 1 << 28  # positions whose membership is kept as bits: 32 MiB
_PART = 1 << 22  # positions looked at in one piece


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

    def gradients_at(self, positions: Tensor) -> Tensor:
        found = self._site.gradient_at(positions)
        return torch.zeros(len(positions)) if found is None else found

    def num_growable(self, returning: Tensor) -> int:
        return self.capacity - self.num_active + len(returning)

    def grow_by_gradient(self, count: int, returning: Tensor) -> Tensor:
        return self._highest(count, returning)[0]

    def candidates(self, count: int, returning: Tensor) -> tuple[Tensor, Tensor]:
        return self._highest(min(count, self.num_growable(returning)), returning)

    def _highest(self, count: int, returning: Tensor) -> tuple[Tensor, Tensor]:
        if count == 0:
            return torch.empty(0, dtype=torch.int64), torch.empty(0)
        kept = self._kept(returning)
        if not self._site.has_gradient():  # as with a gradient of zeros: the lowest positions
            lowest = torch.from_numpy(_lowest(self._allowed(kept), count, math.prod(self.shape)))
            return lowest, torch.zeros(len(lowest))
        best = self._highest_gradients(count, kept, guess=True)
        if best.num_seen < count:  # the guessed bar was too high
            best = self._highest_gradients(count, kept, guess=False)
        return best.result()

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


def _lowest(allowed: Callable[[np.ndarray], np.ndarray], count: int, size: int) -> np.ndarray:
    """The ``count`` lowest positions that are allowed."""
    found: list[np.ndarray] = []
    for start in range(0, size, _PART):
        part = np.arange(start, min(start + _PART, size))
        found.append(part[allowed(part)])
        if sum(map(len, found)) >= count:
            break
    return np.concatenate(found)[:count]


def _lookup(positions: np.ndarray, size: int) -> Callable[[np.ndarray], np.ndarray]:
    """Membership in sorted positions: by one bit a position where that is little memory, else by bisection."""
    if size <= _BITMAP:
        sorted_positions = torch.from_numpy(positions)
        starts = range(0, size, _PART)
        bits = np.concatenate([pack_positions(sorted_positions, s, min(s + _PART, size)) for s in starts])
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

    def result(self) -> tuple[Tensor, Tensor]:
        """The highest ones in rising position, and their scores."""
        self._reduce()
        return self._positions[0], self._scores[0]

    def _reduce(self) -> None:
        positions, scores = torch.cat(self._positions), torch.cat(self._scores)
        taken = top_k(scores, self._count, what=self._name)
        self._positions, self._scores = [positions[taken]], [scores[taken]]
        self.bar = float(self._scores[0].min()) if self._count else torch.inf


def _membership(source: Tensor | Drawn | None) -> Callable[[np.ndarray], np.ndarray] | None:
    """Whether positions lie in a source; a draw is looked up, not stored."""
    if source is None:
        return None
    if isinstance(source, Drawn):
        order, limit = Permutation(source.size, "exact", source.seed, source.name), int(source.count or 0)
        return lambda positions: order.ranks(positions) < limit
    flat = source.numpy()
    return lambda positions: flat[positions]
