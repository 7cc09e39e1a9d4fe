"""One update of a method over layers written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import startsparse as ss
from startsparse.methods import Change, DenseView

from .tables import bits, written


def view(
    weights: Sequence[float],
    mask: str,
    gradient: Sequence[float] | None = None,
    name: str = "fc.weight",
    rows: int = 1,
    **more: Any,
) -> DenseView:
    """A layer of ``rows`` outputs; ``source`` may be written like the mask."""
    if "source" in more:
        more["source"] = bits(more["source"])
    dense = None if gradient is None else torch.tensor(gradient).view(rows, -1)
    return DenseView(
        name, torch.tensor(weights).view(rows, -1), bits(mask).view(rows, -1), gradient=dense, **more
    )


def after(before: Tensor, change: Change) -> str:
    """The mask after a change."""
    mask = before.reshape(-1).clone()
    assert bool(mask[change.dropped].all()) and not bool(mask[change.grown].any())
    mask[change.dropped] = False
    mask[change.grown] = True
    return written(mask)


def updated(
    method: ss.methods.Method, views: Mapping[str, DenseView], step: int, target: int, total_steps: int = 100
) -> dict[str, str]:
    """The masks of all layers after an update; their count is ``target``."""
    changes = method.update(views, step, target, total_steps)
    masks = {name: after(view.mask, changes[name]) for name, view in views.items() if name in changes}
    assert sum(mask.count("1") for mask in masks.values()) == target
    return masks
