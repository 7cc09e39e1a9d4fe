"""Exploration and exploitation: growth by gradient, with a bonus for positions that lived seldom."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..selection import top_k
from .base import Changes, Views
from .checks import in_range
from .drop_grow import DropGrow
from .view import LayerView, scale_of

SEEN, TIMES = "seen", "times"


@dataclass(frozen=True)
class DSTEE(DropGrow):
    """Exploration and exploitation: RigL's update, but growth goes where abs(gradient) and a bonus together are largest.

    The bonus of a position is ``exploration`` * ln(step) / (N + ``smoothing``), N the updates at which it was live.

    Args:
        exploration: weight of the bonus (the paper's c), in the unit of gradients; 0 is RigL.
        smoothing: added to N (the paper's epsilon), above 0.

    References:
        Huang et al., Dynamic Sparse Training via Balancing the Exploration-Exploitation Trade-off, DAC 2023,
        https://arxiv.org/abs/2211.16667

    Fidelity:
        The acquisition of the paper as we know it; its constants depend on the scale of the loss, and ours are no
        more than a start. Ties, as between positions that were never live and have no gradient, go to the lower index.

    Example:
        >>> DSTEE(density=0.1).exploration
        0.001
    """

    exploration: float = 1e-3
    smoothing: float = 1.0

    name: ClassVar[str] = "dst_ee"
    paper: ClassVar[str] = "Huang et al. 2023"
    summary: ClassVar[str] = "grow by gradient and a bonus for what lived seldom"
    grows_by_gradient: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        in_range(self, "exploration", high=math.inf)
        in_range(self, "smoothing", low=1e-12, high=math.inf)

    def update(self, views: Views, step: int, target: int, total_steps: int | None) -> Changes:
        changes = super().update(views, step, target, total_steps)
        found = {}
        for name, change in changes.items():
            seen, times = _lived(views[name])
            found[name] = replace(change, memory={SEEN: seen, TIMES: times})
        return found

    def grow(self, view: LayerView, count: int, returning: Tensor, step: int) -> Tensor:
        positions, score = view.candidates(view.num_growable(returning), returning)
        seen, times = _lived(view)
        lived = torch.zeros_like(score)
        if len(seen):
            place = torch.searchsorted(seen, positions).clamp(max=len(seen) - 1)
            lived = torch.where(seen[place] == positions, times[place].to(score), lived)
        bonus = scale_of(view) * self.exploration * math.log(max(step, 1)) / (lived + self.smoothing)
        return positions[top_k(score + bonus, count, what=view.name)]


def _lived(view: LayerView) -> tuple[Tensor, Tensor]:
    """Positions that were live at some update, this one included, int64, rising, and at how many, int32."""
    active = view.active_positions()
    seen = view.memory.get(SEEN, active[:0]).to(active.device)
    times = view.memory.get(TIMES, torch.empty(0, dtype=torch.int32)).to(active.device)
    where, place = torch.cat([seen, active]).unique(return_inverse=True)
    more = torch.cat([times, torch.ones(len(active), dtype=torch.int32, device=active.device)])
    return where, torch.zeros(len(where), dtype=torch.int32, device=active.device).index_add_(0, place, more)
