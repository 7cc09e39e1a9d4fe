"""What a method sees of a layer: its live weights and where new ones may grow, whoever holds them.

A method never touches a module. It asks a ``LayerView`` for live values (1-D, in rising position, the row-major index
into the weight) and for candidates, and answers with a ``Change``. Masked and sparse execution each have a view;
``DenseView`` is the reference over plain tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ..criteria import exact
from ..criteria import gradient as gradient_score
from ..draw import Permutation
from ..layers import ORDINARY, Geometry
from ..masks import chosen, in_common
from ..selection import top_k

SCALE = (
    "scale of the gradient"  # the memory that holds what a gradient scaler multiplied the dense gradient by
)


def scale_of(view: LayerView) -> float:
    """What the gradients of a view are multiplied by: for methods that set them against something else."""
    return float(view.memory.get(SCALE, 1.0))


@dataclass(frozen=True)
class Change:
    """A topology event of one layer: positions that were live and are not, and the other way round.

    Args:
        dropped, grown: int64 positions, rising, shapes (num_dropped,) and (num_grown,). A position that is dropped
            and grown again in one update is in neither: it keeps its value and state.
        memory: what the method wants to find in ``view.memory`` at its next update, by name: tensors of any shape,
            saved with the sparsifier's state. None leaves it as it is.
        returned: how many positions were dropped and grown again.
    """

    dropped: Tensor
    grown: Tensor
    memory: Mapping[str, Tensor] | None = None
    returned: int = 0


class LayerView(Protocol):
    """One layer as a method sees it. All positions are int64 row-major indices, rising."""

    name: str
    shape: tuple[int, ...]
    capacity: int  # positions of the source: the most weights that can ever live here
    frozen: bool  # never changes after its first mask
    geometry: Geometry
    source: Tensor | None  # flat bool of the positions that may live; None: all
    memory: Mapping[str, Tensor]  # what the method's last change left here

    @property
    def num_active(self) -> int: ...

    def active_positions(self) -> Tensor:
        """Where weights live, (num_active,)."""
        ...

    def left_out(self, kept: Tensor) -> Tensor:
        """Active positions where ``kept``, bool (num_active,), is False."""
        ...

    def active_weights(self) -> Tensor:
        """Values of the live weights, (num_active,)."""
        ...

    def active_gradients(self) -> Tensor:
        """Gradient of the live weights, (num_active,); zeros if none arrived."""
        ...

    def gradients_at(self, positions: Tensor) -> Tensor:
        """The dense gradient at some positions, in float32 or better; zeros if none arrived."""
        ...

    def num_growable(self, returning: Tensor) -> int:
        """How many positions could grow: inactive ones of the source, and ``returning`` (just dropped)."""
        ...

    def grow_by_gradient(self, count: int, returning: Tensor) -> Tensor:
        """The ``count`` growable positions of highest abs(dense gradient); ties to the lower index."""
        ...

    def candidates(self, count: int, returning: Tensor) -> tuple[Tensor, Tensor]:
        """What ``grow_by_gradient`` would grow, and its scores in float32 or better; all, where fewer can grow."""
        ...

    def apart(self, dropped: Tensor, grown: Tensor) -> tuple[Tensor, Tensor]:
        """The positions that only drop, and those that only grow."""
        ...

    def grow_at_random(self, count: int, returning: Tensor, seed: int, step: int) -> Tensor:
        """``count`` growable positions drawn uniformly: a pure function of (seed, step, layer name)."""
        ...


@dataclass
class DenseView:
    """The reference view: a dense weight, its mask, its source and its dense gradient.

    Args:
        weight: any shape.
        mask: bool, the weight's shape.
        source: flat bool, or None for all positions.
        gradient: dense gradient of the weight's shape, or None if no gradient arrived.

    Example:
        >>> view = DenseView("w", torch.tensor([3.0, 0.0, -1.0]), torch.tensor([True, False, True]))
        >>> view.active_positions(), view.active_weights()
        (tensor([0, 2]), tensor([ 3., -1.]))
    """

    name: str
    weight: Tensor
    mask: Tensor
    source: Tensor | None = None
    gradient: Tensor | None = None
    frozen: bool = False
    geometry: Geometry = ORDINARY
    memory: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self):
        self.shape = tuple(self.weight.shape)
        self.capacity = self.weight.numel() if self.source is None else int(self.source.count_nonzero())

    @property
    def num_active(self) -> int:
        return int(self.mask.count_nonzero())

    def active_positions(self) -> Tensor:
        return self.mask.reshape(-1).nonzero().squeeze(1)

    def left_out(self, kept: Tensor) -> Tensor:
        return chosen(self.active_positions(), ~kept)

    def active_weights(self) -> Tensor:
        return self.weight.detach()[self.mask]

    def active_gradients(self) -> Tensor:
        return torch.zeros_like(self.active_weights()) if self.gradient is None else self.gradient[self.mask]

    def gradients_at(self, positions: Tensor) -> Tensor:
        if self.gradient is None:
            return torch.zeros(len(positions), device=positions.device)
        return exact(self.gradient.reshape(-1)[positions])

    def num_growable(self, returning: Tensor) -> int:
        return self.capacity - self.num_active + len(returning)

    def grow_by_gradient(self, count: int, returning: Tensor) -> Tensor:
        return self._highest(count, returning)[0]

    def candidates(self, count: int, returning: Tensor) -> tuple[Tensor, Tensor]:
        return self._highest(min(count, self.num_growable(returning)), returning)

    def _highest(self, count: int, returning: Tensor) -> tuple[Tensor, Tensor]:
        growable = self._growable(returning)
        if self.gradient is None:
            positions = growable.nonzero().squeeze(1)[:count]
            return positions, torch.zeros(len(positions), device=positions.device)
        score = gradient_score(self.gradient).reshape(-1).masked_fill(~growable, -torch.inf)
        positions = top_k(score, count, what=self.name).nonzero().squeeze(1)
        return positions, score[positions]

    def apart(self, dropped: Tensor, grown: Tensor) -> tuple[Tensor, Tensor]:
        again, returned = in_common(dropped, grown)
        return chosen(dropped, ~again), chosen(grown, ~returned)

    def grow_at_random(self, count: int, returning: Tensor, seed: int, step: int) -> Tensor:
        order = Permutation(self.weight.numel(), f"grow:{step}", seed, self.name)
        growable = self._growable(returning).cpu().numpy()
        return torch.from_numpy(order.first_where(lambda at: growable[at], count)).to(self.mask.device)

    def _growable(self, returning: Tensor) -> Tensor:
        growable = ~self.mask.reshape(-1)
        if self.source is not None:
            growable &= self.source
        growable[returning] = True
        return growable
