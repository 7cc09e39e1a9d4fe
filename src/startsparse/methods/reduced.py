"""A layer whose dense gradient is gone: what growth needs of it was kept when it arrived."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..criteria import exact
from ..criteria import gradient as gradient_score
from ..masks import is_among
from ..selection import top_k
from .view import DenseView

_PART = 1 << 20  # positions looked at in one piece


@dataclass(frozen=True)
class Growth:
    """The most that an update can grow by gradient: what a dense gradient may be reduced to.

    Args:
        most: layer name -> the most positions that can grow there.
        total: the most of all layers together, of which only gradients above zero count; None: each layer for itself,
            and zeros are as good as any.
    """

    most: Mapping[str, int]
    total: int | None = None


@dataclass
class Candidates:
    """What is left of a layer's dense gradient.

    Attributes:
        positions: inactive ones of its source, int64, rising: the best of them, ties to the lower index.
        scores: abs(gradient) there, in float32 or better.
        live: gradient of the live weights, in rising position.
        cut: whether inactive positions of a gradient above zero are missing.
        finite: whether all of the gradient was; if not, nothing else is there.
    """

    positions: Tensor
    scores: Tensor
    live: Tensor
    cut: bool = False
    finite: bool = True

    def spread(self, mask: Tensor) -> Tensor:
        """A gradient of the mask's shape that is ranked alike, up to signs: zero where nothing was kept."""
        if not self.finite:
            return torch.full(mask.shape, torch.nan, dtype=self.live.dtype, device=mask.device)
        whole = self.scores.new_zeros(mask.shape)
        whole.view(-1)[mask.reshape(-1).nonzero().squeeze(1)] = self.live.to(whole.dtype)
        whole.view(-1)[self.positions] = self.scores
        return whole


class ReducedView(DenseView):
    """A ``DenseView`` that knows candidates in place of a gradient; as long as no more is asked for than was announced
    by ``Growth`` it answers as if it had the gradient.

    Example:
        >>> weight, mask = torch.tensor([3.0, -1.0, 0.0, 0.0, 0.0]), torch.tensor([1, 1, 0, 0, 0]).bool()
        >>> kept = Candidates(torch.tensor([3]), torch.tensor([7.0]), torch.tensor([0.5, -8.0]), cut=True)
        >>> view = ReducedView("w", weight, mask)
        >>> view.kept = kept
        >>> view.grow_by_gradient(1, returning=torch.tensor([1]))
        tensor([1])
    """

    kept: Candidates

    def active_gradients(self) -> Tensor:
        return self.kept.live

    def gradients_at(self, positions: Tensor) -> Tensor:
        return exact(self.kept.live[torch.searchsorted(self.active_positions(), positions)])

    def _highest(self, count: int, returning: Tensor) -> tuple[Tensor, Tensor]:
        positions, scores = self.kept.positions, self.kept.scores
        if len(returning):
            back = gradient_score(self.gradients_at(returning))
            positions, order = torch.cat([positions, returning]).sort()
            scores = torch.cat([scores, back])[order]
        asked = scores > 0
        if (
            not self.kept.cut and (missing := count - int(asked.count_nonzero())) > 0
        ):  # zeros: the lowest of all
            positions, scores = positions[asked], scores[asked]
            rest = self._lowest(missing, positions, returning)
            positions, order = torch.cat([positions, rest]).sort()
            scores = torch.cat([scores, scores.new_zeros(len(rest))])[order]
        if len(positions) <= count:
            return positions, scores
        best = top_k(scores, count, what=self.name)
        return positions[best], scores[best]

    def _lowest(self, count: int, besides: Tensor, returning: Tensor) -> Tensor:
        """The ``count`` lowest growable positions that are not among others."""
        growable, found = self._growable(returning), []
        for start in range(0, growable.numel(), _PART):
            part = growable[start : start + _PART].nonzero().squeeze(1) + start
            found.append(part[~is_among(part, besides)][:count])
            count -= len(found[-1])
            if count == 0:
                break
        return torch.cat(found) if found else besides[:0]
