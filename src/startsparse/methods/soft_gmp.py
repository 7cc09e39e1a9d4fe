"""Gradual pruning that can be undone: pruned weights keep their values and may come back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..selection import top_k, top_k_across
from .base import GLOBAL, Changes, Views, counts_on_the_way
from .hidden import WHY_MASKED, change_to, live_masks, magnitudes
from .prune import GMP


@dataclass(frozen=True)
class SoftGMP(GMP):
    """Gradual magnitude pruning whose pruned weights keep their values: one that is larger than a live weight at the
    next pruning takes its place.

    Args:
        update_interval, update_begin, update_end: as for ``GMP``.

    References:
        Zhu and Gupta, To prune, or not to prune, 2017, section 3, https://arxiv.org/abs/1710.01878

    Fidelity:
        As in the paper a pruned weight has no gradient. Its value rests; in the authors' code momentum and weight decay
        may still move it. The paper prunes every layer alike (``distribution="uniform"``).

    Example:
        >>> SoftGMP(density=0.1, update_interval=10, update_begin=0, update_end=100).target(50, 1000, 1000, None)
        179
    """

    name: ClassVar[str] = "softgmp"
    summary: ClassVar[str] = "drop the smallest weights along a cubic curve, but keep their values"
    grown_state: ClassVar[str] = "keep"
    hides: ClassVar[bool] = True
    masked_only: ClassVar[str] = WHY_MASKED

    def update(self, views: Views, step: int, target: int, total_steps: int | None) -> Changes:
        scores, before = {name: magnitudes(view) for name, view in views.items()}, live_masks(views)
        if self.distribution == GLOBAL:
            live = top_k_across(scores, target, prefer=before)
        else:
            room = {name: view.capacity for name, view in views.items()}
            counts = counts_on_the_way(views, target, self, room)
            live = {n: top_k(scores[n], counts[n], prefer=before[n], what=n) for n in views}
        return {name: change_to(view, live[name]) for name, view in views.items()}
