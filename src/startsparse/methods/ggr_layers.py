"""What GGR asks of layers: which take part, all their scores, places at random, counts of units."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .base import Views
from .view import LayerView


def taking_part(views: Views) -> tuple[dict[str, LayerView], dict[str, int]]:
    """The layers that take part, by name, and what lives there."""
    moving = {name: views[name] for name in sorted(views) if not views[name].frozen}
    return moving, {name: view.num_active for name, view in moving.items()}


def all_scores(view: LayerView, returning: Tensor) -> tuple[Tensor, Tensor]:
    """All positions that may grow, and their scores."""
    return view.candidates(view.num_growable(returning), returning)


def at_random_besides(
    view: LayerView, taken: Tensor, count: int, returning: Tensor, seed: int, step: int
) -> Tensor:
    """The ``count`` growable positions that come first in the drawn order among those not ``taken``."""
    drawn = count
    while True:  # every position more that is drawn adds at most one, so the count is hit and never passed
        positions = view.grow_at_random(drawn, returning, seed, step)
        rest = positions[~torch.isin(positions, taken, assume_unique=True)]
        if len(rest) == count:
            return rest
        drawn += count - len(rest)


def units(view: LayerView) -> int:
    """Output units of a layer."""
    return view.shape[1] * view.geometry.groups if view.geometry.transposed else view.shape[0]


def fan_in(view: LayerView) -> int:
    """Weights of an output unit."""
    return math.prod(view.shape) // units(view)
