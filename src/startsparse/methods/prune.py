"""Pruning: once by magnitude, once by the first gradient (SNIP), or gradually along a cubic curve (GMP)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..criteria import magnitude, saliency
from ..distributions import Distribution
from ..schedules import Window, as_step, cubic
from .base import GLOBAL, Changes, Method, Start, Views, layer_counts, masks_of, prune_to

if TYPE_CHECKING:
    from ..passes import Passes


@dataclass(frozen=True)
class Prune(Method):
    """A method that starts from all of the source and drops weights of lowest score.

    Args:
        distribution: "global" ranks all layers together; a rule or mapping shares the budget among them first.
    """

    distribution: Distribution = GLOBAL
    ranks: ClassVar[bool] = True
    prunes_later: ClassVar[bool] = True  # after attachment: layers that never change cannot take part

    def check(self, views: Views, total_steps: int | None) -> None:
        total = sum(math.prod(view.shape) for view in views.values())
        room = sum(view.capacity for view in views.values())
        if room < round(self.density * total):
            raise ValueError(
                f"{self.name}: density {self.density:g} asks for {round(self.density * total)} weights, but the source "
                f"holds only {room}: lower the density or enlarge the source"
            )
        if self.distribution != GLOBAL:
            _ = layer_counts(
                self.distribution, views, self.density
            )  # what it cannot share out is refused here
        frozen = [name for name, view in views.items() if view.frozen]
        if self.prunes_later and frozen:
            raise ValueError(
                f"{self.name} prunes during training, but {', '.join(frozen)} never changes (requires_grad=False): "
                "exclude it with layers=['!name']"
            )

    def start(self, views: Views) -> dict[str, Start]:
        return {name: Start() for name in views}


@dataclass(frozen=True)
class Magnitude(Prune):
    """One-shot pruning: the weights of largest magnitude at attachment stay, and only they are trained.

    References:
        Han et al., Learning both Weights and Connections, NeurIPS 2015, https://arxiv.org/abs/1506.02626

    Example:
        >>> Magnitude(density=0.1).due(-1, None)
        True
    """

    name: ClassVar[str] = "magnitude"
    paper: ClassVar[str] = "Han et al. 2015"
    summary: ClassVar[str] = "keep the largest weights, once"
    prunes_later: ClassVar[bool] = False

    def due(self, step: int, total_steps: int | None) -> bool:
        return step == -1

    def target(self, step: int, total: int, start_count: int, total_steps: int | None) -> int:
        return round(self.density * total)

    def update(self, views: Views, step: int, target: int, total_steps: int | None) -> Changes:
        scores = {name: magnitude(view.active_weights()) for name, view in views.items()}
        return prune_to(views, scores, target, self)


@dataclass(frozen=True)
class SNIP(Prune):
    """Pruning at initialisation by connection sensitivity: abs(weight * gradient) of the first batch.

    The scores are those of the untouched weights at the first optimizer step: the mask is chosen before that step,
    which already trains the sparse net. With accumulation the whole first step's samples are scored. Over several
    batches of ``data`` the mask is chosen at attachment, by the gradient of their summed losses.

    Args:
        batches: batches of ``data`` to score; 0 scores the first training step and needs no ``data``.

    References:
        Lee et al., SNIP: Single-shot network pruning based on connection sensitivity, ICLR 2019, section 4,
        https://arxiv.org/abs/1810.02340

    Fidelity:
        Weights keep their own initialisation (some codes score a re-initialised copy); the count is exact, where
        thresholding keeps all ties.

    Example:
        >>> SNIP(density=0.05).phase(0, None), SNIP(density=0.05).phase(1, None)
        ('scoring', 'static')
    """

    batches: int = 0

    name: ClassVar[str] = "snip"
    paper: ClassVar[str] = "Lee et al. 2019"
    summary: ClassVar[str] = "keep the weights the first gradient asks for"

    def __post_init__(self):
        super().__post_init__()
        self._integer("batches", low=0)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("data", "loss_fn") if self.batches else ()

    @property
    def needs_step_gradient(self) -> bool:  # type: ignore[override]
        return not self.batches

    def begin(self, views: Views, passes: Passes, target: int) -> Changes:
        live = {name: view.active_positions() for name, view in views.items()}
        gradients = passes.gradients(masks_of(views, live), passes.batches(self.batches))
        scores = {
            name: saliency(view.active_weights(), gradients[name].reshape(-1)[live[name]])
            for name, view in views.items()
        }
        return prune_to(views, scores, target, self)

    def due(self, step: int, total_steps: int | None) -> bool:
        return step == (-1 if self.batches else 0)

    def wants_gradient(self, step: int, total_steps: int | None) -> bool:
        return step == 0 and not self.batches

    def target(self, step: int, total: int, start_count: int, total_steps: int | None) -> int:
        return round(self.density * total) if step >= 0 or self.batches else start_count

    def phase(self, step: int, total_steps: int | None) -> str:
        return "scoring" if step == 0 and not self.batches else "static"

    def update(self, views: Views, step: int, target: int, total_steps: int | None) -> Changes:
        scores = {
            name: saliency(view.active_weights(), view.active_gradients()) for name, view in views.items()
        }
        return prune_to(views, scores, target, self)


@dataclass(frozen=True)
class GMP(Prune):
    """Gradual magnitude pruning: from all of the source to ``density`` along a cubic curve, fast first.

    Args:
        update_interval: steps from one pruning to the next.
        update_begin, update_end: prunings happen at steps begin <= t < end, as steps or fractions; the last of them
            reaches ``density``.

    References:
        Zhu and Gupta, To prune, or not to prune, 2017, https://arxiv.org/abs/1710.01878

    Fidelity:
        The paper prunes every layer alike (``distribution="uniform"``) and lets a pruned weight come back if it
        kept its value; here pruned weights are zero and stay so.

    Example:
        >>> gmp = GMP(density=0.1, update_interval=10, update_begin=0, update_end=100)
        >>> [gmp.target(step, 1000, 1000, None) for step in (-1, 0, 10, 50, 90, 99)]
        [1000, 1000, 732, 179, 100, 100]
    """

    update_interval: int = 100
    update_begin: int | float = 0.0
    update_end: int | float = 0.75

    name: ClassVar[str] = "gmp"
    paper: ClassVar[str] = "Zhu and Gupta 2017"
    summary: ClassVar[str] = "drop the smallest weights along a cubic curve"

    def __post_init__(self):
        super().__post_init__()
        self._integer("update_interval", low=1)
        for field in ("update_begin", "update_end"):
            _ = as_step(getattr(self, field), 1, f"{self.name}: {field}")

    def check(self, views: Views, total_steps: int | None) -> None:
        super().check(views, total_steps)
        window = self.window(total_steps)
        if window.last < window.first:
            raise ValueError(
                f"gmp: no multiple of update_interval={window.interval} lies in [{window.begin}, {window.end}), so "
                f"density {self.density:g} would never be reached: lower update_interval or widen the range"
            )

    def window(self, total_steps: int | None) -> Window:
        """The update steps of a run."""
        begin = as_step(self.update_begin, total_steps, "update_begin")
        end = as_step(self.update_end, total_steps, "update_end")
        return Window(begin, end, self.update_interval)

    def due(self, step: int, total_steps: int | None) -> bool:
        return self.window(total_steps).due(step)

    def target(self, step: int, total: int, start_count: int, total_steps: int | None) -> int:
        window = self.window(total_steps)
        if step < window.first:
            return start_count
        at = min(step // window.interval * window.interval, window.last)
        span = window.last - window.begin
        progress = (at - window.begin) / span if span else 1.0
        return min(start_count, round(cubic(start_count / total, self.density, progress) * total))

    def phase(self, step: int, total_steps: int | None) -> str:
        return "fixed" if self.window(total_steps).over(step) else "pruning"

    def update(self, views: Views, step: int, target: int, total_steps: int | None) -> Changes:
        scores = {name: magnitude(view.active_weights()) for name, view in views.items()}
        return prune_to(views, scores, target, self)
