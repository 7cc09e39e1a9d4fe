"""Weights of which inactive ones keep a value: what methods read of them, and which of them live."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .base import Change, Views
from .view import LayerView

HIDDEN = "hidden"  # the memory that holds the values of inactive positions
REACHED = "reached"  # the memory that holds the inactive positions that are trained
LOGIT = "logit"  # the memory of a learnt threshold: what it is a sigmoid of, a scalar
THRESHOLD = "threshold"  # by how much the live weights are shrunk, a scalar
WHY_MASKED = "it keeps values behind zeros, which truly sparse execution does not hold"


def magnitudes(view: LayerView) -> Tensor:
    """abs of all values of a layer, live or hidden, flat; -inf outside the source.

    Example:
        >>> from startsparse.methods import DenseView
        >>> view = DenseView("w", torch.tensor([3.0, 0.0]), torch.tensor([True, False]))
        >>> view.memory = {HIDDEN: torch.tensor([0.0, -5.0])}
        >>> magnitudes(view)
        tensor([3., 5.])
    """
    weights = view.active_weights().float().abs()
    size = int(torch.Size(view.shape).numel())
    hidden = view.memory.get(HIDDEN)
    values = torch.zeros(size, device=weights.device) if hidden is None else hidden.reshape(-1).float().abs()
    values[view.active_positions()] = weights
    return values if view.source is None else values.masked_fill(~view.source, -torch.inf)


def change_to(view: LayerView, live: Tensor, memory: Mapping[str, Tensor] | None = None) -> Change:
    """The change of a layer whose live positions become those of a flat bool mask."""
    active = view.active_positions()
    before = torch.zeros_like(live)
    before[active] = True
    return Change(active[~live[active]], (live & ~before).nonzero().squeeze(1), memory)


def live_masks(views: Views) -> dict[str, Tensor]:
    """Flat bool masks of the live positions."""
    masks = {}
    for name, view in views.items():
        active = view.active_positions()
        masks[name] = torch.zeros(torch.Size(view.shape).numel(), dtype=torch.bool, device=active.device)
        masks[name][active] = True
    return masks
