"""When a topology changes and by how much: step -> value, or None for "not now".

A step is an optimizer step, counted from 0. Bounds are steps (int) or fractions of the run (float in [0, 1]).
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

FRACTIONS = ("cosine", "linear", "constant", "steps")


class LengthMissing(ValueError):
    """A schedule counts in parts of a run whose length nobody gave."""


def run_length(total_steps: Any) -> int | None:
    """``total_steps`` as an int, whatever integer it is.

    Raises:
        ValueError: it is neither None nor an integer of 1 or more.

    Example:
        >>> run_length(100), run_length(None)
        (100, None)
    """
    if total_steps is None:
        return None
    try:
        steps = 0 if isinstance(total_steps, bool) else operator.index(total_steps)
    except TypeError:
        steps = 0
    if steps < 1:
        raise ValueError(f"total_steps must be an int >= 1 or None, got {total_steps!r}")
    return steps


def as_step(value: float, total_steps: int | None, field: str) -> int:
    """A bound as a step: ints are steps, floats are fractions of ``total_steps``.

    Raises:
        ValueError: the value is negative, a fraction above 1, or a fraction of an unknown run length.

    Example:
        >>> as_step(0.75, 1000, "update_end"), as_step(750, None, "update_end")
        (750, 750)
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or not math.isfinite(value):
        raise ValueError(
            f"{field} must be a step (int >= 0) or a fraction of the run (float in [0, 1]), got {value!r}"
        )
    if isinstance(value, int):
        return value
    if value > 1:
        raise ValueError(
            f"{field}={value!r} is not a fraction of the run: write an int for steps, a float in [0, 1]"
        )
    if total_steps is None:
        raise LengthMissing(
            f"{field}={value!r} is a fraction of the run: give total_steps=, or {field} in steps (int)"
        )
    return round(value * total_steps)


@dataclass(frozen=True)
class Window:
    """The update steps of a method: multiples of ``interval`` in [begin, end).

    Example:
        >>> window = Window(begin=1, end=40, interval=10)
        >>> [step for step in range(60) if window.due(step)], window.first, window.last
        ([10, 20, 30], 10, 30)
    """

    begin: int
    end: int
    interval: int

    def due(self, step: int) -> bool:
        """Whether the topology changes after this step."""
        return self.begin <= step < self.end and step % self.interval == 0

    @property
    def first(self) -> int:
        """The first update step (it may lie at or past the end: then there is none)."""
        return -(-self.begin // self.interval) * self.interval

    @property
    def last(self) -> int:
        """The last update step; below ``first`` if there is none."""
        return (self.end - 1) // self.interval * self.interval

    def over(self, step: int) -> bool:
        """Whether no update is left at or after this step."""
        return step > self.last or self.last < self.first


def drop_fraction(kind: str, start: float, step: int, end: int) -> float:
    """The share of active weights that moves at an update: ``start`` at step 0, 0 at ``end`` (unless constant).

    "steps" halves it after three quarters of the way to ``end``.

    References:
        Evci et al. 2020, section 3 (cosine), https://arxiv.org/abs/1911.11134
        Yuan et al. 2021 (steps), https://arxiv.org/abs/2110.14032

    Example:
        >>> [round(drop_fraction("cosine", 0.3, step, 100), 3) for step in (0, 50, 100)]
        [0.3, 0.15, 0.0]
    """
    progress = min(step / end, 1.0) if end else 1.0
    if kind == "cosine":
        return start / 2 * (1 + math.cos(math.pi * progress))
    if kind == "linear":
        return start * (1 - progress)
    if kind == "steps":
        return start if progress < 0.75 else start / 2 if progress < 1 else 0.0
    return start


def cubic(start: float, final: float, progress: float) -> float:
    """Density of gradual pruning: from ``start`` (progress 0) to ``final`` (progress 1), fast first.

    References:
        Zhu and Gupta, To prune, or not to prune, 2017, section 3, https://arxiv.org/abs/1710.01878

    Example:
        >>> cubic(1.0, 0.1, 0.0), round(cubic(1.0, 0.1, 0.5), 4), cubic(1.0, 0.1, 1.0)
        (1.0, 0.2125, 0.1)
    """
    return final + (start - final) * (1 - min(max(progress, 0.0), 1.0)) ** 3
