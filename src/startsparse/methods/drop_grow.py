"""Dynamic sparse training that drops and grows within each layer: SET and RigL.

A method of this family is a pair of rules, which live weights to drop and which inactive positions to grow; the
update around them, counts, source and schedule, is shared.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..criteria import magnitude
from ..distributions import whole
from ..schedules import FRACTIONS, Window, as_step, drop_fraction
from ..selection import top_k
from .base import Change, Changes, Views
from .reduced import Growth
from .static import RandomStart
from .view import LayerView

VALUES = ("zero", "normal", "gradient_sign")
STATES = ("reset", "keep", "mean", "warmup")
DROP_RULES = ("magnitude", "signs")


@dataclass(frozen=True)
class DropGrow(RandomStart):
    """The shared update: every ``update_interval`` steps, drop a fraction of each layer and grow as many.

    Args:
        drop_fraction: share of a layer's live weights that moves at the first update, in [0, 1].
        drop_schedule: "cosine" or "linear" (to zero at ``update_end``), "constant", or "steps" (halved after three
            quarters of the way).
        update_interval: steps from one update to the next.
        update_begin, update_end: updates happen at steps begin <= t < end, as steps (int) or fractions (float).
        exclude_dropped: whether a weight that was just dropped must not grow back in the same update.
        grown_value: value of a grown weight: "zero", "normal" (the spread of the layer's live weights) or
            "gradient_sign" (that spread times the sign of the downhill direction).
        grown_state: its optimizer state: "reset" (zero), "keep" (what is there), "mean" (of the layer's live entries)
            or "warmup" (zero, and Adam's bias correction counts from its birth, which spares it the cold start).
        skip_step_on_update: the update replaces the optimizer's step, as in the reference code of RigL.
    """

    drop_fraction: float = 0.3
    drop_schedule: str = "cosine"
    update_interval: int = 100
    update_begin: int | float = 1
    update_end: int | float = 0.75
    exclude_dropped: bool = False
    grown_value: str = "zero"
    grown_state: str = "reset"
    skip_step_on_update: bool = False

    grows: ClassVar[bool] = True
    grows_by_gradient: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        fraction = self.drop_fraction
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 <= fraction <= 1:
            raise ValueError(f"{self.name}: drop_fraction must be in [0, 1], got {self.drop_fraction!r}")
        self._integer("update_interval", low=1)
        for field in ("update_begin", "update_end"):
            _ = as_step(getattr(self, field), 1, f"{self.name}: {field}")
        for field in ("exclude_dropped", "skip_step_on_update"):
            if not isinstance(getattr(self, field), bool):
                raise ValueError(f"{self.name}: {field} must be True or False, got {getattr(self, field)!r}")
        self._one_of("drop_schedule", FRACTIONS)
        self._one_of("grown_value", VALUES)
        self._one_of("grown_state", STATES)

    def check(self, views: Views, total_steps: int | None) -> None:
        window = self.window(total_steps)
        if window.last < window.first:
            warnings.warn(
                f"{self.name} will never update: no multiple of update_interval={window.interval} lies in "
                f"[{window.begin}, {window.end})",
                stacklevel=5,
            )
        total = sum(math.prod(view.shape) for view in views.values())
        room = sum(view.capacity for view in views.values())
        if room <= round(self.density * total) < total:
            warnings.warn(
                f"{self.name} can move no weight: density {self.density:g} fills the source, enlarge it",
                stacklevel=5,
            )

    def window(self, total_steps: int | None) -> Window:
        """The update steps of a run."""
        begin = as_step(self.update_begin, total_steps, "update_begin")
        end = as_step(self.update_end, total_steps, "update_end")
        return Window(begin, end, self.update_interval)

    def due(self, step: int, total_steps: int | None) -> bool:
        return self.window(total_steps).due(step)

    def wants_gradient(self, step: int, total_steps: int | None) -> bool:
        needed = self.grows_by_gradient or self.grown_value == "gradient_sign"
        return needed and self.due(step, total_steps)

    def phase(self, step: int, total_steps: int | None) -> str:
        return "fixed" if self.window(total_steps).over(step) else "exploring"

    def update(self, views: Views, step: int, target: int, total_steps: int | None) -> Changes:
        fraction = self.fraction(step, total_steps)
        return {name: self._move(view, step, fraction) for name, view in views.items() if not view.frozen}

    def fraction(self, step: int, total_steps: int | None) -> float:
        """The share of live weights that moves at this step."""
        return drop_fraction(self.drop_schedule, self.drop_fraction, step, self.window(total_steps).end)

    def _move(self, view: LayerView, step: int, fraction: float) -> Change:
        count = self._count(view, fraction)
        return self.exchange(view, count, count, step)

    def _count(self, view: LayerView, fraction: float) -> int:
        """How many weights of a layer move."""
        count = int(fraction * view.num_active)
        if self.exclude_dropped:
            count = min(count, view.num_growable(torch.empty(0, dtype=torch.int64)))
        return count

    def growth_in_layers(self, views: Views, step: int, total_steps: int | None) -> Growth | None:
        """``reduces_to`` of a method that grows as many as it drops in each layer, all where the gradient is largest."""
        if self.grown_value == "gradient_sign" or not self.due(step, total_steps):
            return None
        fraction = self.fraction(step, total_steps)
        return Growth({n: 0 if view.frozen else self._count(view, fraction) for n, view in views.items()})

    def exchange(self, view: LayerView, num_drop: int, num_grow: int, step: int) -> Change:
        """Drop so many weights of a layer by ``keep``, then grow so many by ``grow``."""
        dropped = view.left_out(self.keep(view, view.num_active - num_drop))
        returning = dropped[:0] if self.exclude_dropped else dropped
        return moved(view, dropped, self.grow(view, num_grow, returning, step))

    def keep(self, view: LayerView, count: int) -> Tensor:
        """Which live weights stay, bool (num_active,): those of largest magnitude."""
        return top_k(magnitude(view.active_weights()), count, what=view.name)

    def grow(self, view: LayerView, count: int, returning: Tensor, step: int) -> Tensor:
        """The ``count`` positions to grow, int64, rising."""
        raise TypeError(f"{type(self).__name__} does not say where it grows")


def moved(view: LayerView, dropped: Tensor, grown: Tensor) -> Change:
    """The change of a layer that drops and grows these positions: one that is in both keeps its value and state."""
    gone, new = view.apart(dropped, grown)
    return Change(gone, new, returned=len(grown) - len(new))


@dataclass(frozen=True)
class SET(DropGrow):
    """Sparse evolutionary training: drop the smallest weights, grow at random positions.

    Args:
        drop_rule: "magnitude" (the smallest of all) or "signs" (the same share of the smallest positive and of the
            largest negative weights).

    References:
        Mocanu et al., Scalable training of artificial neural networks with adaptive sparse connectivity, Nature
        Communications 2018, https://arxiv.org/abs/1707.04780

    Fidelity:
        Drops by magnitude with a cosine schedule, as the SET of RigL's reference code does. The first SET drops a
        fraction of the positive and of the negative weights apart (``drop_rule="signs"``), once an epoch, without
        decay (``drop_schedule="constant"``). Weights that are exactly zero, grown and not trained yet, count as
        positive, and the number that goes is split between the signs to the weight.

    Example:
        >>> SET(density=0.05).drop_fraction
        0.3
    """

    drop_rule: str = "magnitude"

    name: ClassVar[str] = "set"
    paper: ClassVar[str] = "Mocanu et al. 2018"
    summary: ClassVar[str] = "drop by magnitude, grow at random"

    def __post_init__(self):
        super().__post_init__()
        self._one_of("drop_rule", DROP_RULES)

    def keep(self, view: LayerView, count: int) -> Tensor:
        return super().keep(view, count) if self.drop_rule == "magnitude" else _keep_of_each_sign(view, count)

    def grow(self, view: LayerView, count: int, returning: Tensor, step: int) -> Tensor:
        return view.grow_at_random(count, returning, self.seed, step)


def _keep_of_each_sign(view: LayerView, count: int) -> Tensor:
    """The ``count`` weights farthest from zero, as many of each sign as its share of all."""
    weights = view.active_weights()
    signs = {"positive": weights >= 0, "negative": weights < 0}
    live = {sign: int(members.sum()) for sign, members in signs.items()}
    share = count / max(len(weights), 1)
    counts = whole({sign: share * number for sign, number in live.items()}, count, live)
    kept = torch.zeros_like(signs["positive"])
    for sign, members in signs.items():
        kept[members] = top_k(magnitude(weights[members]), counts[sign], what=view.name)
    return kept


@dataclass(frozen=True)
class RigL(DropGrow):
    """Rigged lottery: drop the smallest weights, grow where the dense gradient is largest.

    The dense gradient is that of the update step itself, taken before the optimizer moves the weights.

    References:
        Evci et al., Rigging the Lottery: Making All Tickets Winners, ICML 2020, section 3,
        https://arxiv.org/abs/1911.11134

    Fidelity:
        As in the reference code, a just-dropped weight may grow back and then keeps its value and state, and grown
        weights start at zero. Differences: the update follows the step instead of replacing it
        (``skip_step_on_update=True`` for parity), there is none after step 0, whose gradient is that of an
        untrained net (``update_begin=0`` for parity), and ties are broken by index instead of by noise.

    Example:
        >>> RigL(density=0.05).window(total_steps=1000)
        Window(begin=1, end=750, interval=100)
    """

    name: ClassVar[str] = "rigl"
    paper: ClassVar[str] = "Evci et al. 2020"
    summary: ClassVar[str] = "drop by magnitude, grow by dense gradient"
    grows_by_gradient: ClassVar[bool] = True

    def reduces_to(self, views: Views, step: int, total_steps: int | None) -> Growth | None:
        return self.growth_in_layers(views, step, total_steps) if type(self) is RigL else None

    def grow(self, view: LayerView, count: int, returning: Tensor, step: int) -> Tensor:
        return view.grow_by_gradient(count, returning)
