"""Tickets by repeated training and pruning: iterative magnitude pruning with rewinding, and its early-bird kin."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..criteria import magnitude, saliency
from .base import Changes, Views, prune_to
from .prune import Prune

REWINDS = ("weights", "lr", "none")
CRITERIA = ("magnitude", "obd")
USUAL_FRACTION = 0.2  # of the remaining weights, pruned a level where nothing else is said


@dataclass(frozen=True)
class IMP(Prune):
    """Iterative magnitude pruning: train, prune the smallest weights, rewind the others, train again; in levels.

    Level 0 trains all of the source, each further level what is left. Not for ``attach`` but for ``ss.lottery``.

    Args:
        distribution: "global" ranks all layers together; a rule or mapping prunes layer by layer, each going the same
            share of its way to its final count.
        levels: prunings from all of the source down to ``density``, each of the same share of what remains; 1 is
            one-shot. Default: the fewest that prune at most a fifth each.
        prune_fraction: the share of the remaining weights that each level prunes, instead of ``levels``; its steps
            must meet ``density``.
        rewind: "weights" (back to those of ``rewind_step``), "lr" (weights are kept, the learning rate's schedule
            begins again) or "none" (weights are kept and fine-tuned). The schedule itself is the loop's:
            ``level.start_step`` says where it goes on.
        rewind_step: the optimizer step of level 0 whose weights each later level begins with; 0 is initialisation.
        criterion: "magnitude", or "obd" (half the squared weight times the running mean of its squared gradient).

    References:
        Frankle and Carbin, The Lottery Ticket Hypothesis, ICLR 2019, https://arxiv.org/abs/1803.03635
        Frankle et al., Stabilizing the Lottery Ticket Hypothesis (late rewinding), https://arxiv.org/abs/1903.01611
        Renda et al., Comparing Rewinding and Fine-tuning, ICLR 2020, https://arxiv.org/abs/2003.02389

    Fidelity:
        Counts are exact; the published codes prune all ties of a threshold. The first code prunes the output layer at
        half the rate: give it a density of its own (``distribution={"fc3": ...}``) for that. Optimizers begin anew
        at each level.

    Example:
        >>> IMP(density=0.5).counts(total=1000, start_count=1000)
        [1000, 841, 707, 595, 500]
        >>> IMP(density=0.05, levels=1).counts(1000, 300)
        [300, 50]
    """

    levels: int | None = None
    prune_fraction: float | None = None
    rewind: str = "weights"
    rewind_step: int = 0
    criterion: str = "magnitude"

    name: ClassVar[str] = "imp"
    paper: ClassVar[str] = "Frankle and Carbin 2019"
    summary: ClassVar[str] = "train, prune the smallest, rewind, repeat"
    kind: ClassVar[str] = "lottery"

    def __post_init__(self):
        super().__post_init__()
        self._one_of("rewind", REWINDS)
        self._one_of("criterion", CRITERIA)
        self._integer("rewind_step", low=0)
        if self.levels is not None:
            self._integer("levels", low=1)
        share = self.prune_fraction
        if share is not None and (
            isinstance(share, bool) or not isinstance(share, float) or not 0 < share < 1
        ):
            raise ValueError(f"{self.name}: prune_fraction must be in (0, 1), got {share!r}")
        if share is not None and self.levels is not None:
            raise ValueError(
                f"{self.name}: give levels={self.levels} or prune_fraction={share:g}, one follows from the other"
            )
        if self.rewind != "weights" and self.rewind_step:
            raise ValueError(
                f"{self.name}: rewind={self.rewind!r} keeps the weights, so rewind_step={self.rewind_step} means "
                "nothing: use rewind='weights'"
            )

    def check(self, views: Views, total_steps: int | None) -> None:
        raise ValueError(
            f"{self.name} trains in levels and cannot be attached to one run: use "
            f"`for level in ss.lottery(model, {type(self).__name__}(...))`"
        )

    def counts(self, total: int, start_count: int) -> list[int]:
        """Live weights of each level, level 0 first.

        Args:
            total: weights of the sparse layers.
            start_count: those of level 0: the positions of the source.

        Raises:
            ValueError: ``density`` is more than the source holds, its levels jump over it, or prune nothing.
        """
        final = round(self.density * total)
        if final > start_count:
            raise ValueError(
                f"{self.name}: density {self.density:g} asks for {final} weights, but the source holds only "
                f"{start_count}: lower the density or enlarge the source"
            )
        if final == start_count:
            return [start_count]
        if final == 0:
            raise ValueError(
                f"{self.name}: density {self.density:g} of {total} weights is not one weight: raise the density"
            )
        levels = self._num_levels(final, start_count, total)
        keep = (final / start_count) ** (1 / levels)
        counts = [round(start_count * keep**level) for level in range(levels)] + [final]
        if any(after >= before for before, after in itertools.pairwise(counts)):
            raise ValueError(
                f"{self.name}: {levels} levels from {start_count} to {final} weights prune nothing at some: ask for "
                "fewer levels"
            )
        return counts

    def _num_levels(self, final: int, start_count: int, total: int) -> int:
        if self.levels is not None:
            return self.levels
        needed = math.log(final / start_count) / math.log(1 - (self.prune_fraction or USUAL_FRACTION))
        if self.prune_fraction is None:
            return max(1, math.ceil(needed - 1e-9))
        nearest = max(1, round(needed))
        if abs(start_count * (1 - self.prune_fraction) ** nearest - final) > max(0.5, 0.01 * final):
            around = [start_count / total * (1 - self.prune_fraction) ** n for n in _around(needed)]
            raise ValueError(
                f"{self.name}: levels of prune_fraction={self.prune_fraction:g} jump over density {self.density:g}, from "
                f"{around[0]:.4g} to {around[1]:.4g}: ask for one of these, or for levels={math.ceil(needed)} instead "
                "of prune_fraction"
            )
        return nearest

    def update(self, views: Views, step: int, target: int, total_steps: int | None) -> Changes:
        """What is pruned after level ``step``."""
        return prune_to(views, self.scores(views), target, self)

    def scores(self, views: Views) -> dict[str, Tensor]:
        """Score of each live weight, name -> (num_active,); under "obd" the views' gradients are root mean squares."""
        if self.criterion == "magnitude":
            return {name: magnitude(view.active_weights()) for name, view in views.items()}
        return {
            name: saliency(view.active_weights(), view.active_gradients()) for name, view in views.items()
        }


