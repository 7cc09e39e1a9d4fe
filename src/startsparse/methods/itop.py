"""In-time over-parameterisation: few, late updates over the whole run, so that many weights are tried and trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Views
from .checks import in_range
from .drop_grow import DropGrow
from .reduced import Growth
from .view import LayerView

EXPLORED = "explored"
GROWTH = ("gradient", "random")


@dataclass(frozen=True)
class ITOP(DropGrow):
    """In-time over-parameterisation: drop and grow so rarely that what was grown is trained, but to the end.

    Not a rule of its own but a regime of SET and RigL: a long interval, half of the weights moved at first, and updates
    until the end of the run. What it is after, the share of all weights that was live at some time (the paper's Rs),
    is kept and reported as ``explored``.

    Args:
        growth: "gradient" (RigL-ITOP) or "random" (SET-ITOP; the paper's interval is 1500 then).
        drop_end: the share that moves at the end of the cosine.

    References:
        Liu et al., Do We Actually Need Dense Over-Parameterization? In-Time Over-Parameterization in Sparse Training,
        ICML 2021, https://arxiv.org/abs/2102.02887

    Fidelity:
        Counts are exact, where the authors' code draws Bernoulli masks and drops by a threshold, so that all fresh
        zeros go together. Optimizer state of grown weights is reset; theirs is masked, which is the same.

    Example:
        >>> ITOP(density=0.05, update_interval=100).window(1000)
        Window(begin=1, end=1000, interval=100)
    """

    update_interval: int = 4000
    update_end: int | float = 1.0
    drop_fraction: float = 0.5
    growth: str = "gradient"
    drop_end: float = 0.005

    name: ClassVar[str] = "itop"
    paper: ClassVar[str] = "Liu et al. 2021"
    summary: ClassVar[str] = "drop and grow rarely, to the end: explore most weights"

    def __post_init__(self):
        super().__post_init__()
        self._one_of("growth", GROWTH)
        in_range(self, "drop_end")

    def wants_gradient(self, step: int, total_steps: int | None) -> bool:
        needed = self.growth == "gradient" or self.grown_value == "gradient_sign"
        return needed and self.due(step, total_steps)

    def fraction(self, step: int, total_steps: int | None) -> float:
        return falling(super().fraction(step, total_steps), self.drop_fraction, self.drop_end)

    def reduces_to(self, views: Views, step: int, total_steps: int | None) -> Growth | None:
        by_gradient = type(self) is ITOP and self.growth == "gradient"
        return self.growth_in_layers(views, step, total_steps) if by_gradient else None

    def grow(self, view: LayerView, count: int, returning: Tensor, step: int) -> Tensor:
        if self.growth == "gradient":
            return view.grow_by_gradient(count, returning)
        return view.grow_at_random(count, returning, self.seed, step)

    def figures(self, explored: float) -> Mapping[str, float]:
        return {EXPLORED: explored}


def falling(fraction: float, start: float, end: float) -> float:
    """A share that falls from ``start`` to 0, made to fall to ``end`` instead.

    Example:
        >>> [falling(share, 0.5, 0.1) for share in (0.5, 0.25, 0.0)]
        [0.5, 0.3, 0.1]
    """
    end = min(start, end)
    return fraction + end * (1 - fraction / start) if start else 0.0
