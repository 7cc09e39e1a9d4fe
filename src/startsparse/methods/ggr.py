"""Dynamic sparse training that moves weights across layers, to where the dense gradient asks for them: GGR."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..criteria import gradient as gradient_score
from ..criteria import magnitude
from ..selection import top_k, top_k_across
from .base import Changes, Start, Views, layer_counts
from .drop_grow import DropGrow, moved
from .ggr_layers import all_scores, at_random_besides, fan_in, taking_part, units
from .redistribute import affordable, highest, shared
from .reduced import Growth
from .view import LayerView

COUNTS = ("top_gradients", "mean_gradient", "sum_gradient", "live", "dropped")
NORMS = ("none", "l2", "fan_in")
SCOPES = ("layer", "global")
UNITS = "units"
SILENT = "silent"  # the memory of an update that no gradient reached
PATIENCE = 3  # updates in a row without growth before it is said aloud

Found = dict[str, tuple[Tensor, Tensor]]  # layer name -> candidates and their scores


@dataclass(frozen=True)
class GGR(DropGrow):
    """Global gradient-based redistribution: each layer drops its smallest weights, and they grow where the dense
    gradient of the whole net is largest, so layers that need weights get them.

    At an update each layer drops the same share of its weights, R in all. A layer then grows as many as it has among
    the R highest abs(dense gradient) of all inactive positions of all layers; a share ``rho`` of them at these
    positions, the rest at random ones. The number of live weights of the net never changes.

    Args:
        rho: share of a layer's growth that is placed where its gradient is largest, in [0, 1]; the rest is drawn.
        count_by: what decides how much a layer grows: "top_gradients" (its share of the highest R gradients),
            "mean_gradient" (in proportion to mean abs(gradient) of its live weights), "sum_gradient" (of the sum of
            abs(gradient) over its inactive positions), "live" (of its live weights after the drop) or "dropped"
            (what it gave up, so layers keep their size).
        normalise: factor on a layer's gradients before layers are compared: "none", "l2" (one over their L2 norm over
            inactive positions) or "fan_in" (the square root of the inputs of a unit).
        gradient_window: steps whose dense gradients are summed, with their signs, for an update: the last ones up to
            it. At most ``update_interval``.
        probes: batches that are passed through the net at an update for its dense gradient alone, in the loop that
            ``Sparsifier.probes`` is; their gradients are added, with their signs, to those of the window.
        drop_scope: "layer" (the same share of every layer) or "global" (the smallest weights of the net).
        floor: live weights below which a layer drops nothing: an int for every layer, a float for a share of what
            ERK would give it (and one at least), or "units" for one an output unit.
        ceiling: largest density of a layer, in (0, 1]; the first masks keep to it too.

    References:
        Parger et al., Gradient-based Weight Density Balancing for Robust Dynamic Sparse Training, 2022, abstract,
        https://arxiv.org/abs/2210.14012
        Evci et al., Rigging the Lottery, ICML 2020, section 3 (what is dropped, when, and how much)

    Fidelity:
        A reconstruction from the paper's abstract and a summary of it: weights are removed by magnitude, the growth of
        a layer is counted by the globally largest gradients, and placed by gradients and at random. Everything else
        is ours: the shares, the window, floor and ceiling, no normalisation, RigL's schedule. See the card.

    Example:
        >>> method = GGR(density=0.01, gradient_window=20)
        >>> [step for step in range(1000) if method.wants_gradient(step, 1000)][:3], method.rho
        ([81, 82, 83], 0.5)
    """

    moves_across_layers: ClassVar[bool] = True
    name: ClassVar[str] = "ggr"
    paper: ClassVar[str] = "Parger et al. 2022"
    summary: ClassVar[str] = "drop by magnitude, grow in the layers and places the gradient asks for"

    rho: float = 0.5
    count_by: str = "top_gradients"
    normalise: str = "none"
    gradient_window: int = 1
    probes: int = 0  # type: ignore[misc]
    drop_scope: str = "layer"
    floor: float | str = 0.5
    ceiling: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        self._share("rho", zero=True)
        self._share("ceiling", zero=False)
        self._one_of("count_by", COUNTS)
        self._one_of("normalise", NORMS)
        self._one_of("drop_scope", SCOPES)
        self._integer("gradient_window", low=1)
        self._integer("probes", low=0)
        if self.probes and not self._ranks_gradients:
            raise ValueError(
                f"{self.name}: probes={self.probes} are batches for a dense gradient, but rho=0 with "
                f"count_by={self.count_by!r} looks at none: leave probes at 0"
            )
        if self.gradient_window > self.update_interval:
            raise ValueError(
                f"{self.name}: gradient_window={self.gradient_window} is longer than "
                f"update_interval={self.update_interval}: a window holds gradients of one topology"
            )
        if self.normalise != "none" and self.count_by != "top_gradients":
            raise ValueError(
                f"{self.name}: normalise={self.normalise!r} scales gradients that are ranked across layers; "
                f"count_by={self.count_by!r} ranks none"
            )
        if isinstance(self.floor, str):
            self._one_of("floor", (UNITS,))
        elif isinstance(self.floor, float):
            self._share("floor", zero=True)
        else:
            self._integer("floor", low=0)

    def _share(self, field: str, zero: bool) -> None:
        value = getattr(self, field)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not (0 <= value <= 1) or not (zero or value):
            raise ValueError(f"{self.name}: {field} must be in {'[' if zero else '('}0, 1], got {value!r}")

    # -- when --------------------------------------------------------------------------------------------------

    @property
    def _ranks_gradients(self) -> bool:
        return self.rho > 0 or self.count_by not in ("live", "dropped") or self.grown_value == "gradient_sign"

    def wants_gradient(self, step: int, total_steps: int | None) -> bool:
        update = -(-step // self.update_interval) * self.update_interval
        near = update - step < self.gradient_window
        return self._ranks_gradients and near and self.due(update, total_steps)

    def gradient_carry(self, step: int, total_steps: int | None) -> float:
        inside = self.wants_gradient(step, total_steps) and step > 0
        return float(
            inside and self.wants_gradient(step - 1, total_steps) and not self.due(step - 1, total_steps)
        )

    # -- where it begins ---------------------------------------------------------------------------------------

    def check(self, views: Views, total_steps: int | None) -> None:
        super().check(views, total_steps)
        wanted = round(self.density * sum(math.prod(view.shape) for view in views.values()))
        room = sum(self._limits(views).values())
        if wanted > room and self.ceiling < 1:
            raise ValueError(
                f"{self.name}: density {self.density:g} asks for {wanted} weights, but under "
                f"ceiling={self.ceiling:g} the layers hold only {room}: raise the ceiling or lower the density"
            )

    def start(self, views: Views) -> dict[str, Start]:
        counts = layer_counts(self.distribution, views, self.density, capacity=self._limits(views))
        return {name: self._draw(view, counts[name]) for name, view in views.items()}

    # -- the update --------------------------------------------------------------------------------------------

    def update(self, views: Views, step: int, target: int, total_steps: int | None) -> Changes:
        moving, live = taking_part(views)
        floors = self._floors(moving)
        drops, keeps = self._drops(moving, live, floors, self.fraction(step, total_steps))
        drops, room = self._affordable(moving, live, drops)
        dropped = {}
        for name, view in moving.items():
            kept = keeps.get(name)
            if kept is None or int(kept.sum()) != live[name] - drops[name]:
                kept = self.keep(view, live[name] - drops[name])
            dropped[name] = view.active_positions()[~kept]
        returning = {name: gone[:0] if self.exclude_dropped else gone for name, gone in dropped.items()}
        counts, found = self._counts(moving, drops, room, returning)
        changes, moves = {}, sum(drops.values()) > 0
        silent = moves and bool(found) and not any(len(positions) for positions, _ in found.values())
        if silent and not any(SILENT in view.memory for view in moving.values()):  # else it was said
            warnings.warn(
                f"{self.name}: no gradient reached an inactive weight: every layer gets back as many as it dropped",
                stacklevel=6,
            )
        said = {SILENT: torch.tensor(1)} if silent else {}
        for name, view in moving.items():
            grown = self._place(view, counts[name], found.get(name), returning[name], step)
            needy = room[name] > 0 and (drops[name] > 0 or live[name] <= floors[name])
            left = live[name] - drops[name]
            starved = self._starved(view, left) if needy and moves and not counts[name] else 0
            change = moved(view, dropped[name], grown)
            changes[name] = replace(change, memory={"starved": torch.tensor(starved)} | said)
        return changes

    def _affordable(
        self, views: Views, live: Mapping[str, int], drops: Mapping[str, int]
    ) -> tuple[dict[str, int], dict[str, int]]:
        """Drops as many as can grow again, and the room for growth after them."""
        free = {name: view.capacity - live[name] for name, view in views.items()}
        if self.count_by == "dropped" and self.exclude_dropped:
            drops = {name: min(count, free[name]) for name, count in drops.items()}
        return affordable(drops, live, free, self._limits(views), not self.exclude_dropped)

    def reduces_to(self, views: Views, step: int, total_steps: int | None) -> Growth | None:
        moving, live = taking_part(views)
        scaled = self.normalise != "none" or self.grown_value == "gradient_sign" or self.probes
        counted = self.count_by in ("top_gradients", "dropped", "live")
        if type(self) is not GGR or scaled or not counted or not self.due(step, total_steps):
            return None
        if self.drop_scope == "layer":
            drops, _ = self._drops(moving, live, self._floors(moving), self.fraction(step, total_steps))
            drops, room = self._affordable(moving, live, drops)
        elif self.ceiling == 1 and self.count_by == "top_gradients":
            drops = {"": int(self.fraction(step, total_steps) * sum(live.values()))}
            room = {name: math.prod(view.shape) for name, view in moving.items()}  # it bounds nothing
        else:
            return None
        total = sum(drops.values())
        if self.count_by == "top_gradients":
            most = {name: min(total, room[name]) for name in moving}
        else:
            counts, _ = self._counts(moving, drops, room, {})
            most = {name: self._placed(count) for name, count in counts.items()}
        return Growth(dict.fromkeys(views, 0) | most, total if self.count_by == "top_gradients" else None)

    def _drops(
        self, views: Views, live: Mapping[str, int], floors: Mapping[str, int], fraction: float
    ) -> tuple[dict[str, int], dict[str, Tensor]]:
        """How many live weights each layer drops, and which stay where a ranking over all layers decided it."""
        spare = {name: max(0, live[name] - floors[name]) for name in views}
        if self.drop_scope == "layer":
            return {name: min(int(fraction * live[name]), spare[name]) for name in views}, {}
        scores = {}
        for name, view in views.items():
            scores[name] = magnitude(view.active_weights()).clone()
            scores[name][top_k(scores[name], live[name] - spare[name], what=name)] = torch.inf
        total = min(int(fraction * sum(live.values())), sum(spare.values()))
        keeps = top_k_across(scores, sum(live.values()) - total)
        return {name: live[name] - int(keeps[name].sum()) for name in views}, keeps

    def _counts(
        self,
        views: Views,
        drops: Mapping[str, int],
        room: Mapping[str, int],
        returning: Mapping[str, Tensor],
    ) -> tuple[dict[str, int], Found]:
        """How much each layer grows, and its part of the highest gradients where they decide that."""
        total = sum(drops.values())
        if self.count_by == "top_gradients":
            found = highest(
                lambda name: self._candidates(views[name], min(total, room[name]), returning[name]),
                views,
                total,
            )
            counts = {name: len(positions) for name, (positions, _) in found.items()}
            rest = total - sum(counts.values())
            others = shared(rest, drops, {name: room[name] - counts[name] for name in views})
            return {name: counts[name] + others[name] for name in views}, found
        if self.count_by == "live":
            wishes = {name: float(view.num_active - drops[name]) for name, view in views.items()}
        elif self.count_by == "dropped":
            wishes = {name: float(count) for name, count in drops.items()}
        elif self.count_by == "mean_gradient":
            live = {name: gradient_score(view.active_gradients()) for name, view in views.items()}
            wishes = {name: float(score.mean()) if len(score) else 0.0 for name, score in live.items()}
        else:
            wishes = {name: float(all_scores(v, returning[name])[1].sum()) for name, v in views.items()}
        if not any(wishes.values()):
            wishes = {name: float(count) for name, count in drops.items()}
        return shared(total, wishes, room), {}

    def _candidates(self, view: LayerView, count: int, returning: Tensor) -> tuple[Tensor, Tensor]:
        """The best positions of a layer, and their scores as they are compared across layers."""
        if self.normalise == "l2":
            positions, scores = all_scores(view, returning)
            norm = float(torch.linalg.vector_norm(scores))
            best = top_k(scores, count, what=view.name)
            return positions[best], scores[best] / norm if norm else scores[best]
        positions, scores = view.candidates(count, returning)
        return positions, scores * fan_in(view) ** 0.5 if self.normalise == "fan_in" else scores

    def _place(
        self,
        view: LayerView,
        count: int,
        found: tuple[Tensor, Tensor] | None,
        returning: Tensor,
        step: int,
    ) -> Tensor:
        """Where a layer grows: the ``rho`` share at its largest gradients, the rest at random, rising.

        With a random share a position whose gradient is zero is left to it: it is no better than any other.
        """
        wanted = self._placed(count)
        if wanted == 0:
            return view.grow_at_random(count, returning, self.seed, step)
        if found is None or (len(found[0]) < wanted and self.rho == 1):
            found = view.candidates(wanted, returning)
        positions, scores = found
        if self.rho < 1:
            wanted = min(wanted, int((scores > 0).sum()))
        best = positions[top_k(scores, wanted, what=view.name)].to(returning.device)
        rest = at_random_besides(view, best, count - wanted, returning, self.seed, step)
        return torch.cat([best, rest]).sort().values if len(rest) else best

    def _placed(self, count: int) -> int:
        """How many of a layer's growth are placed by gradient."""
        return min(count, math.floor(self.rho * count + 0.5))

    def _starved(self, view: LayerView, left: int) -> int:
        """In how many updates in a row a layer got nothing, this one included; said aloud when they are many."""
        updates = int(view.memory.get("starved", torch.tensor(0))) + 1
        if updates == PATIENCE + 1:
            warnings.warn(
                f"{self.name}: {view.name} got no growth in {updates} updates and is down to {left:,} live weights: if "
                f"it needs more, raise floor={self.floor!r}",
                stacklevel=7,
            )
        return updates

    # -- bounds ------------------------------------------------------------------------------------------------

    def _limits(self, views: Views) -> dict[str, int]:
        """The most live weights each layer may have."""
        return {
            name: min(view.capacity, math.floor(self.ceiling * math.prod(view.shape) + 1e-9))
            for name, view in views.items()
        }

    def _floors(self, views: Views) -> dict[str, int]:
        """The live weights below which a layer drops nothing."""
        if isinstance(self.floor, str):
            return {name: units(view) for name, view in views.items()}
        if isinstance(self.floor, int):
            return dict.fromkeys(views, self.floor)
        total = sum(math.prod(view.shape) for view in views.values())
        live = sum(view.num_active for view in views.values())
        if live == 0:
            return dict.fromkeys(views, 0)
        limits = self._limits(views)
        erk = layer_counts("erk", views, min(live, sum(limits.values())) / total, capacity=limits)
        at_least = int(self.floor > 0)
        return {name: max(at_least, math.floor(self.floor * count)) for name, count in erk.items()}
