"""Gradual pruning with neuroregeneration: prune over all layers, and at once move some of what is left."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..criteria import magnitude
from ..schedules import FRACTIONS, Window, as_step, cubic, drop_fraction
from ..selection import top_k, top_k_across
from .base import Change, Changes, Start, Views, layer_counts
from .checks import in_range, refuse_frozen
from .drop_grow import moved
from .static import RandomStart
from .view import LayerView


@dataclass(frozen=True)
class GraNet(RandomStart):
    """Gradual pruning that regenerates: the smallest weights of the net are pruned along a cubic curve, and of what
    is left in each layer a share is dropped and grown again where the dense gradient is largest.

    Args:
        start_density: live weights when training begins: 0.5 is the paper's sparse-to-sparse, 1.0 its dense-to-sparse
            (all of the source). A smaller one than ``density`` counts as that.
        regrow_fraction: share of a layer's weights that is regenerated at the first update, in [0, 1].
        regrow_schedule: "cosine", "linear" or "steps" (to zero at ``update_end``), or "constant".
        update_interval: steps from one update to the next.
        update_begin, prune_end, update_end: updates happen at steps begin <= t < ``update_end``; the last one before
            ``prune_end`` reaches ``density``. Steps or fractions.

    References:
        Liu et al., Sparse Training via Boosting Pruning Plasticity with Neuroregeneration, NeurIPS 2021,
        https://arxiv.org/abs/2106.10404

    Fidelity:
        Exact counts, where the authors' code prunes by a threshold (all ties go) and starts from Bernoulli masks. A
        weight that is pruned or dropped may be regenerated at once and then keeps its value. Regeneration goes on
        after the pruning has ended, with a cosine that reaches zero at the end of the run.

    Example:
        >>> granet = GraNet(density=0.1, update_interval=10, update_begin=0, prune_end=100, update_end=200)
        >>> [granet.target(step, 1000, 500, None) for step in (-1, 0, 10, 50, 90, 150)]
        [500, 500, 381, 135, 100, 100]
    """

    start_density: float = 0.5
    regrow_fraction: float = 0.5
    regrow_schedule: str = "cosine"
    update_interval: int = 1000
    update_begin: int | float = 1
    prune_end: int | float = 0.5
    update_end: int | float = 1.0

    name: ClassVar[str] = "granet"
    paper: ClassVar[str] = "Liu et al. 2021"
    summary: ClassVar[str] = "prune over all layers along a cubic curve, regenerate by gradient"
    grows: ClassVar[bool] = True
    moves_across_layers: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        for field in ("start_density", "regrow_fraction"):
            in_range(self, field)
        self._integer("update_interval", low=1)
        self._one_of("regrow_schedule", FRACTIONS)
        for field in ("update_begin", "prune_end", "update_end"):
            _ = as_step(getattr(self, field), 1, f"{self.name}: {field}")

    def check(self, views: Views, total_steps: int | None) -> None:
        refuse_frozen(self, views, "prunes during training")
        window = self.pruning(total_steps)
        if window.last < window.first:
            raise ValueError(
                f"granet: no multiple of update_interval={window.interval} lies in [{window.begin}, {window.end}), so "
                f"density {self.density:g} would never be reached: lower update_interval or raise prune_end"
            )
        if self.window(total_steps).last < window.last:
            raise ValueError(
                f"granet: prune_end={self.prune_end!r} lies after update_end={self.update_end!r}: raise update_end"
            )
        _ = layer_counts(self.distribution, views, self.density)  # what it cannot share out is refused here

    def start(self, views: Views) -> dict[str, Start]:
        total = sum(math.prod(view.shape) for view in views.values())
        room = sum(view.capacity for view in views.values())
        wanted = max(self.density, self.start_density)
        if round(wanted * total) >= room:
            return {name: Start() for name in views}
        counts = layer_counts(self.distribution, views, wanted)
        return {name: self._draw(view, counts[name]) for name, view in views.items()}

    def window(self, total_steps: int | None) -> Window:
        """The update steps of a run."""
        begin = as_step(self.update_begin, total_steps, "update_begin")
        return Window(begin, as_step(self.update_end, total_steps, "update_end"), self.update_interval)

    def pruning(self, total_steps: int | None) -> Window:
        """Those that prune."""
        begin = as_step(self.update_begin, total_steps, "update_begin")
        return Window(begin, as_step(self.prune_end, total_steps, "prune_end"), self.update_interval)

    def due(self, step: int, total_steps: int | None) -> bool:
        return self.window(total_steps).due(step)

    def wants_gradient(self, step: int, total_steps: int | None) -> bool:
        return self.regrow_fraction > 0 and self.due(step, total_steps)

    def target(self, step: int, total: int, start_count: int, total_steps: int | None) -> int:
        window = self.pruning(total_steps)
        if step < window.first:
            return start_count
        at = min(step // window.interval * window.interval, window.last)
        span = window.last - window.begin
        progress = (at - window.begin) / span if span else 1.0
        return min(start_count, round(cubic(start_count / total, self.density, progress) * total))

    def phase(self, step: int, total_steps: int | None) -> str:
        if not self.pruning(total_steps).over(step):
            return "pruning"
        return "fixed" if self.window(total_steps).over(step) else "exploring"

    def update(self, views: Views, step: int, target: int, total_steps: int | None) -> Changes:
        fraction = drop_fraction(
            self.regrow_schedule, self.regrow_fraction, step, self.window(total_steps).end
        )
        weights = {name: magnitude(view.active_weights()) for name, view in views.items()}
        survive = top_k_across(weights, target)
        return {n: _regenerate(view, weights[n], survive[n], fraction) for n, view in views.items()}


def _regenerate(view: LayerView, score: Tensor, survive: Tensor, fraction: float) -> Change:
    live = int(survive.sum())
    count = int(fraction * live)
    keep = top_k(score.masked_fill(~survive, -1.0), live - count, what=view.name)
    dropped = view.active_positions()[~keep]
    return moved(view, dropped, view.grow_by_gradient(count, dropped))
