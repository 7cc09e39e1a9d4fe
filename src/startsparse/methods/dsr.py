"""Dynamic sparse reparameterisation: drop the smallest weights of the net, grow where more survived."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..criteria import magnitude
from ..selection import top_k, top_k_across
from .base import Changes, Views
from .drop_grow import DropGrow, moved
from .redistribute import shared
from .view import LayerView


@dataclass(frozen=True)
class DSR(DropGrow):
    """Dynamic sparse reparameterisation: drop the smallest weights of all layers together, and grow as many at random
    positions, shared among the layers by how many of their weights survived.

    Args:
        drop_fraction: share of all live weights that moves at an update, in [0, 1].
        floor: live weights that an update leaves in every layer, its largest ones.

    References:
        Mostafa and Wang, Parameter Efficient Training of Deep Convolutional Neural Networks by Dynamic Sparse
        Reparameterization, ICML 2019, section 3, https://arxiv.org/abs/1902.05967

    Fidelity:
        The paper prunes below a threshold that is doubled or halved until about the wanted number (20,000 of a
        WRN-28-2) goes, to 10 %; here exactly the wanted number of smallest weights goes, and the layers' shares are
        exact by largest remainders. Its period grows during training (100, 200, 400, 800 steps); ours is constant.

    Example:
        >>> DSR(density=0.1).exclude_dropped
        True
    """

    drop_fraction: float = 0.1
    drop_schedule: str = "constant"
    update_end: int | float = 0.95
    exclude_dropped: bool = True
    floor: int = 1

    name: ClassVar[str] = "dsr"
    paper: ClassVar[str] = "Mostafa and Wang 2019"
    summary: ClassVar[str] = "drop the smallest of all layers, grow at random where more survived"
    moves_across_layers: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        self._integer("floor", low=0)

    def update(self, views: Views, step: int, target: int, total_steps: int | None) -> Changes:
        moving = {name: view for name, view in views.items() if not view.frozen}
        live = {name: view.num_active for name, view in moving.items()}
        free = {name: view.capacity - live[name] for name, view in moving.items()}
        count = int(self.fraction(step, total_steps) * sum(live.values()))
        count = min(count, sum(max(number - self.floor, 0) for number in live.values()))
        if self.exclude_dropped:
            count = min(count, sum(free.values()))
        scores = {name: _guarded(view, self.floor) for name, view in moving.items()}
        keep = top_k_across(scores, sum(live.values()) - count)
        dropped = {name: view.active_positions()[~keep[name]] for name, view in moving.items()}
        left = {name: live[name] - len(dropped[name]) for name in moving}
        room = free if self.exclude_dropped else {n: free[n] + len(dropped[n]) for n in moving}
        counts = shared(count, {name: float(number) for name, number in left.items()}, room)
        return {
            n: moved(view, dropped[n], self.grow(view, counts[n], dropped[n], step))
            for n, view in moving.items()
        }

    def grow(self, view: LayerView, count: int, returning: Tensor, step: int) -> Tensor:
        returning = returning[:0] if self.exclude_dropped else returning
        return view.grow_at_random(count, returning, self.seed, step)


def _guarded(view: LayerView, floor: int) -> Tensor:
    """Magnitudes of a layer's weights, the ``floor`` largest of them above all others: they always stay."""
    score = magnitude(view.active_weights())
    return score.masked_fill(top_k(score, min(floor, len(score)), what=view.name), torch.inf)
