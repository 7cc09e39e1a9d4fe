"""Sparse momentum: weights move to the layers, and the places, where the averaged gradient is large."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from .base import Changes, Views
from .checks import in_range
from .drop_grow import DropGrow
from .itop import falling
from .redistribute import affordable, shared

NEARLY_DENSE = 0.2  # sparsity below which a layer that wants more weights gives up less of them


@dataclass(frozen=True)
class SNFS(DropGrow):
    """Sparse momentum: drop the smallest weights of each layer, share what they leave among the layers by the mean
    momentum of their live weights, and grow where the momentum of inactive ones is largest.

    Args:
        momentum: of the moving average of the dense gradient.
        drop_end: the share that moves at the end of the cosine.

    References:
        Dettmers and Zettlemoyer, Sparse Networks from Scratch: Faster Training without Losing Performance, 2019,
        section 4, https://arxiv.org/abs/1907.04840

    Fidelity:
        The momentum is our own average of the dense gradient, whatever the optimizer keeps (the authors' code reads
        the optimizer's, and for Adam its normalised form). Counts are exact by largest remainders, where theirs are
        rounded up and a control loop corrects the drift; a layer may become dense (theirs: 99 %).

    Example:
        >>> snfs = SNFS(density=0.05, update_interval=10)
        >>> snfs.wants_gradient(3, 100), snfs.gradient_carry(3, 100)
        (True, 0.9)
    """

    drop_fraction: float = 0.5
    update_interval: int = 500
    update_end: int | float = 1.0
    momentum: float = 0.9
    drop_end: float = 0.005

    name: ClassVar[str] = "snfs"
    paper: ClassVar[str] = "Dettmers and Zettlemoyer 2019"
    summary: ClassVar[str] = "drop by magnitude, grow in the layers and places of large momentum"
    moves_across_layers: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        in_range(self, "momentum", high=math.nextafter(1, 0))
        in_range(self, "drop_end")

    def fraction(self, step: int, total_steps: int | None) -> float:
        return falling(super().fraction(step, total_steps), self.drop_fraction, self.drop_end)

    def wants_gradient(self, step: int, total_steps: int | None) -> bool:
        window = self.window(total_steps)
        return not window.over(step) and (self.momentum > 0 or window.due(step))

    def gradient_carry(self, step: int, total_steps: int | None) -> float:
        return float(self.momentum) if self.wants_gradient(step, total_steps) else 0.0

    def update(self, views: Views, step: int, target: int, total_steps: int | None) -> Changes:
        moving = {name: view for name, view in views.items() if not view.frozen}
        wishes = {
            name: float(view.gradients_at(view.active_positions()).abs().mean()) if view.num_active else 0.0
            for name, view in moving.items()
        }
        drops = self._drops(moving, wishes, self.fraction(step, total_steps))
        live = {name: view.num_active for name, view in moving.items()}
        limit = {name: view.capacity for name, view in moving.items()}
        free = {name: limit[name] - live[name] for name in moving}
        drops, room = affordable(drops, live, free, limit, returning=not self.exclude_dropped)
        counts = shared(sum(drops.values()), wishes, room)
        return {n: self.exchange(view, drops[n], counts[n], step) for n, view in moving.items()}

    def _drops(self, views: Views, wishes: dict[str, float], fraction: float) -> dict[str, int]:
        total = sum(wishes.values())
        drops = {}
        for name, view in views.items():
            sparsity = 1 - view.num_active / math.prod(view.shape)
            wants_more = total > 0 and wishes[name] / total > 1 / len(views)
            share = min(sparsity, fraction) if sparsity < NEARLY_DENSE and wants_more else fraction
            drops[name] = int(share * view.num_active)
        return drops

    def grow(self, view, count: int, returning, step: int):
        return view.grow_by_gradient(count, returning)
