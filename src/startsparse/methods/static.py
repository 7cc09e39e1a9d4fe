"""Random masks that never change: pruning at random, with good layer-wise ratios."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..draw import Drawn
from ..flow import POLICIES, preserve
from .base import Method, Start, Views, layer_counts

DRAWS = ("exact", "bernoulli")


@dataclass(frozen=True)
class RandomStart(Method):
    """A method whose first mask is drawn at random inside the source.

    Args:
        draw: "exact" (each layer's count to the weight) or "bernoulli" (each weight for itself: the theory's
            Erdos-Renyi net, whose count is the one it drew).
        flow: "none", "add" or "keep_budget": repair units that have no input or output weight left, and whether
            as many other weights are given up for it. See ``startsparse.flow``.
    """

    draw: str = "exact"
    flow: str = "none"

    def __post_init__(self):
        super().__post_init__()
        self._one_of("draw", DRAWS)
        self._one_of("flow", POLICIES)

    def start(self, views: Views) -> dict[str, Start]:
        counts = layer_counts(self.distribution, views, self.density)
        return {name: self._draw(view, counts[name]) for name, view in views.items()}

    def _draw(self, view, count: int) -> Start:
        size = torch.Size(view.shape).numel()
        drawn = Drawn("exact", self.seed, view.name, size, count=count)
        if self.draw == "bernoulli":
            drawn = Drawn("bernoulli", self.seed, view.name, size, density=count / max(view.capacity, 1))
        if self.flow == "none":
            return Start(drawn)
        source = None if view.source is None else view.source.cpu().numpy()
        mask, repair = preserve(
            drawn.mask(source), view.shape, view.geometry, self.seed, view.name, self.flow, source
        )
        return Start(torch.from_numpy(mask), repair)


@dataclass(frozen=True)
class Static(RandomStart):
    """A random mask, drawn once and kept: the baseline that is hard to beat with good layer-wise ratios.

    Args:
        density, distribution, seed, draw, flow: see ``Method`` and ``RandomStart``.

    References:
        Gadhikar, Mukherjee, Burkholz, Why Random Pruning Is All We Need to Start Sparse, ICML 2023,
        https://arxiv.org/abs/2210.02412
        Liu et al., The Unreasonable Effectiveness of Random Pruning, ICLR 2022, https://arxiv.org/abs/2202.02643

    Fidelity:
        The paper draws every weight for itself (``draw="bernoulli"``); the default here is the exact count.

    Example:
        >>> import startsparse as ss
        >>> model = torch.nn.Linear(100, 10)
        >>> sparse = ss.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), ss.Static(density=0.05))
        >>> int(sparse.masks["weight"].sum())
        50
    """

    name: ClassVar[str] = "static"
    paper: ClassVar[str] = "Gadhikar et al. 2023"
    summary: ClassVar[str] = "a random mask, drawn once"
