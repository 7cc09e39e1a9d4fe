"""Edge-popup and its kin: scores of every weight's own, ranked in each layer, over weights that stay."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..distributions import Distribution
from ..schedules import as_step, cubic
from .ranked import RankedSearch
from .search import Layers, Scored


@dataclass(frozen=True)
class EdgePopup(RankedSearch):
    """Strong lottery tickets: random scores, the highest absolute ones of each layer are active.

    Made for random weights that are never trained (signed constants do well), also inside a random sparse source.
    Meant for SGD with learning rate 0.1, momentum 0.9, weight decay 1e-4 or 5e-4 and a cosine schedule.

    References:
        Ramanujan et al., What's Hidden in a Randomly Weighted Neural Network?, CVPR 2020, section 3,
        https://arxiv.org/abs/1911.13299

    Fidelity:
        The rule of the authors' code. Its ``prune_rate`` is what is kept; here it is ``density``. The mask is renewed
        after every step, not in every forward pass; the initialisation of the frozen weights is the user's.

    Example:
        >>> EdgePopup(density=0.3).init, EdgePopup(density=0.3).classifier
        ('neutral', 'include')
    """

    distribution: Distribution = "uniform"
    init: str = "neutral"
    rank: str = "absolute"
    classifier: str = field(default="include", kw_only=True)

    name: ClassVar[str] = "edge-popup"
    paper: ClassVar[str] = "Ramanujan et al. 2020"
    summary: ClassVar[str] = "search random weights by random scores"


@dataclass(frozen=True)
class EdgePopupAnnealed(EdgePopup):
    """Edge-popup whose density falls in levels, geometrically, from ``start_density`` to ``density``.

    Args:
        start_density: density before the first level; a layer never holds more than its source.
        levels: densities on the way; the last one is ``density``.

    References:
        Gadhikar et al., Why Random Pruning Is All We Need to Start Sparse, ICML 2023 (strong tickets in random
        sparse nets), https://arxiv.org/abs/2210.02412
        Ramanujan et al., CVPR 2020, https://arxiv.org/abs/1911.13299

    Fidelity:
        The schedule of the authors' code; its levels restart the learning rate, which is the user's to do. Theirs
        leaves weights outside the source active by mistake.

    Example:
        >>> from .search import Scored
        >>> layer = Scored("w", torch.ones(10, 10), count=10)
        >>> popup = EdgePopupAnnealed(density=0.1, start_density=0.8, levels=3)
        >>> [popup.live(layer, step, 6) for step in range(7)]
        [40, 40, 20, 20, 10, 10, 10]
    """

    start_density: float = 0.6
    levels: int = 5

    name: ClassVar[str] = "edge-popup-annealed"
    paper: ClassVar[str] = "Gadhikar et al. 2023"
    summary: ClassVar[str] = "edge-popup with a density that falls in levels"

    def __post_init__(self):
        super().__post_init__()
        self._number("start_density", 0, 1, open_low=True)
        self._integer("levels", low=1)
        _refuse_groups(self)
        if self.start_density < self.density:
            raise ValueError(
                f"{self.name}: start_density {self.start_density:g} is below density {self.density:g}"
            )

    @property
    def scheduled(self) -> tuple[str, ...]:
        return (*super().scheduled, "start_density")

    def live(self, layer: Scored, step: int, total_steps: int | None) -> int:
        level = self.levels
        if total_steps:
            level = min(self.levels, step * self.levels // total_steps + 1)
        grown = layer.count * (self.start_density / self.density) ** (1 - level / self.levels)
        return max(layer.count, min(layer.capacity, round(grown)))


@dataclass(frozen=True)
class Hydra(RankedSearch):
    """HYDRA's search: scores proportional to the pre-trained weights, the highest absolute ones stay.

    Meant for SGD with learning rate 0.1, momentum 0.9, weight decay 1e-4, 20 epochs with a cosine schedule; the
    paper then tunes the weights that are left.

    References:
        Sehwag et al., HYDRA: Pruning Adversarially Robust Neural Networks, NeurIPS 2020, section 3,
        https://arxiv.org/abs/2002.10509

    Fidelity:
        The loss is the user's; the paper's is adversarial. All layers are searched, at one density.

    Example:
        >>> Hydra(density=0.1).init
        'proportional'
    """

    distribution: Distribution = "uniform"
    init: str = "proportional"
    rank: str = "absolute"
    classifier: str = field(default="include", kw_only=True)

    name: ClassVar[str] = "hydra"
    paper: ClassVar[str] = "Sehwag et al. 2020"
    summary: ClassVar[str] = "search from scores proportional to pre-trained weights"


@dataclass(frozen=True)
class MovementFrozen(RankedSearch):
    """Movement pruning over frozen weights: scores begin at zero, the density falls along a cubic curve.

    Args:
        update_begin, update_end: the density falls from all of the source at the one to ``density`` at the other, as
            steps or fractions of the run.

    References:
        Sanh et al., Movement Pruning: Adaptive Sparsity by Fine-Tuning, NeurIPS 2020, section 3,
        https://arxiv.org/abs/2005.07683

    Fidelity:
        The paper trains the weights as well; here they stay, and the scores' gradient is the same. It is meant for
        Adam with learning rate 1e-2. The two bounds are ours, of the order of the authors' warm-ups.

    Example:
        >>> from .search import Scored
        >>> layer = Scored("w", torch.ones(10, 10), count=10)
        >>> movement = MovementFrozen(density=0.1, update_begin=0, update_end=10)
        >>> [movement.live(layer, step, None) for step in (0, 5, 10)]
        [100, 21, 10]
    """

    distribution: Distribution = "uniform"
    init: str = "zero"
    update_begin: int | float = 0.1
    update_end: int | float = 0.7

    name: ClassVar[str] = "movement-frozen"
    paper: ClassVar[str] = "Sanh et al. 2020"
    summary: ClassVar[str] = "movement pruning's scores, weights kept as they are"

    def __post_init__(self):
        super().__post_init__()
        _refuse_groups(self)
        for key in ("update_begin", "update_end"):
            _ = as_step(getattr(self, key), 1, f"{self.name}: {key}")

    def check(self, layers: Layers, total_steps: int | None) -> None:
        super().check(layers, total_steps)
        first, last = self.bounds(total_steps)
        if last <= first:
            raise ValueError(
                f"{self.name}: update_end={self.update_end!r} (step {last}) is not after "
                f"update_begin={self.update_begin!r} (step {first})"
            )

    def bounds(self, total_steps: int | None) -> tuple[int, int]:
        """The steps between which the density falls."""
        return (
            as_step(self.update_begin, total_steps, "update_begin"),
            as_step(self.update_end, total_steps, "update_end"),
        )

    def live(self, layer: Scored, step: int, total_steps: int | None) -> int:
        first, last = self.bounds(total_steps)
        done = min(max((step - first) / (last - first), 0.0), 1.0)
        return round(cubic(layer.capacity, layer.count, done))


@dataclass(frozen=True)
class Biprop(EdgePopup):
    """Multi-prize tickets: edge-popup over signs; a layer's active weights all have one magnitude.

    The layer computes with ``alpha * sign(weight)`` on the mask, ``alpha`` the mean magnitude of the active weights:
    one bit a weight and one number a layer. The weights themselves stay as they are.

    References:
        Diffenderfer and Kailkhura, Multi-Prize Lottery Ticket Hypothesis, ICLR 2021, section 3,
        https://arxiv.org/abs/2103.09377

    Fidelity:
        The authors' code with 32-bit activations. Its slow start of the density for global ranking is left out.

    Example:
        >>> Biprop(density=0.5).soft
        True
    """

    name: ClassVar[str] = "biprop"
    paper: ClassVar[str] = "Diffenderfer and Kailkhura 2021"
    summary: ClassVar[str] = "edge-popup over the signs of the weights"
    soft: ClassVar[bool] = True

    def values(self, layer: Scored, step: int, total_steps: int | None) -> Tensor:
        magnitude = layer.weight.abs()[layer.mask]
        alpha = magnitude.mean() if magnitude.numel() else magnitude.sum()
        return torch.where(layer.mask, layer.weight.sign() * alpha, 0)

    def final_values(self, layer: Scored) -> Tensor:
        return self.values(layer, 0, None)


def _refuse_groups(method: RankedSearch) -> None:
    if method.scope not in ("layer", "global"):
        raise ValueError(
            f"{method.name}: a density that falls over time needs scope 'layer' or 'global', got {method.scope!r}"
        )
