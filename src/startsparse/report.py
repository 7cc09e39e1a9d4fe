"""Where the weights live, per layer and in all: what ``Sparsifier.report()`` returns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .costs import uses_per_sample
from .dynamics import COLUMNS, Dynamics, LayerDynamics
from .flow import Repair, count_dead
from .layers import Layer
from .tables import percent, table

if TYPE_CHECKING:
    from .sparsifier import Sparsifier
    from .topology import Topology


@dataclass(frozen=True)
class LayerRow:
    """One layer: counts of weights, and of units (rows and columns of the weight) without a live weight."""

    name: str
    shape: tuple[int, ...]
    num_weights: int
    num_active: int
    num_nonzero: int
    num_source: int
    dead_units: int
    execution: str = ""

    @property
    def density(self) -> float:
        """Live weights over all weights of the layer."""
        return self.num_active / self.num_weights

    @classmethod
    def total(cls, rows: Sequence[LayerRow]) -> LayerRow:
        """All layers as one row."""
        names = ("num_weights", "num_active", "num_nonzero", "num_source", "dead_units")
        weights, active, nonzero, source, dead = (sum(getattr(row, name) for row in rows) for name in names)
        return cls("all", (), weights, active, nonzero, source, dead)

    def cells(self) -> list[str]:
        """The layer as a row of the report's table."""
        shape, source = "x".join(map(str, self.shape)), percent(self.num_source / self.num_weights)
        counts = [
            f"{self.num_weights:,}",
            f"{self.num_active:,}",
            percent(self.density),
            f"{self.num_nonzero:,}",
        ]
        return [self.name, shape, *counts, source, f"{self.dead_units:,}", self.execution]


@dataclass(frozen=True)
class Report:
    """The state of a sparse model. ``print`` it, or take ``as_dict()``.

    Attributes:
        density: live weights over all weights of the sparse layers.
        model_density: live weights and all other parameters over all parameters of the model.
        figures: what the method keeps count of, as ITOP of the share of weights that were ever live.
    """

    method: str
    source: str
    phase: str
    step: int
    num_updates: int
    num_moved: int
    target_count: int
    density: float
    model_density: float
    layers: list[LayerRow]
    repairs: Mapping[str, Repair]
    reasons: Mapping[str, str]
    figures: Mapping[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def __str__(self) -> str:
        header = [
            "layer",
            "shape",
            "weights",
            "live",
            "density",
            "non-zero",
            "source",
            "dead units",
            "execution",
        ]
        rows = [row.cells() for row in self.layers]
        rows.append(LayerRow.total(self.layers).cells())
        moved = f"{self.num_updates} updates moved {self.num_moved:,} weights"
        lines = [
            f"{self.method} in {self.source} source, step {self.step}, {self.phase}: {moved}",
            table(header, rows),
            f"density of the sparse layers {percent(self.density)}, of all parameters {percent(self.model_density)}",
        ]
        lines += [f"{name} {percent(share)}" for name, share in self.figures.items()]
        lines += [f"{name} runs {reason}" for name, reason in self.reasons.items()]
        for name, repair in self.repairs.items():
            lines.append(
                f"flow repair of {name}: {repair.added:,} added, {repair.removed:,} removed, dead units "
                f"{repair.dead_before:,} -> {repair.dead_after:,}"
            )
        return "\n".join(lines)


def build_report(sparsifier: Sparsifier, layers: Mapping[str, Layer], topology: Topology) -> Report:
    """Count what lives where."""
    rows, views = [], topology.views()
    for name, layer in layers.items():
        site, view = topology.sites[name], views[name]
        row = LayerRow(
            name,
            layer.shape,
            math.prod(layer.shape),
            view.num_active,
            int(layer.parameter.detach().count_nonzero()),
            view.capacity,
            count_dead(site.positions().numpy(), layer.shape, layer.geometry),
            site.execution,
        )
        rows.append(row)
    total = LayerRow.total(rows)
    held = {id(layer.parameter) for layer in layers.values()}
    others = sum(p.numel() for p in sparsifier.model.parameters() if id(p) not in held)
    return Report(
        sparsifier.method.name,
        sparsifier.source.name,
        sparsifier.phase,
        sparsifier.step,
        topology.num_updates,
        topology.num_moved,
        sparsifier.target_count,
        total.density,
        (others + total.num_active) / (others + total.num_weights),
        rows,
        topology.repairs,
        {n: f"{c.execution}: {c.reason}" for n, c in sparsifier.execution.items() if c.reason},
        sparsifier.method.figures(topology.recorder.visited_share(topology.sites)),
    )


def build_dynamics(
    sparsifier: Sparsifier,
    layers: Mapping[str, Layer],
    topology: Topology,
    example_input: Any,
    last: int | None = None,
) -> Dynamics:
    """What the recorder holds, of all or the ``last`` updates, and the topology as it is now."""
    if last is not None and (isinstance(last, bool) or not isinstance(last, int) or last < 1):
        raise ValueError(f"last must be a number of updates, an int >= 1, or None for all, got {last!r}")
    recorder = topology.recorder
    updates = recorder.rows if last is None else recorder.rows[max(0, len(recorder.rows) - last) :]
    uses = {} if example_input is None else uses_per_sample(sparsifier.model, layers, example_input)[0]
    rows = []
    for index, (name, layer) in enumerate(layers.items()):
        site = topology.sites[name]
        live: int = site.num_active
        history = {
            column: [int(row[index, place]) for row in updates] for place, column in enumerate(COLUMNS)
        }
        rows.append(
            LayerDynamics(
                name,
                math.prod(layer.shape),
                recorder.start.get(name, live),
                live,
                recorder.visited(name, live),
                count_dead(site.positions().numpy(), layer.shape, layer.geometry),
                2 * live * uses[name] if uses else None,
                **history,
            )
        )
    return Dynamics(sparsifier.step, recorder.steps[len(recorder.steps) - len(updates) :], rows)
