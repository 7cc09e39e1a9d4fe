"""Guided stochastic exploration: gradients are looked at in a random subset of the inactive weights alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..criteria import gradient as gradient_score
from ..criteria import magnitude
from ..selection import top_k_across
from .base import Change, Changes, Views
from .checks import in_range
from .drop_grow import DropGrow
from .view import LayerView


@dataclass(frozen=True)
class GSE(DropGrow):
    """Guided stochastic exploration: draw a random subset of inactive weights, grow those of largest gradient in it,
    and drop as many of the smallest weights of the net, all layers ranked together.

    Args:
        subset: size of a layer's random subset, as a multiple of its live weights.

    References:
        Heddes et al., Always-Sparse Training by Growing Connections with Guided Stochastic Exploration, 2024,
        https://arxiv.org/abs/2401.06898

    Fidelity:
        The uniform subset and the global scope of the authors' code; their two guided subsets (GraBo, GraEst) are not
        built. What grows is never what was just dropped, and what just grew is not dropped, as there. The dense
        gradient is computed in blocks of rows and read at the subset alone; a kernel that computes only these entries,
        which is the point of the paper's cost, is not built.

    Example:
        >>> GSE(density=0.1).subset
        1.0
    """

    drop_fraction: float = 0.2
    update_interval: int = 1000
    update_end: int | float = 0.6
    exclude_dropped: bool = True
    subset: float = 1.0

    name: ClassVar[str] = "gse"
    paper: ClassVar[str] = "Heddes et al. 2024"
    summary: ClassVar[str] = "grow by gradient within a random subset, drop the smallest of all layers"
    moves_across_layers: ClassVar[bool] = True
    grows_by_gradient: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        in_range(self, "subset", high=math.inf)
        if not self.exclude_dropped:
            raise ValueError("gse grows before it drops: exclude_dropped must be True")

    def update(self, views: Views, step: int, target: int, total_steps: int | None) -> Changes:
        moving = {name: view for name, view in views.items() if not view.frozen}
        drawn = {name: self._drawn(view, step) for name, view in moving.items()}
        live = sum(view.num_active for view in moving.values())
        count = min(int(self.fraction(step, total_steps) * live), sum(map(len, drawn.values())))
        scores = {name: gradient_score(view.gradients_at(drawn[name])) for name, view in moving.items()}
        grow = top_k_across(scores, count)
        keep = top_k_across({n: magnitude(v.active_weights()) for n, v in moving.items()}, live - count)
        return {
            name: Change(view.active_positions()[~keep[name]], drawn[name][grow[name]])
            for name, view in moving.items()
        }

    def _drawn(self, view: LayerView, step: int) -> Tensor:
        none = torch.empty(0, dtype=torch.int64)
        count = min(math.ceil(self.subset * view.num_active), view.num_growable(none))
        return view.grow_at_random(count, none, self.seed, step)
