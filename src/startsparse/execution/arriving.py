"""Dense gradients reduced to candidates as they arrive, so that a step never holds more than one of them.

Only where a step's gradient arrives whole: one micro-batch, one process, a window of one step.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from ..criteria import gradient as gradient_score
from ..methods.reduced import Candidates, Growth
from ..selection import top_k, top_k_across

_PART = 1 << 18  # positions looked at in one piece
_ONE_AT_A_TIME = threading.Lock()  # the layers of several devices get their gradients from as many threads


class Arriving:
    """The candidates of one step: the best inactive positions of each layer, or of all of them together.

    All layers together: never more than about twice ``growth.total`` are kept. A position that is not among the best
    of the layers seen so far is not among the best of all, so nothing is lost.

    Args:
        growth: the most that the step's update can grow.

    Attributes:
        spoilt: why the candidates are not those of the step's gradient, if they are not.
    """

    def __init__(self, growth: Growth):
        self._growth = growth
        self._found: dict[str, Candidates] = {}
        self._passes: dict[str, int] = {}  # the backward pass that each is of
        self._bar = 0.0  # the lowest score that is kept once there are enough
        self.spoilt = ""

    def of(self, name: str) -> Candidates | None:
        """A layer's candidates; None if no gradient arrived there."""
        return self._found.get(name)

    def take(self, name: str, gradient: Tensor, mask: Tensor, source: Tensor | None, begins: bool) -> None:
        """Reduce a layer's gradient.

        Args:
            name: of the layer.
            gradient: dense, of the weight's shape.
            mask: flat bool, where weights live.
            source: flat bool, where they may, or None for everywhere.
            begins: whether nothing was accumulated before it; it then replaces what arrived at a step that was skipped.
        """
        with _ONE_AT_A_TIME:
            if name in self._found and not self._again(name, begins):
                return
            flat = gradient.reshape(-1)
            found = self._reduce(name, flat, mask, source)
            found.live = flat[mask.nonzero().squeeze(1)]
            self._found[name] = found
            self._passes[name] = torch._C._current_graph_task_id()
            if self._growth.total is not None:
                self._trim(self._growth.total)

    def _again(self, name: str, begins: bool) -> bool:
        """A layer's gradient arrives once more; whether it is the first of a step that is tried again."""
        now = torch._C._current_graph_task_id()
        if not begins:
            self.spoilt = (
                f"a second gradient of {name} was added to the first, after steps of one backward pass"
            )
        elif now in self._passes.values():
            self.spoilt = f"{name} had no gradient in this step's first try"
        else:
            self._found, self._passes, self._bar = {}, {}, 0.0
        return not self.spoilt

    def _reduce(self, name: str, flat: Tensor, mask: Tensor, source: Tensor | None) -> Candidates:
        """The best inactive positions of a layer, a piece at a time."""
        count, together = self._growth.most.get(name, 0), self._growth.total is not None
        best = Candidates(*_none(flat))
        least, positive, finite = (_below(self._bar, best.scores.dtype) if together else -1.0), 0, True
        for start in range(0, flat.numel(), _PART):
            score = gradient_score(flat[start : start + _PART])
            finite = finite and (bool(score.sum().isfinite()) or bool(score.isfinite().all()))
            if not finite:
                break
            free = ~mask[start : start + _PART]
            if source is not None:
                free &= source[start : start + _PART]
            if together:
                positive += int((free & (score > 0)).count_nonzero())
            at = (free & (score > least)).nonzero().squeeze(1)
            best.positions = torch.cat([best.positions, at + start])
            best.scores = torch.cat([best.scores, score[at]])
            if len(best.positions) > 2 * count:
                _cut(best, count, name)
                least = max(least, float(best.scores.min())) if count else torch.inf
        if not finite:
            return Candidates(*_none(flat), finite=False)
        if len(best.positions) > count:
            _cut(best, count, name)
        best.cut = positive > len(best.positions)
        return best

    def _trim(self, total: int) -> None:
        """Keep the highest ``total`` of all layers; ties go to the name that sorts first."""
        if sum(len(found.scores) for found in self._found.values()) <= 2 * total or not total:
            return
        names = sorted(self._found)
        taken = top_k_across({name: self._found[name].scores for name in names}, total)
        for name in names:
            found, kept = self._found[name], taken[name]
            found.cut |= not bool(kept.all())
            found.positions, found.scores = found.positions[kept], found.scores[kept]
        self._bar = min(float(found.scores.min()) for found in self._found.values() if len(found.scores))


def _none(flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    positions = torch.empty(0, dtype=torch.int64, device=flat.device)
    return positions, gradient_score(flat[:0]), flat[:0]


def _below(bar: float, dtype: torch.dtype) -> float:
    """What candidates must lie above: those at the bar are let pass, since names decide between them."""
    return float(torch.nextafter(torch.tensor(bar, dtype=dtype), torch.tensor(0.0, dtype=dtype)))


def _cut(best: Candidates, count: int, name: str) -> None:
    kept = top_k(best.scores, count, what=name)
    best.positions, best.scores = best.positions[kept], best.scores[kept]
