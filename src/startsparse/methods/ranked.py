"""Searches that rank scores: exactly so many of the highest are active, at every step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..distributions import Distribution, Scaled, allocate
from ..distributions import names as distribution_names
from ..names import nearest
from ..selection import top_k_across
from . import first_scores, swaps
from .renewal import Swap, wanted_in_rows
from .search import Layers, Scored, SearchMethod, progress, uniform
from .search_scopes import (
    check_room,
    choose,
    group_size,
    grouped,
    has_units,
    layout_of,
    legal_count,
    ungrouped,
)

GLOBAL_MAGNITUDE = "global-magnitude"
INITS = (*first_scores.CRITERIA, "random", "proportional", "neutral", "zero")
RANKS = ("raw", "absolute")
AVERAGE = 0.1  # share of the newest gradient in the running averages of order="curvature"


@dataclass(frozen=True)
class RankedSearch(SearchMethod):
    """A search that keeps the highest scores, with an exact number of active weights at every step.

    Args:
        density: active weights over all weights of the searched layers, in (0, 1].
        distribution: shares of the layers: "global-magnitude" (what one ranking of all weights by magnitude would
            keep), a rule of ``startsparse.distributions``, a mapping name or glob -> density, or ``Scaled``.
        init: first scores. Two levels, 1 where a criterion would keep the weight and ``1 - gap`` elsewhere:
            "magnitude", "taylor", "snip", "grasp", "wanda", "ria", or "random" (a random mask). Or scores of every
            weight's own: "proportional" (to the weight, HYDRA's), "neutral" (random, edge-popup's), "zero".
        gap: what a score has to gain before its weight can replace one that was kept at first.
        rank: "raw" scores, or "absolute" ones (the score's gradient is then multiplied by its sign).
        scope: what competes: "layer", "global" (all layers, budgets move), "row" (an output unit's weights), an N:M
            pattern such as "2:4", or whole "block:HxW" and "channel" groups with one score each.
        restriction: of the swaps a step may make: "none", "quartic", "cosine", "single", or a constant share.
        order: which swaps go first under a restriction: largest score "gap", smallest predicted loss ("curvature"),
            or "random" (a control).
        samples: examples behind one gradient; turns its variance into curvature for ``order="curvature"``.
    """

    density: float
    distribution: Distribution = GLOBAL_MAGNITUDE
    init: str = "magnitude"
    gap: float = 0.01
    rank: str = "raw"
    scope: str = "layer"
    restriction: str | float = "none"
    order: str = "gap"
    samples: int = 128

    def __post_init__(self):
        super().__post_init__()
        self._number("density", 0, 1, open_low=True)
        self._number("gap", 0, math.inf)
        self._one_of("init", INITS)
        self._one_of("rank", RANKS)
        self._one_of("order", swaps.ORDERS)
        self._integer("samples", low=1)
        if isinstance(self.restriction, str):
            self._one_of("restriction", swaps.SCHEDULES)
        else:
            self._number("restriction", 0, 1, open_low=True)
        known = [GLOBAL_MAGNITUDE, *distribution_names()]
        if isinstance(self.distribution, str) and self.distribution not in known:
            raise ValueError(
                f"{self.name}: unknown distribution {self.distribution!r}: {nearest(self.distribution, known)}"
            )
        if not isinstance(self.distribution, str | Mapping | Scaled):
            raise ValueError(
                f"{self.name}: distribution must be a name, a mapping or Scaled, got {self.distribution!r}"
            )
        layout = layout_of(self.scope)
        if layout.kind == "n:m" and not math.isclose(
            self.density, layout.numbers[0] / layout.numbers[1], rel_tol=1e-6
        ):
            raise ValueError(
                f"{self.name}: scope {layout} has density {layout.numbers[0] / layout.numbers[1]:g}, got "
                f"density={self.density!r}"
            )
        if has_units(layout) and self.init == "proportional":
            raise ValueError(f"{self.name}: init='proportional' scores single weights, not those of {layout}")

    @property
    def needs(self) -> tuple[str, ...]:
        return first_scores.needs(self.signal)

    @property
    def signal(self) -> str | None:
        """What has to be measured for the first scores."""
        criterion = first_scores.CRITERIA.get(self.init)
        return None if criterion is None else criterion.signal

    @property
    def scheduled(self) -> tuple[str, ...]:
        return ("restriction",) if self.restriction in ("quartic", "cosine") else ()

    @property
    def looks_before_steps(self) -> bool:
        return self.order == "curvature"

    # -- budgets -----------------------------------------------------------------------------------------------

    def check(self, layers: Layers, total_steps: int | None) -> None:
        layout = layout_of(self.scope)
        layout.check({name: layer.shape for name, layer in layers.items()})
        for name, layer in layers.items():
            if has_units(layout) and layer.source is not None:
                raise ValueError(
                    f"{self.name}: scope {layout} moves whole groups, but the source holds only part of {name}"
                )
            if layer.locked is not None and self.scope not in ("layer", "global"):
                raise ValueError(
                    f"{self.name}: scope {self.scope!r} shares weights out by groups, some of which may have more locked "
                    "in than that: take scope='layer' or 'global', or a RandomSource"
                )

    def counts(self, layers: Layers) -> dict[str, int]:
        """Active weights of each layer."""
        shapes = {name: layer.shape for name, layer in layers.items()}
        layout = layout_of(self.scope)
        if layout.kind == "n:m":
            return {name: legal_count(layout, shape, 0, name) for name, shape in shapes.items()}
        room = {name: layer.capacity for name, layer in layers.items()}
        total = round(self.density * sum(map(math.prod, shapes.values())))
        if not 0 < total <= sum(room.values()):
            raise ValueError(
                f"{self.name}: density {self.density:g} asks for {total} weights of the "
                f"{sum(room.values())} that the source allows: change the density or the source"
            )
        if self.distribution == GLOBAL_MAGNITUDE:
            scores = {name: layer.ranking(layer.weight.abs().float()) for name, layer in layers.items()}
            kept = {name: int(mask.sum()) for name, mask in top_k_across(scores, total).items()}
        else:
            kept = allocate(self.distribution, shapes, self.density, capacity=room)
        counts = {name: legal_count(layout, shapes[name], kept[name], name) for name in kept}
        for name, layer in layers.items():
            held = 0 if layer.locked is None else int(layer.locked.sum())
            if counts[name] < held:
                raise ValueError(
                    f"{self.name}: {name} is given {counts[name]} active weights, and the source locks in {held} of it: "
                    "raise the density, lower the source's share, or give both the same distribution"
                )
        return counts

    def live(self, layer: Scored, step: int, total_steps: int | None) -> int:
        """Active weights of a layer after ``step`` steps."""
        return layer.count

    def target(self, layers: Layers, step: int, total_steps: int | None) -> int:
        return sum(self.live(layer, step, total_steps) for layer in layers.values())

    # -- scores ------------------------------------------------------------------------------------------------

    def begin(self, layers: Layers, signals: Mapping[str, Tensor], total_steps: int | None) -> None:
        layout = layout_of(self.scope)
        for name, count in self.counts(layers).items():
            layers[name].count = count
        sources = {name: layer.source for name, layer in layers.items()}
        check_room(self.name, self.scope, {name: layer.count for name, layer in layers.items()}, sources)
        first: dict[str, Tensor] = {}
        for name, layer in layers.items():
            if self.init in ("proportional", "neutral", "zero"):
                layer.score = self._own_scores(layer)
                continue
            criterion = first_scores.CRITERIA.get(self.init)
            ranked = (
                first_scores.random_order(layer, self.seed)
                if criterion is None
                else criterion.score(layer.weight.float(), signals.get(name, layer.weight))
            )
            if has_units(layout):
                ranked = grouped(ranked, layout).sum(1)
            first[name] = layer.ranking(ranked)
            layer.score = ranked.float()
        if first:
            for name, mask in self._choose(layers, first, {}, step=0, total_steps=total_steps).items():
                kept = self._units(mask)
                layers[name].score = torch.where(kept, 1.0, 1.0 - self.gap)
                layers[name].mask = mask
        start = {name: self.key(layer) for name, layer in layers.items()}
        masks = {name: layer.mask for name, layer in layers.items() if first}
        for name, mask in self._choose(
            layers, start, masks, step=0, total_steps=total_steps, begin=True
        ).items():
            layers[name].mask = mask
            if self.order == "curvature":
                zeros = torch.zeros_like(layers[name].score)
                layers[name].moments = {"mean": zeros, "square": zeros.clone()}

    def _own_scores(self, layer: Scored) -> Tensor:
        layout = layout_of(self.scope)
        shape = (layer.weight.numel() // group_size(layout, layer.shape, layer.name),)
        shape = shape if has_units(layout) else layer.shape
        if self.init == "zero":
            return torch.zeros(shape, device=layer.weight.device)
        if self.init == "proportional":
            return first_scores.proportional(layer)
        return first_scores.neutral(layer, shape, self.seed)

    def key(self, layer: Scored) -> Tensor:
        """What is ranked, ``-inf`` outside the source, ``inf`` where weights are locked in."""
        return layer.ranking(layer.score.abs() if self.rank == "absolute" else layer.score)

    def score_gradient(self, layer: Scored, signal: Tensor, step: int, total_steps: int | None) -> Tensor:
        layout = layout_of(self.scope)
        if has_units(layout):
            signal = grouped(signal, layout).sum(1)
        return signal * layer.score.sign() if self.rank == "absolute" else signal

    def observe(self, layer: Scored, gradient: Tensor) -> None:
        if self.order != "curvature":
            return
        if self.rank == "absolute":
            gradient = gradient * layer.score.sign()
        _ = layer.moments["mean"].lerp_(gradient, AVERAGE)
        _ = layer.moments["square"].lerp_(gradient.square(), AVERAGE)

    # -- masks -------------------------------------------------------------------------------------------------

    def choose(self, layers: Layers, step: int, total_steps: int | None) -> dict[str, Tensor]:
        keys = {name: self.key(layer) for name, layer in layers.items()}
        masks = {name: layer.mask for name, layer in layers.items()}
        return self._choose(layers, keys, masks, step, total_steps)

    def _choose(
        self,
        layers: Layers,
        keys: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        step: int,
        total_steps: int | None,
        begin: bool = False,
    ) -> dict[str, Tensor]:
        """New masks by rank, and by as many swaps from the present ones as the restriction lets through."""
        layout = layout_of(self.scope)
        free = begin or not masks or self.restriction == "none" or self.restriction == 1
        counts = {name: self.live(layers[name], step, total_steps) for name in keys}
        units = {name: self._units(mask) for name, mask in masks.items()}
        if self.scope == "global" and not (begin or not masks):
            wants = top_k_across(keys, sum(counts.values()), prefer=units)
        else:
            wants = {}
            for name, key in keys.items():
                count = self._in_units(counts[name], layers[name])
                wants[name] = choose(key, count, layout, units.get(name), name)
        if not free:
            wants = self._restrict(layers, keys, units, wants, step, total_steps)
        return {name: self._weights(want, layers[name]) for name, want in wants.items()}

    def _restrict(self, layers, keys, masks, wants, step: int, total_steps: int | None) -> dict[str, Tensor]:
        layout = layout_of(self.scope)
        moments = {
            key: {name: layer.moments[key] for name, layer in layers.items()}
            for key in ("mean", "square")
            if self.order == "curvature"
        }
        parts = {"key": keys, "mask": masks, "want": wants} | moments
        if self.scope == "global":
            flat = {p: torch.cat([t.reshape(-1) for t in found.values()]) for p, found in parts.items()}
            mask = self._restrict_one("all layers", flat, None, step, total_steps)
            split = mask.split([wants[name].numel() for name in wants])
            return {name: part.view_as(wants[name]).clone() for name, part in zip(wants, split, strict=True)}
        out = {}
        for name, layer in layers.items():
            row = None if layout.whole else group_size(layout, layer.shape, name)
            flat = {
                part: (found[name] if layout.whole else grouped(found[name], layout)).reshape(-1)
                for part, found in parts.items()
            }
            mask = self._restrict_one(name, flat, row, step, total_steps)
            shape = tuple(wants[name].shape)
            out[name] = mask.reshape(shape) if layout.whole else ungrouped(mask, layout, shape)
        return out

    def _restrict_one(
        self, name: str, flat: Mapping[str, Tensor], row: int | None, step: int, total_steps: int | None
    ) -> Tensor:
        wanted = Swap.between(flat["mask"], flat["want"])
        return self._limited(name, wanted, flat, row, step, total_steps).after(flat["mask"])

    def _limited(
        self,
        name: str,
        wanted: Swap,
        flat: Mapping[str, Tensor],
        row: int | None,
        step: int,
        total_steps: int | None,
    ) -> Swap:
        """What the restriction lets through, of flat keys and moments."""
        done = progress(step - 1, total_steps) if total_steps else 0.0

        def worth(at: Tensor, arrives: bool) -> Tensor:
            if self.order == "random":
                side = "in" if arrives else "out"
                return uniform((len(at),), self.seed, f"swap {side} {step}", name).to(at.device)
            if self.order == "gap":
                return flat["key"][at] if arrives else -flat["key"][at]
            mean = flat["mean"][at]
            curvature = self.samples * (flat["square"][at] - mean.square()).clamp_min(0)
            return (-mean if arrives else mean) - curvature / 2

        return swaps.limited(wanted, lambda count: swaps.cap(self.restriction, count, done), worth, row=row)

    def swaps(self, layers: Layers, step: int, total_steps: int | None) -> dict[str, Swap]:
        layout = layout_of(self.scope)
        if self.scope == "global" or has_units(layout):
            return super().swaps(layers, step, total_steps)
        swap = self._swap if layout.whole else self._swap_in_rows
        return {name: swap(layer, step, total_steps) for name, layer in layers.items()}

    def _swap(self, layer: Scored, step: int, total_steps: int | None) -> Swap:
        """As ``choose`` in one layer, at the cost of what is contested where the count stays."""
        count = self.live(layer, step, total_steps)
        steady = count == self.live(layer, step - 1, total_steps) and 0 < count < layer.mask.numel()
        if not steady or layer.mask.device.type != "cpu":
            return super().swaps({layer.name: layer}, step, total_steps)[layer.name]
        key = self.key(layer)
        wanted = layer.stand().wanted(key, layer.name)
        if self.restriction in ("none", 1) or not len(wanted):
            return wanted
        flat = {"key": key.view(-1)} | {part: moment.view(-1) for part, moment in layer.moments.items()}
        return self._limited(layer.name, wanted, flat, None, step, total_steps)

    def _swap_in_rows(self, layer: Scored, step: int, total_steps: int | None) -> Swap:
        """As ``_swap``, where every group keeps its own number."""
        if layer.mask.device.type != "cpu":
            return super().swaps({layer.name: layer}, step, total_steps)[layer.name]
        layout = layout_of(self.scope)
        keys, kept = (grouped(values, layout) for values in (self.key(layer), layer.mask))
        number = self.live(layer, step, total_steps) // len(kept)
        wanted = wanted_in_rows(keys, kept, number, layer.name)
        if self.restriction not in ("none", 1) and len(wanted):
            flat = {"key": keys.reshape(-1)}
            flat |= {part: grouped(moment, layout).reshape(-1) for part, moment in layer.moments.items()}
            wanted = self._limited(layer.name, wanted, flat, kept.shape[1], step, total_steps)
        if layout.kind == "fan_in" or layer.weight.dim() == 2 or not len(wanted):
            return wanted  # groups lie one after the other
        return Swap.between(layer.mask, ungrouped(wanted.after(kept), layout, layer.shape))

    def _in_units(self, count: int, layer: Scored) -> int:
        layout = layout_of(self.scope)
        return count // group_size(layout, layer.shape, layer.name) if has_units(layout) else count

    def _units(self, mask: Tensor) -> Tensor:
        """A mask of weights as one of what has a score of its own."""
        layout = layout_of(self.scope)
        return grouped(mask, layout)[:, 0] if has_units(layout) else mask

    def _weights(self, units: Tensor, layer: Scored) -> Tensor:
        """The inverse of ``_units``."""
        layout = layout_of(self.scope)
        if not has_units(layout):
            return units
        size = group_size(layout, layer.shape, layer.name)
        return ungrouped(units[:, None].expand(-1, size), layout, layer.shape)
