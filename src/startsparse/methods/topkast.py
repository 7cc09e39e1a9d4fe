"""Top-KAST: the largest weights live, a wider set of them is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ..distributions import whole
from ..schedules import Window, as_step
from ..selection import top_k
from .base import Change, Changes, Method, Start, Views, layer_counts
from .checks import in_range, refuse_frozen
from .hidden import REACHED, WHY_MASKED, change_to, live_masks, magnitudes


@dataclass(frozen=True)
class TopKAST(Method):
    """Top-KAST: the forward pass uses the largest weights of each layer, the backward pass reaches some more.

    All weights keep their values. Those in the wider set are trained though they are zero in the net, and one that
    grows large enough takes the place of a live one at the next update; the others rest. No dense gradient is ranked.

    Args:
        backward_density: live and reached weights over all weights of the sparse layers, in [``density``, 1].
        exploration: strength of the L2 pull, over the density, on reached weights that are not live, which makes
            them earn their place; 0: none. Live weights have the optimizer's own weight decay.
        update_interval: steps from one choice of the live and the reached weights to the next.
        update_begin, update_end: updates happen at steps begin <= t < end, as steps or fractions.

    References:
        Jayakumar et al., Top-KAST: Top-K Always Sparse Training, NeurIPS 2020, section 2,
        https://arxiv.org/abs/2106.03517

    Fidelity:
        The rule of the paper. The L2 regulariser of live weights is left to the optimizer (``weight_decay``), which
        sees the reached ones too. The backward pass is masked-dense here, and what it would save is not measured.

    Example:
        >>> TopKAST(density=0.1, backward_density=0.3).due(100, 1000)
        True
    """

    backward_density: float = 0.5
    exploration: float = 1e-4
    update_interval: int = 10
    update_begin: int | float = 1
    update_end: int | float = 1.0

    name: ClassVar[str] = "topkast"
    paper: ClassVar[str] = "Jayakumar et al. 2020"
    summary: ClassVar[str] = "the largest weights live, a wider set is trained"
    grown_state: ClassVar[str] = "keep"
    hides: ClassVar[bool] = True
    masked_only: ClassVar[str] = WHY_MASKED

    def __post_init__(self):
        super().__post_init__()
        in_range(self, "backward_density", low=self.density)
        in_range(self, "exploration", high=math.inf)
        self._integer("update_interval", low=1)
        for field in ("update_begin", "update_end"):
            _ = as_step(getattr(self, field), 1, f"{self.name}: {field}")

    def check(self, views: Views, total_steps: int | None) -> None:
        refuse_frozen(self, views, "chooses the live weights anew during training")
        _ = self.window(total_steps), layer_counts(self.distribution, views, self.density)

    def start(self, views: Views) -> dict[str, Start]:
        return {name: Start() for name in views}

    def window(self, total_steps: int | None) -> Window:
        """The update steps of a run."""
        begin = as_step(self.update_begin, total_steps, "update_begin")
        return Window(begin, as_step(self.update_end, total_steps, "update_end"), self.update_interval)

    def due(self, step: int, total_steps: int | None) -> bool:
        return step == -1 or self.window(total_steps).due(step)

    def target(self, step: int, total: int, start_count: int, total_steps: int | None) -> int:
        return round(self.density * total)

    def phase(self, step: int, total_steps: int | None) -> str:
        return "fixed" if self.window(total_steps).over(step) else "exploring"

    def hidden_pull(self, step: int) -> float:
        return self.exploration / self.density

    def update(self, views: Views, step: int, target: int, total_steps: int | None) -> Changes:
        forward = layer_counts(self.distribution, views, self.density)
        backward = self._backward(views, forward)
        masks = live_masks(views)
        changes: dict[str, Change] = {}
        for name, view in views.items():
            score = magnitudes(view)
            live = top_k(score, forward[name], prefer=masks[name], what=name)
            wide = top_k(score, backward[name], prefer=live, what=name)
            changes[name] = change_to(view, live, {REACHED: (wide & ~live).nonzero().squeeze(1)})
        return changes

    def _backward(self, views: Views, forward: Mapping[str, int]) -> dict[str, int]:
        """Live and reached weights of each layer: every layer reaches the same share of what it does not hold."""
        room = {name: view.capacity - forward[name] for name, view in views.items()}
        wanted = round(self.backward_density * sum(math.prod(view.shape) for view in views.values()))
        more = min(max(0, wanted - sum(forward.values())), sum(room.values()))
        share = more / max(sum(room.values()), 1)
        extra = whole({name: share * number for name, number in room.items()}, more, room)
        return {name: forward[name] + extra[name] for name in views}
