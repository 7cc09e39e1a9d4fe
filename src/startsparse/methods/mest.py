"""Memory-economic sparse training: elastic mutation, with a hard or a soft bound on the live weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..criteria import magnitude
from ..distributions import whole
from ..schedules import Window, drop_fraction
from ..selection import top_k
from .base import Change, Changes, Start, Views, layer_counts
from .checks import in_range, refuse_frozen
from .drop_grow import DropGrow
from .reduced import Growth
from .view import LayerView, scale_of


@dataclass(frozen=True)
class MEST(DropGrow):
    """Elastic mutation: drop what matters least, grow at random, ever less of it.

    With a soft memory bound (EM&S) more weights live between the updates than at the end: an update prunes to the final
    count, less ``drop_fraction``, and grows ``soft_bound`` more than that, a surplus that shrinks to none at the last
    update.

    Args:
        soft_bound: surplus of live weights over the final count when training begins, as a share of it; 0: plain EM.
        gradient_weight: lambda of the importance abs(weight) + lambda * abs(gradient) by which weights are dropped.

    References:
        Yuan et al., MEST: Accurate and Fast Memory-Economic Sparse Training Framework on the Edge, NeurIPS 2021,
        https://arxiv.org/abs/2110.14032

    Fidelity:
        The authors' scripts name upper and lower sparsities of each phase of epochs; here the mutation is a share of
        the live weights that is halved at three quarters of the way (20 %, 10 %, 0 of the live weights at 90 and 95 %,
        as there), and counts are exact. Unstructured masks only: filter balance and block columns are not built.

    Example:
        >>> em_s = MEST(density=0.1, drop_fraction=0.0, soft_bound=0.5, update_interval=10)
        >>> [em_s.target(step, 1000, 150, 100) for step in (-1, 0, 30, 60, 70, 99)]
        [150, 150, 150, 125, 100, 100]
    """

    drop_fraction: float = 0.2
    drop_schedule: str = "steps"
    update_interval: int = 1000
    soft_bound: float = 0.0
    gradient_weight: float = 0.0

    name: ClassVar[str] = "mest"
    paper: ClassVar[str] = "Yuan et al. 2021"
    summary: ClassVar[str] = "drop the least important, grow at random, with a soft bound"

    def __post_init__(self):
        super().__post_init__()
        for field in ("soft_bound", "gradient_weight"):
            in_range(self, field, high=math.inf)

    def check(self, views: Views, total_steps: int | None) -> None:
        super().check(views, total_steps)
        if self.soft_bound:
            refuse_frozen(self, views, "with a soft_bound prunes during training")
        window = self.window(total_steps)
        if self.soft_bound and window.last < window.first:
            raise ValueError(
                f"mest: no multiple of update_interval={window.interval} lies in [{window.begin}, {window.end}), so "
                f"the soft bound would never come down to density {self.density:g}: lower update_interval"
            )

    def start(self, views: Views) -> dict[str, Start]:
        sizes = sum(math.prod(view.shape) for view in views.values())
        room = sum(view.capacity for view in views.values()) / sizes
        density = max(self.density, min(self.density * (1 + self.soft_bound), room))
        counts = layer_counts(self.distribution, views, density)
        return {name: self._draw(view, counts[name]) for name, view in views.items()}

    def target(self, step: int, total: int, start_count: int, total_steps: int | None) -> int:
        window = self.window(total_steps)
        if not self.soft_bound or step < window.first:
            return start_count
        surplus = self._surplus(min(step // window.interval * window.interval, window.last), window)
        return min(start_count, round(self.density * (1 + surplus) * total))

    def _surplus(self, step: int, window: Window) -> float:
        return (
            0.0
            if step >= window.last
            else drop_fraction(self.drop_schedule, self.soft_bound, step, window.last)
        )

    def wants_gradient(self, step: int, total_steps: int | None) -> bool:
        return super().wants_gradient(step, total_steps) or (
            self.gradient_weight > 0 and self.due(step, total_steps)
        )

    def reduces_to(self, views: Views, step: int, total_steps: int | None) -> Growth | None:
        of_live = type(self) is MEST and self.grown_value != "gradient_sign" and self.due(step, total_steps)
        return Growth(dict.fromkeys(views, 0)) if of_live else None

    def update(self, views: Views, step: int, target: int, total_steps: int | None) -> Changes:
        if not self.soft_bound:
            return super().update(views, step, target, total_steps)
        fraction = self.fraction(step, total_steps)
        live = {name: view.num_active for name, view in views.items()}
        final = round(self.density * sum(math.prod(view.shape) for view in views.values()))
        base, goal = _scaled(live, min(final, target)), _scaled(live, target)
        return {
            name: self._mutate(view, base[name], goal[name], fraction, step) for name, view in views.items()
        }

    def _mutate(self, view: LayerView, base: int, goal: int, fraction: float, step: int) -> Change:
        """From what lives down to ``base``, less the fraction, and up to ``goal``."""
        keep = base - int(fraction * base)
        if self.exclude_dropped:
            keep = max(keep, goal - view.num_growable(torch.empty(0, dtype=torch.int64)))
        return self.exchange(view, view.num_active - keep, goal - keep, step)

    def keep(self, view: LayerView, count: int) -> Tensor:
        score = magnitude(view.active_weights())
        if self.gradient_weight:
            weight = self.gradient_weight / scale_of(view)
            score = score + weight * view.gradients_at(view.active_positions()).abs()
        return top_k(score, count, what=view.name)

    def grow(self, view: LayerView, count: int, returning: Tensor, step: int) -> Tensor:
        return view.grow_at_random(count, returning, self.seed, step)


def _scaled(live: Mapping[str, int], total: int) -> dict[str, int]:
    """Every layer's share of ``total`` as it is of the live weights."""
    scale = total / max(sum(live.values()), 1)
    return whole({name: scale * count for name, count in live.items()}, total, live)
