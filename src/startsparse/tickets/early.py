"""Has a ticket settled? Early-bird detection over the masks that would be drawn at the end of each epoch."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from torch import Tensor

from ..masks import intersection, num_active
from ..methods.base import Views
from ..methods.iterative import EarlyBird


def changed(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """The share of a ticket's weights that another one of as many weights does not have, in [0, 1].

    Example:
        >>> import torch
        >>> changed({"w": torch.tensor([True, True, False])}, {"w": torch.tensor([True, False, True])})
        0.5
    """
    live = num_active(a)
    return 1 - num_active(intersection(a, b)) / live if live else 0.0


class Settling:
    """Keeps the last tickets and says when the newest agrees with all of them.

    Args:
        method: its window and tolerance.
        count: live weights of the ticket.
    """

    def __init__(self, method: EarlyBird, count: int):
        self._method, self._count = method, count
        self._last: deque[dict[str, Tensor]] = deque(maxlen=method.window)

    def add(self, views: Views) -> bool:
        """Draw a ticket from the weights as they are now; whether it has settled."""
        now = draw(self._method, views, self._count)
        agree = [changed(now, before) <= self._method.tolerance for before in self._last]
        self._last.append(now)
        return len(agree) == self._method.window and all(agree)


def draw(method: EarlyBird, views: Views, count: int) -> dict[str, Tensor]:
    """The masks after pruning to ``count`` live weights."""
    return pruned(views, method.update(views, 0, count, None))


def pruned(views: Views, changes: Mapping) -> dict[str, Tensor]:
    """The layers' masks after changes that only drop."""
    masks = {}
    for name, view in views.items():
        mask = view.mask.clone()  # type: ignore[attr-defined]
        mask.view(-1)[changes[name].dropped] = False
        masks[name] = mask
    return masks
