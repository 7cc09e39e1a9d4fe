"""Where weights may live: the fixed set of positions that may ever be active. Masks are always a subset of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .distributions import Distribution, Scaled, allocate
from .distributions import names as distribution_names
from .draw import Drawn, Permutation
from .flow import POLICIES, Repair, preserve
from .layers import Layer
from .layouts import Layout, parse
from .masks import validate
from .names import nearest
from .scalars import make_plain
from .selection import select


@dataclass(frozen=True)
class Support:
    """The positions of one layer that may live: a draw, a flat bool tensor, or None for all of them.

    Those ``locked`` of them (flat bool; None: none) are always active, with the values they had at first.
    """

    positions: Drawn | Tensor | None = None
    repair: Repair | None = None
    locked: Tensor | None = None

    def mask(self) -> Tensor | None:
        """Flat bool, or None for all positions."""
        if isinstance(self.positions, Drawn):
            return torch.from_numpy(self.positions.mask())
        return self.positions


@dataclass(frozen=True)
class DenseSource:
    """Every position may live.

    Example:
        >>> DenseSource().supports({})
        {}
    """

    name: ClassVar[str] = "dense"

    def supports(self, layers: Mapping[str, Layer]) -> dict[str, Support]:
        """The support of every layer."""
        return {name: Support() for name in layers}


@dataclass(frozen=True)
class RandomSource:
    """A random set of positions, drawn from a seed: every search and every growth stays inside it.

    Args:
        density: positions of the source over all weights of the sparse layers, in (0, 1].
        distribution: how the positions are shared among the layers.
        seed: of the draw; the same seed and layer name give the same positions anywhere, and a larger density keeps
            all positions of a smaller one where the layer's count grows.
        draw: "exact" (each layer's count to the weight) or "bernoulli" (each position for itself, the theory's
            Erdos-Renyi source).
        flow: "none", "add" or "keep_budget": repair dead units, see ``startsparse.flow``.
        layout: "unstructured", or a pattern of ``startsparse.layouts``: "2:4", "block:4x4", "fan_in", "channel".
            Counts are then the nearest multiples of the layout's quantum.

    References:
        Gadhikar et al. 2023, https://arxiv.org/abs/2210.02412

    Example:
        >>> RandomSource(0.3, "balanced").density
        0.3
    """

    density: float
    distribution: Distribution = "erk"
    seed: int = 0
    draw: str = "exact"
    flow: str = "none"
    layout: str = "unstructured"
    name: ClassVar[str] = "random"

    def __post_init__(self):
        make_plain(self)
        if (
            isinstance(self.density, bool)
            or not isinstance(self.density, int | float)
            or not 0 < self.density <= 1
        ):
            raise ValueError(f"RandomSource: density must be in (0, 1], got {self.density!r}")
        if isinstance(self.distribution, str) and self.distribution not in distribution_names():
            known = nearest(self.distribution, distribution_names())
            raise ValueError(f"RandomSource: unknown distribution {self.distribution!r}: {known}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"RandomSource: seed must be an int, got {self.seed!r}")
        for field, allowed in (("draw", ("exact", "bernoulli")), ("flow", POLICIES)):
            value = getattr(self, field)
            if value not in allowed:
                raise ValueError(f"RandomSource: unknown {field} {value!r}: {nearest(str(value), allowed)}")
        self._check_layout(parse(self.layout))

    def _check_layout(self, layout: Layout) -> None:
        share = layout.numbers[0] / layout.numbers[1]
        if layout.kind == "n:m" and self.density != share:
            raise ValueError(
                f"RandomSource: layout {layout} has density {share:g}, got density={self.density!r}"
            )
        if layout.kind != "unstructured" and (self.draw != "exact" or self.flow != "none"):
            raise ValueError(
                f"RandomSource: layout {layout} is drawn exactly, unrepaired: leave draw and flow"
            )

    def supports(self, layers: Mapping[str, Layer]) -> dict[str, Support]:
        """The support of every layer."""
        layout, shapes = parse(self.layout), {name: layer.shape for name, layer in layers.items()}
        layout.check(shapes)
        turned = [name for name, layer in layers.items() if layer.geometry.transposed]
        if turned and layout.kind != "unstructured":
            raise ValueError(
                f"RandomSource: layout {layout} groups the inputs of an output, but {', '.join(turned)} has its inputs "
                "first (a transposed convolution, or Conv1D of transformers): leave it out with "
                f"layers={[f'!{name}' for name in turned]}, or take layout='unstructured'"
            )
        counts = allocate("uniform" if layout.kind == "n:m" else self.distribution, shapes, self.density)
        return {name: self._support(layer, counts[name]) for name, layer in layers.items()}

    def _support(self, layer: Layer, count: int) -> Support:
        size = math.prod(layer.shape)
        drawn = Drawn("exact", self.seed, layer.name, size, count=count)
        layout = parse(self.layout)
        if layout.kind != "unstructured":
            ranks = Permutation(size, "exact", self.seed, layer.name).ranks(np.arange(size))
            scores = torch.from_numpy(size - ranks).view(layer.shape)
            return Support(select(scores, count, layout, what=layer.name).view(-1))
        if self.draw == "bernoulli":
            # words of its own: a mask drawn in it with the same seed must not know them
            drawn = Drawn("bernoulli", self.seed, f"source:{layer.name}", size, density=count / size)
        if self.flow == "none":
            return Support(drawn)
        mask, repair = preserve(drawn.mask(), layer.shape, layer.geometry, self.seed, layer.name, self.flow)
        return Support(torch.from_numpy(mask), repair)


@dataclass(frozen=True)
class LockedSource(RandomSource):
    """A random set of positions to search, and others that are locked in: always active, never moved, never pruned.

    Of the positions a ``RandomSource`` removes, a share is kept instead. A strong ticket inside a random source is
    sparser than the source; with weights locked in, it may be denser than what is searched. Positions that are removed or
    locked in need no score. Locked weights are part of every mask and every count. For ``ss.search`` with scores that are
    ranked; what trains weights refuses it.

    Args:
        density: positions that are searched, over all weights of the sparse layers, in (0, 1].
        distribution, seed, draw: of these, as for ``RandomSource``, whose positions they are.
        share: of the other positions of each layer, in [0, 1]: drawn by the same seed, and locked in.

    References:
        Otsuka et al., Partially Frozen Random Networks Contain Compact Strong Lottery Tickets, 2024 (random
        pruning and locking), https://arxiv.org/abs/2402.14029

    Fidelity:
        Theirs fixes the shares of weights that are frozen, and of these that are locked in, for all layers alike: that is
        ``distribution="uniform"``.

    Example:
        >>> from startsparse.layers import find
        >>> layer = find(torch.nn.Linear(10, 10))
        >>> support = LockedSource(0.3, "uniform", share=0.5).supports(layer)["weight"]
        >>> int(support.mask().sum()), int(support.locked.sum())
        (65, 35)
    """

    share: float = 0.5
    name: ClassVar[str] = "locked"

    def __post_init__(self):
        super().__post_init__()
        if (
            isinstance(self.share, bool)
            or not isinstance(self.share, int | float)
            or not 0 <= self.share <= 1
        ):
            raise ValueError(f"LockedSource: share must be in [0, 1], got {self.share!r}")
        if self.flow != "none" or self.layout != "unstructured":
            raise ValueError(
                "LockedSource: positions are drawn one by one and unrepaired: leave flow and layout"
            )

    def _support(self, layer: Layer, count: int) -> Support:
        searched = super()._support(layer, count).positions
        assert isinstance(searched, Drawn)
        # a denser draw of the same seed holds all positions of a thinner one: what it adds is locked in
        if self.draw == "bernoulli":
            density = count / searched.size
            both = dataclasses.replace(searched, density=density + self.share * (1 - density))
        else:
            both = dataclasses.replace(searched, count=count + round(self.share * (searched.size - count)))
        return Support(both, locked=torch.from_numpy(both.mask() & ~searched.mask()))


@dataclass(frozen=True)
class ZerosSource:
    """The weights that are not zero at attachment: what an earlier pruning or a checkpoint left.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> _ = layer.weight.data.fill_diagonal_(0)
        >>> from startsparse.layers import find
        >>> ZerosSource().supports(find(layer))["weight"].mask()
        tensor([False,  True,  True, False])
    """

    name: ClassVar[str] = "zeros"

    def supports(self, layers: Mapping[str, Layer]) -> dict[str, Support]:
        """The support of every layer; a weight that holds no zero is all of it."""
        return {name: Support(layer.parameter.detach().reshape(-1) != 0) for name, layer in layers.items()}


@dataclass(frozen=True)
class MaskSource:
    """Given masks, for some layers or all: name -> bool tensor of the weight's shape; unnamed layers are free.

    Example:
        >>> from startsparse.layers import find
        >>> source = MaskSource({"weight": torch.tensor([[True, False]])})
        >>> source.supports(find(torch.nn.Linear(2, 1)))["weight"].mask()
        tensor([ True, False])
    """

    masks: Mapping[str, Tensor]
    name: ClassVar[str] = "masks"

    def supports(self, layers: Mapping[str, Layer]) -> dict[str, Support]:
        """The support of every layer."""
        for name in self.masks:
            if name not in layers:
                raise ValueError(f"MaskSource: {name!r} is not a sparse layer: {nearest(name, list(layers))}")
        validate(self.masks, {name: layers[name].shape for name in self.masks})
        return {
            name: Support(self.masks[name].reshape(-1).clone() if name in self.masks else None)
            for name in layers
        }


Source = DenseSource | RandomSource | LockedSource | ZerosSource | MaskSource

_BY_NAME: dict[str, type] = {
    kind.name: kind for kind in (DenseSource, RandomSource, LockedSource, ZerosSource)
}


def names() -> list[str]:
    """Names of the sources that plain data can describe."""
    return sorted(_BY_NAME)


def make(name: str, **parameters: Any) -> Source:
    """A source by name.

    Raises:
        ValueError: unknown name or parameter, or a value out of range.

    Example:
        >>> make("random", density=0.3).distribution
        'erk'
    """
    if name not in _BY_NAME:
        raise ValueError(f"unknown source {name!r}: {nearest(name, names())}")
    kind = _BY_NAME[name]
    known = [field.name for field in dataclasses.fields(kind)]
    for given in parameters:
        if given not in known:
            raise ValueError(
                f"source {name} has no parameter {given!r}: {nearest(given, known) if known else 'none'}"
            )
    if "density" in known and "density" not in parameters:
        raise ValueError(f"source {name} needs a density in (0, 1]")
    distribution = parameters.get("distribution")
    if isinstance(distribution, dict) and set(distribution) == {"scaled"}:
        parameters = parameters | {"distribution": Scaled(distribution["scaled"])}
    return kind(**parameters)


def refuse_locked(source: Source | None) -> None:
    """Refuse a source with weights that are locked in, where weights are trained.

    Raises:
        ValueError: says what does for training, and where such a source belongs.
    """
    if isinstance(source, LockedSource):
        raise ValueError(
            "a source with weights locked in is for ss.search, where no weight moves; for training take "
            f"ss.RandomSource(density={source.density:g}, distribution={source.distribution!r}, seed={source.seed})"
        )


def or_dense(source: Source | None) -> Source:
    """The source itself, everywhere if there is none.

    Raises:
        TypeError: it is no source.

    Example:
        >>> or_dense(0.3)
        Traceback (most recent call last):
        TypeError: source must be a source such as ss.RandomSource(0.3), or None, got 0.3
    """
    if source is None:
        return DenseSource()
    if not hasattr(source, "supports") or isinstance(source, type):
        raise TypeError(f"source must be a source such as ss.RandomSource(0.3), or None, got {source!r}")
    return source


def describe(source: Source) -> dict[str, Any]:
    """The source as plain data: its name and parameters (masks given by hand are only named)."""
    if isinstance(source, MaskSource):
        return {"name": source.name, "layers": sorted(source.masks)}
    fields = {field.name: getattr(source, field.name) for field in dataclasses.fields(source)}
    if isinstance(fields.get("distribution"), Scaled):
        fields["distribution"] = {"scaled": dict(fields["distribution"].base)}
    return {"name": source.name} | fields
