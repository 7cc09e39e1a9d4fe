"""Alternating compressed and decompressed training."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..criteria import magnitude
from ..schedules import as_step
from .base import Change, Changes, Views, prune_to
from .prune import Prune


@dataclass(frozen=True)
class ACDC(Prune):
    """Alternate dense and sparse phases: compress to the largest weights, decompress to all of the source, and so on.

    Pruned weights are zero; they start again from zero, with fresh optimizer state, when the net is decompressed.

    Args:
        update_begin: the first compression, which ends the dense warm-up.
        phase_length: of each sparse and dense phase after it.
        last_dense: length of the last dense phase.
        update_end: the last compression; then the sparse net is trained. Steps (int) or fractions (float), all four.

    References:
        Peste et al., AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural Networks, NeurIPS 2021,
        https://arxiv.org/abs/2106.12379

    Fidelity:
        Defaults are the shares of the authors' ImageNet schedule: 10 of 100 epochs dense, then 5 sparse and 5 dense in
        turn, the last dense phase from 75 to 85. Counts are exact, over all layers or (a rule or mapping as
        ``distribution``) layer by layer.

    Example:
        >>> ACDC(density=0.1).events(100)
        {10: False, 15: True, 20: False, 25: True, 30: False, 35: True, 40: False, 45: True, 50: False, 55: True, \
60: False, 65: True, 70: False, 75: True, 85: False}
    """

    update_begin: int | float = 0.10
    phase_length: int | float = 0.05
    last_dense: int | float = 0.10
    update_end: int | float = 0.85

    name: ClassVar[str] = "acdc"
    paper: ClassVar[str] = "Peste et al. 2021"
    summary: ClassVar[str] = "train dense and sparse in turn"
    grows: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        for field in ("update_begin", "phase_length", "last_dense", "update_end"):
            _ = as_step(getattr(self, field), 1, f"{self.name}: {field}")

    def check(self, views: Views, total_steps: int | None) -> None:
        super().check(views, total_steps)
        begin, _, last, end = self._steps(total_steps)
        if not begin <= end - last < end:
            raise ValueError(
                f"acdc: the last dense phase is steps {end - last} to {end}, and the first compression at {begin} must "
                "come no later than it begins: lower update_begin or last_dense, or raise update_end"
            )
        if total_steps is not None and end >= total_steps:
            raise ValueError(
                f"acdc: the last compression at step {end} is after the run of {total_steps} steps, which would end "
                "dense: lower update_end"
            )

    def _steps(self, total_steps: int | None) -> tuple[int, int, int, int]:
        begin, length, last, end = (
            as_step(getattr(self, field), total_steps, field)
            for field in ("update_begin", "phase_length", "last_dense", "update_end")
        )
        return begin, max(length, 1), max(last, 1), end

    def events(self, total_steps: int | None) -> dict[int, bool]:
        """Step -> whether the net is dense after it."""
        begin, length, last, end = self._steps(total_steps)
        steps = itertools.takewhile(lambda at: at < end - last, itertools.count(begin, length))
        found = {at: index % 2 == 1 for index, at in enumerate(steps)}
        return found | {end - last: True, end: False}

    def _dense(self, step: int, total_steps: int | None) -> bool:
        """Whether the net is dense once this step is done."""
        done = [dense for at, dense in self.events(total_steps).items() if at <= step]
        return done[-1] if done else True

    def due(self, step: int, total_steps: int | None) -> bool:
        return self.events(total_steps).get(step) not in (None, self._dense(step - 1, total_steps))

    def target(self, step: int, total: int, start_count: int, total_steps: int | None) -> int:
        return start_count if self._dense(step, total_steps) else round(self.density * total)

    def phase(self, step: int, total_steps: int | None) -> str:
        if step > self._steps(total_steps)[3]:
            return "fixed"
        return "dense" if self._dense(step - 1, total_steps) else "sparse"

    def update(self, views: Views, step: int, target: int, total_steps: int | None) -> Changes:
        if not self._dense(step, total_steps):
            scores = {name: magnitude(view.active_weights()) for name, view in views.items()}
            return prune_to(views, scores, target, self)
        none = torch.empty(0, dtype=torch.int64)
        return {
            name: Change(none, view.grow_at_random(view.num_growable(none), none, self.seed, step))
            for name, view in views.items()
        }
