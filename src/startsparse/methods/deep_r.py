"""Deep rewiring: a weight that would change its sign goes, and another grows anywhere in the net."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..draw import Permutation
from ..schedules import Window, as_step
from .base import Change, Changes, Views
from .drop_grow import moved
from .static import RandomStart
from .view import LayerView

SIGNS = "signs"


@dataclass(frozen=True)
class DeepR(RandomStart):
    """Deep rewiring: every live weight has a sign of its own; one that crosses zero is dropped, and as many grow
    uniformly at random over the inactive positions of the whole net, at zero and with random signs.

    Args:
        update_interval: steps from one update to the next.
        update_begin, update_end: updates happen at steps begin <= t < end, as steps or fractions.

    References:
        Bellec et al., Deep Rewiring: Training Very Sparse Deep Networks, ICLR 2018, algorithm 1,
        https://arxiv.org/abs/1711.05136

    Fidelity:
        The rule of connections alone. The paper's step also has an L1 pull and Gaussian noise on live weights, which
        make more of them cross zero: add the pull to the loss; the noise is not built. A new weight starts at zero
        (theirs: 1e-12), so one without a gradient stays. The first update only notes the signs.

    Example:
        >>> DeepR(density=0.1).due(7, 100)
        True
    """

    update_interval: int = 1
    update_begin: int | float = 0
    update_end: int | float = 1.0

    name: ClassVar[str] = "deepr"
    paper: ClassVar[str] = "Bellec et al. 2018"
    summary: ClassVar[str] = "drop what changes its sign, grow anywhere at random"
    grows: ClassVar[bool] = True
    moves_across_layers: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        self._integer("update_interval", low=1)
        for field in ("update_begin", "update_end"):
            _ = as_step(getattr(self, field), 1, f"{self.name}: {field}")

    def check(self, views: Views, total_steps: int | None) -> None:
        _ = self.window(total_steps)

    def window(self, total_steps: int | None) -> Window:
        """The update steps of a run."""
        begin = as_step(self.update_begin, total_steps, "update_begin")
        return Window(begin, as_step(self.update_end, total_steps, "update_end"), self.update_interval)

    def due(self, step: int, total_steps: int | None) -> bool:
        return self.window(total_steps).due(step)

    def phase(self, step: int, total_steps: int | None) -> str:
        return "fixed" if self.window(total_steps).over(step) else "exploring"

    def update(self, views: Views, step: int, target: int, total_steps: int | None) -> Changes:
        moving = {name: view for name, view in views.items() if not view.frozen}
        stays = {name: _stays(view) for name, view in moving.items()}
        dropped = {name: view.active_positions()[~stays[name]] for name, view in moving.items()}
        counts = self._counts(moving, dropped, step)
        changes = {}
        for name, view in moving.items():
            grown = view.grow_at_random(counts[name], dropped[name], self.seed, step)
            change = moved(view, dropped[name], grown)
            changes[name] = Change(
                change.dropped, change.grown, {SIGNS: self._signs(view, stays[name], grown, step)}
            )
        return changes

    def _counts(self, views: Views, dropped: dict[str, Tensor], step: int) -> dict[str, int]:
        """How many of uniformly drawn inactive positions of the net lie in each layer."""
        room = np.cumsum([view.num_growable(dropped[name]) for name, view in views.items()])
        count = sum(map(len, dropped.values()))
        if not count:
            return dict.fromkeys(views, 0)
        drawn = Permutation(int(room[-1]), f"rewire:{step}", self.seed, "all").positions(0, count)
        layers = np.searchsorted(room, drawn, side="right")
        return {name: int((layers == index).sum()) for index, name in enumerate(views)}

    def _signs(self, view: LayerView, stays: Tensor, grown: Tensor, step: int) -> Tensor:
        """Signs of the weights that will be live, int8, in rising position: as they were, of new ones drawn."""
        active = view.active_positions()[stays]
        order = Permutation(int(torch.Size(view.shape).numel()), f"sign:{step}", self.seed, view.name)
        drawn = 1 - 2 * (torch.from_numpy(order.ranks(grown.cpu().numpy())) % 2).to(torch.int8)
        positions, signs = (
            torch.cat([active, grown]),
            torch.cat([_signs_now(view)[stays], drawn.to(active.device)]),
        )
        return signs[positions.argsort()]


def _signs_now(view: LayerView) -> Tensor:
    """The sign that each live weight has to keep."""
    known = view.memory.get(SIGNS)
    weights = view.active_weights()
    return torch.where(weights < 0, -1, 1).to(torch.int8) if known is None else known.to(weights.device)


def _stays(view: LayerView) -> Tensor:
    return view.active_weights() * _signs_now(view) >= 0
