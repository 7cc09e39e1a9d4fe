"""Optimizers that train attached weights although ``attach`` was not given them: their steps are not on the clock."""

from __future__ import annotations

import warnings
import weakref
from typing import TYPE_CHECKING

from torch.optim import Optimizer

if TYPE_CHECKING:
    from ..sparsifier import Sparsifier

_PATIENCE = (
    10  # steps in a row: optimizers that wrap the attached one, or are wrapped by it, step in turn with it
)


class Strangers:
    """Listens to all optimizers, and says once when one that is not attached does the training.

    Args:
        sparsifier: whose clock stands still meanwhile; not kept alive.
        optimizers: those it knows.
    """

    def __init__(self, sparsifier: Sparsifier, optimizers: list[Optimizer]):
        self._sparsifier = weakref.ref(sparsifier)
        self._known = weakref.WeakSet(optimizers)
        self._steps, self._at = 0, 0  # of strangers, since the clock showed this

    def before(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        """The step pre-hook."""

    def after(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        """The step post-hook."""
        sparsifier = self._sparsifier()
        if sparsifier is None or self._steps == _PATIENCE or optimizer in self._known:
            return
        if sparsifier.step != self._at:
            self._steps, self._at = 0, sparsifier.step
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        trained = [name for name, site in sparsifier._sites.items() if id(site.parameter) in held]
        if not trained:
            self._known.add(optimizer)
            return
        self._steps += 1
        if self._steps == _PATIENCE:
            warnings.warn(
                f"another optimizer than those given to attach() has made {_PATIENCE} steps over {', '.join(trained)}: "
                f"{sparsifier.method.name} does not see them, its masks stay as they are. Attach the optimizer that "
                "trains (detach() the sparsifier first)",
                stacklevel=4,
            )
