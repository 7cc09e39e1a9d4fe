"""How a topology has moved: what changed at each update, how much was ever visited, what it looks like now.

A ``Recorder`` notes a few integers an update and which positions were ever live (at most one bit a weight), and nothing
at steps without one. ``Sparsifier.dynamics()`` makes a ``Dynamics`` of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .methods import Change
from .tables import percent, table
from .visited import Mark, Visited

MOST = 2048  # updates that are kept apart; beyond, neighbours are added up
COLUMNS = ("dropped", "grown", "returned", "live")


class _Site(Protocol):
    shape: tuple[int, ...]

    def positions(self) -> Tensor: ...

    @property
    def num_active(self) -> int: ...


class Recorder:
    """What has happened so far, of every layer.

    Args:
        sizes: layer name -> weights.

    Attributes:
        mark: a quick way to set bits, if there is one.
        steps: of the updates that are kept apart.
        rows: for each of them (layers, 4) int64: dropped, grown, returned in the same update, live afterwards.
        start: layer name -> live weights before the first update; empty before it.
    """

    def __init__(self, sizes: Mapping[str, int]):
        self._sizes = dict(sizes)
        self.mark: Mark | None = None
        self._visited: dict[str, Visited] = {}
        self.steps: list[int] = []
        self.rows: list[np.ndarray] = []
        self.start: dict[str, int] = {}

    def before(self, sites: Mapping[str, _Site]) -> None:
        """Called before every update is carried out: at the first one, notes where weights live."""
        if self.start:
            return
        self.start = {name: site.num_active for name, site in sites.items()}
        for name, site in sites.items():
            self._visited[name] = Visited(self._sizes[name])
            self._visited[name].add(site.positions())

    def after(self, step: int, changes: Mapping[str, Change], live: Mapping[str, int]) -> None:
        """Called after every update: what changed, and how many live in each layer now."""
        row = np.zeros((len(self._sizes), len(COLUMNS)), np.int64)
        for index, name in enumerate(self._sizes):
            change = changes.get(name)
            row[index, 3] = live[name]
            if change is not None:
                row[index, :3] = len(change.dropped), len(change.grown), change.returned
                self._visited[name].add(change.grown.cpu(), self.mark)
        self.steps.append(step)
        self.rows.append(row)
        if len(self.rows) > 2 * MOST:
            self._merge()

    def _merge(self) -> None:
        """Two neighbouring updates become one."""
        pairs = list(zip(self.rows[::2], self.rows[1::2], strict=False))
        odd = self.rows[2 * len(pairs) :]
        self.rows = [np.concatenate([a[:, :3] + b[:, :3], b[:, 3:]], axis=1) for a, b in pairs] + odd
        self.steps = self.steps[1::2] + self.steps[2 * len(pairs) :]

    def visited(self, name: str, live: int) -> int:
        """How many positions of a layer were ever live; ``live`` are those of now, before any update all there are."""
        if name not in self._visited:
            return live
        return len(self._visited[name])

    def visited_share(self, sites: Mapping[str, _Site]) -> float:
        """Positions that were ever live over all."""
        return sum(self.visited(n, site.num_active) for n, site in sites.items()) / sum(self._sizes.values())

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors."""
        return {
            "steps": list(self.steps),
            "rows": torch.from_numpy(np.stack(self.rows)) if self.rows else None,
            "start": dict(self.start),
            "visited": {name: seen.state() for name, seen in self._visited.items()},
        }

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go on from ``state_dict()``; None, of an older file, begins anew."""
        state = state or {"steps": [], "rows": None, "start": {}, "visited": {}}
        self.steps = list(state["steps"])
        self.rows = [] if state["rows"] is None else list(state["rows"].numpy().copy())
        self.start = dict(state["start"])
        self._visited = {n: Visited(self._sizes[n], seen) for n, seen in state["visited"].items()}


@dataclass(frozen=True)
class LayerDynamics:
    """How one layer has moved.

    Attributes:
        num_start, num_active: live weights before the first update and now.
        num_visited: positions that were ever live.
        dead_units: rows and columns of the weight without a live weight, now.
        flops: of inference, one sample, now; None without ``example_input``.
        dropped, grown, returned, live: per update: weights that went, that came, that went and came back at once, and
            that live afterwards.
    """

    name: str
    num_weights: int
    num_start: int
    num_active: int
    num_visited: int
    dead_units: int
    flops: float | None
    dropped: list[int]
    grown: list[int]
    returned: list[int]
    live: list[int]

    @property
    def density(self) -> float:
        """Live weights over all weights, now."""
        return self.num_active / self.num_weights

    @property
    def exploration(self) -> float:
        """Positions that were ever live over all."""
        return self.num_visited / self.num_weights


@dataclass(frozen=True)
class Dynamics:
    """How a topology has moved so far. ``print`` it, or take ``as_dict()``.

    Attributes:
        steps: of the updates; of very many, neighbours are added up.

    Example:
        >>> row = LayerDynamics("fc", 100, 10, 10, 14, 0, None, [2, 2], [2, 2], [1, 0], [10, 10])
        >>> moved = Dynamics(250, [100, 200], [row])
        >>> moved.exploration, moved.churn, moved.densities
        (0.14, [0.2, 0.2], {'fc': [0.1, 0.1, 0.1]})
    """

    step: int
    steps: list[int]
    layers: list[LayerDynamics]

    @property
    def exploration(self) -> float:
        """Positions that were ever live over all: the in-time over-parameterisation rate R_s.

        References:
            Liu et al., Do We Actually Need Dense Over-Parameterization?, ICML 2021, section 3,
            https://arxiv.org/abs/2102.02887
        """
        return sum(row.num_visited for row in self.layers) / sum(row.num_weights for row in self.layers)

    @property
    def churn(self) -> list[float]:
        """The share of live weights that each update replaced or removed; those that came back at once do not count."""
        shares = []
        for index in range(len(self.steps)):
            dropped = sum(row.dropped[index] for row in self.layers)
            before = sum(row.live[index] - row.grown[index] for row in self.layers) + dropped
            shares.append(dropped / before if before else 0.0)
        return shares

    @property
    def growth_shares(self) -> dict[str, list[float]]:
        """Layer name -> its share of each update's growth, what came back at once included.

        For GGR: the share of the globally largest gradients that lie in the layer.
        """
        totals = [sum(row.grown[i] + row.returned[i] for row in self.layers) for i in range(len(self.steps))]
        return {
            row.name: [
                (grown + back) / total if total else 0.0
                for grown, back, total in zip(row.grown, row.returned, totals, strict=True)
            ]
            for row in self.layers
        }

    @property
    def densities(self) -> dict[str, list[float]]:
        """Layer name -> its density before the first update and after each."""
        return {
            row.name: [count / row.num_weights for count in (row.num_start, *row.live)] for row in self.layers
        }

    @property
    def flops(self) -> float | None:
        """FLOPs of inference of the sparse layers as they are now, one sample, counted; None without an example."""
        counted = [row.flops for row in self.layers if row.flops is not None]
        return math.fsum(counted) if counted else None

    def summary(self) -> dict[str, Any]:
        """The figures of now, as plain data for a log."""
        return {
            "density": {row.name: row.density for row in self.layers},
            "exploration": self.exploration,
            "churn": self.churn[-1] if self.steps else 0.0,
            "dead_units": sum(row.dead_units for row in self.layers),
        } | ({} if self.flops is None else {"inference_flops": self.flops})

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"exploration": self.exploration, "churn": self.churn, "flops": self.flops}

    def __str__(self) -> str:
        header = [
            "layer",
            "density at start",
            "now",
            "ever live",
            "last growth",
            "dead units",
            "FLOPs/sample",
        ]
        shares = self.growth_shares
        rows = [
            [
                row.name,
                percent(row.num_start / row.num_weights),
                percent(row.density),
                percent(row.exploration),
                percent(shares[row.name][-1]) if self.steps else "-",
                f"{row.dead_units:,}",
                "?" if row.flops is None else f"{row.flops:,.0f}",
            ]
            for row in self.layers
        ]
        churn = f", the last one moved {percent(self.churn[-1])} of the live weights" if self.steps else ""
        return (
            f"step {self.step}: {len(self.steps)} updates{churn}; {percent(self.exploration)} of all weights were ever "
            f"live\n{table(header, rows)}"
        )
