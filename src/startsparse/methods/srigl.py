"""Structured RigL: every output unit has the same number of inputs, and units that matter little go."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..criteria import magnitude
from ..distributions import water_fill, whole
from ..draw import Permutation
from ..selection import top_k, top_k_in_groups
from .base import Change, Changes, Start, Views, layer_counts
from .checks import in_range
from .drop_grow import DropGrow, moved
from .view import LayerView


@dataclass(frozen=True)
class SRigL(DropGrow):
    """RigL with constant fan-in: the live weights of a layer are spread evenly over its live output units.

    An update drops the smallest weights of the layer. A weight is salient if it is kept or among the largest dense
    gradients of as many as were dropped; a unit with too few salient weights is ablated for good, and its weights go
    to the others. Each unit then drops or grows, where its gradient is largest, to its share.

    Args:
        ablation_threshold: a unit goes when fewer than this share of its weights are salient, in [0, 1]; 0: none goes.
            Never in the last layer.
        min_units: output units that a layer keeps at least.

    References:
        Lasby et al., Dynamic Sparse Training with Structured Sparsity, ICLR 2024, section 3,
        https://arxiv.org/abs/2305.02299

    Fidelity:
        Each layer keeps its exact number of weights, so units differ by at most one where the number of live units
        does not divide it (the authors' code rounds the fan-in), and where the source gives a unit less room. What a
        unit gives up beyond its share are its smallest weights (theirs: any). Units with no weight from the start
        count as ablated.

    Example:
        >>> SRigL(density=0.1).ablation_threshold
        0.3
    """

    ablation_threshold: float = 0.3
    min_units: int = 1

    name: ClassVar[str] = "srigl"
    paper: ClassVar[str] = "Lasby et al. 2024"
    summary: ClassVar[str] = "RigL with a constant number of inputs per unit, and without idle units"
    grows_by_gradient: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        in_range(self, "ablation_threshold")
        self._integer("min_units", low=1)
        for field, only in (("draw", "exact"), ("flow", "none")):
            if getattr(self, field) != only:
                raise ValueError(
                    f"srigl: a constant fan-in leaves no choice of {field}: {field} must be {only!r}, got "
                    f"{getattr(self, field)!r}"
                )

    def check(self, views: Views, total_steps: int | None) -> None:
        super().check(views, total_steps)
        turned = [name for name, view in views.items() if view.geometry.transposed]
        if turned:
            raise ValueError(
                f"srigl: the outputs of {', '.join(turned)} are not the rows of its weight (a transposed convolution, or "
                "Conv1D of transformers): exclude it with layers=['!name']"
            )

    def start(self, views: Views) -> dict[str, Start]:
        counts = layer_counts(self.distribution, views, self.density)
        return {name: Start(self._first(view, counts[name])) for name, view in views.items()}

    def _first(self, view: LayerView, count: int) -> Tensor:
        size = math.prod(view.shape)
        positions = torch.arange(size)
        if view.source is not None:
            positions = positions[view.source.cpu()]
        rows = _rows(view, positions)
        order = torch.from_numpy(Permutation(size, "exact", self.seed, view.name).ranks(positions.numpy()))
        room = torch.bincount(rows, minlength=view.shape[0])
        mask = torch.zeros(size, dtype=torch.bool)
        mask[positions[top_k_in_groups(-order, rows, spread(count, room), what=view.name)]] = True
        return mask

    def update(self, views: Views, step: int, target: int, total_steps: int | None) -> Changes:
        fraction = self.fraction(step, total_steps)
        last = list(views)[-1]
        return {n: self._restructure(v, fraction, n == last) for n, v in views.items() if not v.frozen}

    def _restructure(self, view: LayerView, fraction: float, last: bool) -> Change:
        active = view.active_positions()
        none = active[:0]
        count = int(fraction * len(active))
        if self.exclude_dropped:
            count = min(count, view.num_growable(none))
        if count == 0:
            return Change(none, none)
        score = magnitude(view.active_weights())
        keep = top_k(score, len(active) - count, what=view.name)
        returning = none if self.exclude_dropped else active[~keep]
        free, gradient = view.candidates(view.num_growable(returning), returning)
        kept, score = active[keep], score[keep]
        rows, free_rows = _rows(view, kept), _rows(view, free)
        salient = torch.cat([rows, free_rows[top_k(gradient, min(count, len(free)), what=view.name)]])
        units = view.shape[0]
        room = torch.bincount(torch.cat([rows, free_rows]), minlength=units)
        live = torch.bincount(_rows(view, active), minlength=units) > 0
        threshold = 0.0 if last else self.ablation_threshold
        live = _survivors(
            live, torch.bincount(salient, minlength=units), room, len(active), threshold, self.min_units
        )
        wanted = spread(len(active), torch.where(live, room, 0))
        stays = torch.minimum(wanted, torch.bincount(rows, minlength=units))
        kept = kept[top_k_in_groups(score, rows, stays, what=view.name)]
        grown = free[top_k_in_groups(gradient, free_rows, wanted - stays, what=view.name)]
        gone = active[~torch.isin(active, kept, assume_unique=True)]
        return moved(view, gone, grown)


def spread(count: int, room: Tensor) -> Tensor:
    """``count`` weights over units as evenly as their room allows, int64; the rest to the earlier units.

    Example:
        >>> spread(7, torch.tensor([9, 1, 9]))
        tensor([3, 1, 3])
    """
    limit = {str(unit): number for unit, number in enumerate(room.tolist()) if number}
    filled = water_fill(dict.fromkeys(limit, 1.0), limit, float(count)) if limit else {}
    shares = whole({unit: filled[unit] for unit in limit}, count, limit)
    return torch.tensor([shares.get(str(unit), 0) for unit in range(len(room))], device=room.device)


def _rows(view: LayerView, positions: Tensor) -> Tensor:
    return positions // math.prod(view.shape[1:])


def _survivors(
    live: Tensor, salient: Tensor, room: Tensor, count: int, threshold: float, least: int
) -> Tensor:
    """The units that stay: those with salient weights enough, the least number of them, and room for all weights."""
    fan_in = count / int(live.sum())
    stays = live & (salient >= threshold * fan_in)
    for unit in salient.masked_fill(~live, -1).sort(descending=True, stable=True).indices.tolist():
        if int(stays.sum()) >= min(least, int(live.sum())) and int(room[stays].sum()) >= count:
            break
        stays[unit] = True
    return stays