def _around(needed: float) -> tuple[int, int]:
    return math.floor(needed), math.floor(needed) + 1


@dataclass(frozen=True)
class EarlyBird(IMP):
    """One-shot pruning that need not wait for the end of training: the ticket is drawn once it has settled.

    In level 0 the loop asks ``level.settled()`` once an epoch and stops when it says so.

    Args:
        window: how many tickets in a row must agree with the newest one.
        tolerance: share of a ticket's weights in which two tickets may differ and still agree.

    References:
        You et al., Drawing Early-Bird Tickets, ICLR 2020, https://arxiv.org/abs/1909.11957

    Fidelity:
        The paper prunes channels by their batch-norm factors and measures the share of differing bits of the masks;
        here single weights are pruned by magnitude, and the difference is of the weights of a ticket: the same number
        at density 0.5, and still a measure at 0.05, where any two masks share nine tenths of their bits.

    Example:
        >>> EarlyBird(density=0.5).counts(1000, 1000)
        [1000, 500]
    """

    levels: int | None = 1
    rewind: str = "none"
    window: int = 4
    tolerance: float = 0.1

    name: ClassVar[str] = "early-bird"
    paper: ClassVar[str] = "You et al. 2020"
    summary: ClassVar[str] = "draw the ticket as soon as it settles"

    def __post_init__(self):
        super().__post_init__()
        self._integer("window", low=1)
        if isinstance(self.tolerance, bool) or not 0 <= self.tolerance < 1:
            raise ValueError(f"{self.name}: tolerance must be in [0, 1), got {self.tolerance!r}")
