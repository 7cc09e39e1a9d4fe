"""Where the active weights of a search are: what ``Search.report()`` returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..methods.search import Scored
from ..tables import percent, table
from .sites import ScoreSite

if TYPE_CHECKING:
    from .engine import Search


@dataclass(frozen=True)
class ScoreRow:
    """One layer: counts of its weights."""

    name: str
    shape: tuple[int, ...]
    num_weights: int
    num_active: int
    num_source: int
    num_locked: int = 0

    @property
    def density(self) -> float:
        """Active weights over all of the layer."""
        return self.num_active / self.num_weights


@dataclass(frozen=True)
class SearchReport:
    """The state of a search. ``print`` it, or take ``as_dict()``.

    Attributes:
        density: active weights over all weights of the searched layers.
        weights_density: the same with the weights that were left out (the classifier, ...) counted as active.
        model_density: the same over all parameters of the model.
        target_count: scheduled active weights, or None.
        excluded: weights that are not searched -> why, and how many they are.
    """

    method: str
    source: str
    step: int
    num_updates: int
    num_swaps: int
    target_count: int | None
    density: float
    weights_density: float
    model_density: float
    layers: list[ScoreRow]
    excluded: Mapping[str, tuple[str, int]]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [
            [
                row.name,
                "x".join(map(str, row.shape)),
                f"{row.num_weights:,}",
                f"{row.num_active:,}",
                percent(row.density),
                percent(row.num_source / row.num_weights),
            ]
            for row in self.layers
        ]
        weights, active = (sum(getattr(r, k) for r in self.layers) for k in ("num_weights", "num_active"))
        source = sum(row.num_source for row in self.layers)
        rows.append(
            ["all", "", f"{weights:,}", f"{active:,}", percent(active / weights), percent(source / weights)]
        )
        swapped = f"{self.num_updates} updates swapped {self.num_swaps:,} weights"
        lines = [
            f"{self.method} in {self.source} source, step {self.step}: {swapped}",
            table(["layer", "shape", "weights", "active", "density", "source"], rows),
        ]
        if self.step and not self.num_swaps:
            lines.append("no mask has changed so far: no score has gained enough to pass another one")
        if locked := sum(row.num_locked for row in self.layers):
            lines.append(f"{locked:,} weights are locked in, {source - locked:,} positions are searched")
        lines += [
            f"{name} is not searched ({reason}): {count:,} weights"
            for name, (reason, count) in self.excluded.items()
        ]
        lines.append(
            f"density of the searched layers {percent(self.density)}, of all weights "
            f"{percent(self.weights_density)}, of all parameters {percent(self.model_density)}"
        )
        return "\n".join(lines)


def build_report(search: Search, sites: Mapping[str, ScoreSite], excluded: Mapping[str, str]) -> SearchReport:
    """Count what is active where."""
    rows = [
        ScoreRow(n, s.shape, s.weight.numel(), int(s.mask.sum()), s.capacity, _locked(s))
        for n, s in ((name, site.scored) for name, site in sites.items())
    ]
    weights, active = sum(row.num_weights for row in rows), sum(row.num_active for row in rows)
    sizes = {name: p.numel() for name, p in search.model.named_parameters()}
    left = {name: (why, sizes[name]) for name, why in excluded.items() if name in sizes}
    kept = sum(count for _, count in left.values())
    total = sum(sizes.values())
    return SearchReport(
        search.method.name,
        search.source.name,
        search.step,
        search.num_updates,
        search.num_swaps,
        search.target_count,
        active / weights,
        (active + kept) / (weights + kept),
        (active + total - weights) / total,
        rows,
        left,
    )


def _locked(layer: Scored) -> int:
    return 0 if layer.locked is None else int(layer.locked.sum())
