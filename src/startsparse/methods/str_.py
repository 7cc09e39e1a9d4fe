"""Soft threshold reparameterisation: layers learn how much of their weights to cut off."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..distributions import Distribution
from ..selection import top_k, top_k_across
from .base import GLOBAL, Changes, Views, counts_on_the_way
from .checks import in_range
from .hidden import LOGIT, THRESHOLD, WHY_MASKED, change_to, live_masks, magnitudes
from .prune import GMP
from .view import LayerView


@dataclass(frozen=True)
class STR(GMP):
    """Soft threshold reparameterisation: every weight is shrunk by its layer's threshold, what is below it is zero, and
    the thresholds are learnt with the weights.

    A layer's threshold is c * sigmoid(s), where s is learnt by the gradient and c, common to all layers, is set after
    each step so that the scheduled number of weights lives. So the budget is met, and the layers share it as they learn.
    Under a distribution other than "global" every layer has its own c and keeps its share, whatever s is.

    Args:
        update_interval, update_begin, update_end: of the schedule of the number of weights, as for ``GMP``.
        threshold_rate: learning rate of s, as a multiple of that of the weights; 0: all thresholds stay equal.

    References:
        Kusupati et al., Soft Threshold Weight Reparameterization for Learnable Sparsity, ICML 2020, section 3,
        https://arxiv.org/abs/2002.03231

    Fidelity:
        In the paper nothing sets a budget: weight decay on s raises the thresholds, and the density is what comes of
        it. Here the common factor c takes that part, so counts are scheduled and exact, and s only says how layers
        differ; it starts at 0 and has no decay. s is trained by plain gradient descent, whatever trains the weights.
        A weight below its threshold rests, without gradient and without decay (theirs: with decay).

    Example:
        >>> STR(density=0.1, update_begin=0, update_end=100).target(50, 1000, 1000, None)
        209
    """

    distribution: Distribution = GLOBAL
    update_interval: int = 1
    threshold_rate: float = 1.0

    name: ClassVar[str] = "str"
    paper: ClassVar[str] = "Kusupati et al. 2020"
    summary: ClassVar[str] = "shrink weights by thresholds that layers learn"
    grown_state: ClassVar[str] = "keep"
    hides: ClassVar[bool] = True
    shrinks: ClassVar[bool] = True
    masked_only: ClassVar[str] = WHY_MASKED

    def __post_init__(self):
        super().__post_init__()
        in_range(self, "threshold_rate", high=math.inf)

    def due(self, step: int, total_steps: int | None) -> bool:
        return step >= 0

    def hidden_pull(self, step: int) -> float:
        return self.threshold_rate

    def update(self, views: Views, step: int, target: int, total_steps: int | None) -> Changes:
        shares = {name: torch.sigmoid(logit(view)) for name, view in views.items()}
        scores = {name: magnitudes(view).double() / shares[name] for name, view in views.items()}
        before = live_masks(views)
        if self.distribution == GLOBAL:
            live = top_k_across(scores, target, prefer=before)
            cuts = dict.fromkeys(views, _highest_outside(scores, live))
        else:
            room = {name: view.capacity for name, view in views.items()}
            counts = counts_on_the_way(views, target, self, room)
            live = {n: top_k(scores[n], counts[n], prefer=before[n], what=n) for n in views}
            cuts = {name: _highest_outside({name: scores[name]}, live) for name in views}
        return {
            name: change_to(
                view,
                live[name],
                {LOGIT: logit(view), THRESHOLD: (cuts[name] * shares[name]).to(torch.float32)},
            )
            for name, view in views.items()
        }


def logit(view: LayerView) -> Tensor:
    """s of a layer, a scalar, float64."""
    return view.memory.get(LOGIT, torch.zeros((), dtype=torch.float64))


def _highest_outside(scores: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> Tensor:
    outside = [score.masked_fill(live[name], -torch.inf) for name, score in scores.items()]
    return max((part.max() for part in outside if len(part)), default=torch.zeros(())).clamp_min(0)
