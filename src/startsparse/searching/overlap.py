"""How alike two sets of masks are, against what chance alone would give at the same counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..masks import Masks
from ..names import nearest
from ..tables import percent, table


@dataclass(frozen=True)
class OverlapRow:
    """Counts of one layer: places, active ones of each mask, and of both."""

    name: str
    num_places: int
    num_first: int
    num_second: int
    num_both: int

    @property
    def expected(self) -> float:
        """Mean of ``num_both`` over random masks of these counts."""
        return self.num_first * self.num_second / self.num_places if self.num_places else 0.0

    @property
    def variance(self) -> float:
        """Variance of ``num_both`` over random masks of these counts (hypergeometric)."""
        n, a, b = self.num_places, self.num_first, self.num_second
        return a * b * (n - a) * (n - b) / (n * n * (n - 1)) if n > 1 else 0.0


@dataclass(frozen=True)
class Overlap:
    """What ``overlap`` found; prints as a table, a row a layer.

    Attributes:
        rows: counts per layer.
    """

    rows: Sequence[OverlapRow]

    def layer(self, name: str) -> Overlap:
        """The overlap of one layer alone."""
        for row in self.rows:
            if row.name == name:
                return Overlap([row])
        raise ValueError(f"no layer {name!r}: {nearest(name, [row.name for row in self.rows])}")

    def _sum(self, what: str) -> float:
        return sum(getattr(row, what) for row in self.rows)

    @property
    def most(self) -> int:
        """The most positions the two could share at these counts."""
        return sum(min(row.num_first, row.num_second) for row in self.rows)

    @property
    def overlap(self) -> float:
        """Shared positions over the most they could share: with equal counts, the share of one mask in the other."""
        return self._sum("num_both") / self.most if self.most else 0.0

    @property
    def jaccard(self) -> float:
        """Shared positions over those of either."""
        either = self._sum("num_first") + self._sum("num_second") - self._sum("num_both")
        return self._sum("num_both") / either if either else 0.0

    @property
    def chance(self) -> float:
        """``overlap`` that independent random masks of the same counts per layer have on average.

        This is not the density: layers that are denser than others share more.
        """
        return self._sum("expected") / self.most if self.most else 0.0

    @property
    def deviation(self) -> float:
        """Standard deviation of ``overlap`` between such random masks."""
        return math.sqrt(self._sum("variance")) / self.most if self.most else 0.0

    @property
    def normalized(self) -> float:
        """0 where chance would do as well, 1 where as much is shared as can be; NaN where chance shares all."""
        room = 1 - self.chance
        return (self.overlap - self.chance) / room if room > 1e-12 else math.nan

    @property
    def deviations(self) -> float:
        """How many standard deviations of chance ``overlap`` lies above it."""
        return (self.overlap - self.chance) / self.deviation if self.deviation else math.nan

    def __str__(self) -> str:
        header = ["layer", "places", "first", "second", "both", "overlap", "chance", "normalized", "Jaccard"]
        parts = [(row.name, Overlap([row])) for row in self.rows] + [("all", self)]
        rows = [
            [
                name,
                *(f"{int(o._sum(k)):,}" for k in ("num_places", "num_first", "num_second", "num_both")),
                percent(o.overlap),
                percent(o.chance),
                f"{o.normalized:.3f}",
                percent(o.jaccard),
            ]
            for name, o in parts
        ]
        return table(header, rows)


def overlap(first: Masks, second: Masks, *, inside: Mapping[str, Tensor] | None = None) -> Overlap:
    """Compare two sets of masks of the same layers, layer by layer and in all.

    Compare masks of the same counts per layer, or it is the budgets of the layers that are compared.

    Args:
        first, second: parameter name -> bool tensor.
        inside: masks of a source in which both lie, so that chance is that of masks drawn in it; default: everywhere.

    Raises:
        ValueError: layers or shapes differ, or a mask leaves ``inside``.

    Example:
        >>> import torch
        >>> a = {"fc": torch.tensor([True, True, False, False])}
        >>> b = {"fc": torch.tensor([True, False, True, False])}
        >>> found = overlap(a, b)
        >>> found.overlap, found.chance, found.normalized, round(found.jaccard, 3)
        (0.5, 0.5, 0.0, 0.333)
    """
    if first.keys() != second.keys():
        raise ValueError(
            f"masks of different layers: {sorted(first.keys() ^ second.keys())} are on one side only"
        )
    rows = []
    for name in first:
        a, b = first[name], second[name].to(first[name].device)
        for mask in (a, b):
            if mask.dtype != torch.bool:
                raise ValueError(f"{name}: a mask is {mask.dtype}, it must be torch.bool (True = active)")
        if a.shape != b.shape:
            raise ValueError(f"{name}: masks of shapes {tuple(a.shape)} and {tuple(b.shape)}")
        places = a.numel()
        if inside is not None:
            source = inside[name].to(a.device)
            if bool(((a | b) & ~source).any()):
                raise ValueError(f"{name}: a mask leaves the source it is said to lie in")
            places = int(source.sum())
        rows.append(OverlapRow(name, places, int(a.sum()), int(b.sum()), int((a & b).sum())))
    return Overlap(rows)


def plot_overlaps(overlaps: Mapping[str, Overlap], path: str) -> None:
    """Draw normalized overlaps, a group of bars a layer and one for all, into a file (its ending says which kind).

    Raises:
        ImportError: matplotlib is missing.
        ValueError: nothing to draw, or overlaps of different layers.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot_overlaps needs matplotlib: pip install 'startsparse[plots]'") from error
    names = {tuple(row.name for row in found.rows) for found in overlaps.values()}
    if len(names) != 1:
        raise ValueError("plot_overlaps draws one or more overlaps of the same layers")
    layers = [*next(iter(names)), "all"]
    figure = Figure(figsize=(2 + 0.25 * len(layers) * (1 + len(overlaps)), 4), layout="constrained")
    axes = figure.add_subplot()
    for number, (label, found) in enumerate(overlaps.items()):
        parts = [found.layer(name) for name in layers[:-1]] + [found]
        at = [index + number / (len(overlaps) + 1) for index in range(len(layers))]
        _ = axes.bar(
            at, [part.normalized for part in parts], 1 / (len(overlaps) + 1), label=label, align="edge"
        )
    axes.set_xticks([index + 0.4 for index in range(len(layers))], layers, rotation=90)
    axes.set_ylabel("overlap above chance")
    axes.set_ylim(top=1)
    _ = axes.legend()
    figure.savefig(path)
