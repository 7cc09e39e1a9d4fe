"""Random sparse sources: described by a few numbers, drawn where they are looked at, never stored when they are huge."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from ..draw import Drawn, bernoulli
from .graph import Target
from .widths import check_density, check_probability, factors, input_units

INPUTS = "inputs"  # name of a source's first layer: the copies of the inputs
_STORED = 1 << 22  # layers of at most so many positions are drawn whole, once
_PART = 1 << 24  # positions looked at together


@dataclass
class SourceLayer:
    """The positions of one weight layer of a source: (outputs, inputs / groups, taps), each active or not.

    Args:
        name: of the layer; the draw depends on it.
        outputs: units it writes.
        inputs: units it reads, of all groups.
        taps: positions from one unit to another.
        groups: outputs of a group read the inputs of that group alone.
        density: probability that a position is active.
        seed: of the draw; None where ``mask`` is given.
        mask: (outputs, inputs / groups * taps), bool.
    """

    name: str
    outputs: int
    inputs: int
    taps: int
    groups: int
    density: float
    seed: int | None = None
    mask: np.ndarray | None = field(default=None, repr=False)

    @property
    def width(self) -> int:
        """Positions of one output unit."""
        return self.inputs // self.groups * self.taps

    @property
    def size(self) -> int:
        """Positions in all."""
        return self.outputs * self.width

    @property
    def drawn(self) -> Drawn:
        """The draw, as ``RandomSource(draw="bernoulli")`` would make it."""
        return Drawn(
            "bernoulli", self.seed or 0, f"source:{self.name}.weight", self.size, density=self.density
        )

    def rows(self, units: np.ndarray) -> np.ndarray:
        """Active positions of some output units, (len(units), inputs / groups, taps), bool."""
        if self.mask is None and self.size <= _STORED:
            self.mask = self.drawn.mask().reshape(self.outputs, self.width)
        if self.mask is not None:
            found = self.mask[units]
        else:
            found = np.concatenate(
                [self._draw(int(run[0]), int(run[-1]) + 1) for run in _runs(units)]
                or [np.empty((0, self.width), bool)]
            )
        return found.reshape(len(units), self.width // self.taps, self.taps)

    def parts(self, units: np.ndarray) -> Iterator[np.ndarray]:
        """The units in parts that can be looked at together."""
        step = max(1, _PART // max(1, self.width))
        for start in range(0, len(units), step):
            yield units[start : start + step]

    def _draw(self, start: int, stop: int) -> np.ndarray:
        drawn, width = self.drawn, self.width
        flat = bernoulli(drawn.size, self.density, drawn.seed, drawn.name, start * width, stop * width)
        return flat.reshape(stop - start, width)

    def as_list(self) -> list[Any]:
        """The layer as plain data."""
        return [self.name, self.outputs, self.inputs, self.taps, self.groups, self.density]


def _runs(units: np.ndarray) -> list[np.ndarray]:
    """Split into runs of consecutive numbers."""
    return np.split(units, np.flatnonzero(np.diff(units) != 1) + 1) if len(units) else []


@dataclass
class Source:
    """A random sparse source net: its layers' shapes, densities and seed; masks come into being where looked at.

    Attributes:
        layers: name -> layer; the first is the copies of the inputs, the others are named as in the target.
        copies: group of target units -> copies of each unit; empty for a source that was given as a module.
        seed: of all draws; None for a given one.

    Example:
        >>> from startsparse.theory.tracing import trace
        >>> target = trace(nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 10)))
        >>> source = random_source(target, 0.1, seed=1)
        >>> source.positions
        10553412312
        >>> bool(0.099 < source.layers["0"].rows(np.array([7])).mean() < 0.101)
        True
    """

    layers: dict[str, SourceLayer]
    copies: dict[str, int] = field(default_factory=dict)
    seed: int | None = None

    @property
    def positions(self) -> int:
        """Positions of all layers, active or not."""
        return sum(layer.size for layer in self.layers.values())

    @property
    def expected_edges(self) -> int:
        """Active positions to be expected (a given source: those it has)."""
        return round(sum(layer.size * layer.density for layer in self.layers.values()))

    def describe(self) -> dict[str, Any]:
        """The source as plain data: all that is needed to draw it again, or the hash of given masks."""
        layers = [layer.as_list() for layer in self.layers.values()]
        if self.seed is not None:
            return {"rule": "bernoulli", "seed": self.seed, "layers": layers, "copies": dict(self.copies)}
        digest = hashlib.sha256()
        for layer in self.layers.values():
            assert layer.mask is not None
            digest.update(np.packbits(layer.mask).data)
        return {"rule": "masks", "sha256": digest.hexdigest(), "layers": layers}


def from_description(plain: Mapping[str, Any]) -> Source:
    """The random source that ``describe`` wrote down."""
    seed = int(plain["seed"])
    layers = [SourceLayer(*fields, seed=seed) for fields in plain["layers"]]
    for layer in layers:
        check_density(layer.density, f"{layer.name}: density")
    return Source({layer.name: layer for layer in layers}, dict(plain["copies"]), seed)


def random_source(
    target: Target,
    density: float | Mapping[str, float],
    delta: float = 0.1,
    seed: int = 0,
    *,
    signs: int = 2,
    shrink: float = 1.0,
) -> Source:
    """The source the theory asks for: wide enough that a target of this shape is held with probability 1 - delta.

    Failure is shared equally among the L weight layers of the target and the first layer, which is random too: its
    units stand for an input they see.

    Args:
        target: shapes and non-zero weights are used, not their values.
        density: one number, or layer -> density (``"inputs"`` is the first layer).
        delta: probability of failure.
        seed: of the draw.
        signs: 2 to copy each input as max(x, 0) and max(-x, 0), 1 where one is enough.
        shrink: factor on all numbers of copies: below 1 there is no guarantee any more.

    References:
        Gadhikar et al. 2023, theorem 2.2, as recalled; the share of the first layer and of tied groups is derived here.
    """
    check_probability(delta)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed must be an int, got {seed!r}")
    names = [INPUTS, *target.layers]
    if isinstance(density, Mapping):
        if set(density) != set(names):
            raise ValueError(f"density must name the layers {names}, got {sorted(density)}")
        densities = {name: check_density(density[name], f"density of {name}") for name in names}
    else:
        densities = dict.fromkeys(names, check_density(density))
    links, last = target.links(densities, signs), target.nodes[target.output].group
    if any(link.reads == last for link in links):
        raise ValueError("the output of the target is also read inside it: end it with a layer of its own")
    events = len(links) + 1
    copies = factors(links, delta, events, {last: 1})
    entry = target.nodes[target.entry].group
    copies = {name: q if name == last else max(1, round(q * shrink)) for name, q in copies.items()}
    groups = target.input_groups
    share = delta / events / groups
    units = groups * input_units(target.inputs // groups, densities[INPUTS], signs * copies[entry], share)
    layers = [SourceLayer(INPUTS, units, target.inputs, 1, groups, densities[INPUTS], seed)]
    for name, affine in target.layers.items():
        reads, writes = target.group_of(name)
        inputs = units if reads == entry else affine.inputs * copies[reads]
        outputs = affine.outputs * copies[writes]
        layers.append(SourceLayer(name, outputs, inputs, affine.taps, affine.groups, densities[name], seed))
    return Source({layer.name: layer for layer in layers}, copies, seed)


def given_source(model: nn.Module, target: Target) -> Source:
    """The source in a module: a plain feed-forward net, one layer deeper than the target, its zeros are its mask.

    Raises:
        ValueError: it does not fit the target; the layer is named.
    """
    from .tracing import trace

    net = trace(model)
    mine, theirs = list(net.layers.items()), list(target.layers.items())
    if any(node.kind in ("add", "lift") for node in [*net.nodes.values(), *target.nodes.values()]):
        raise ValueError("a source given as a module must be a plain chain, and so must its target")
    if len(mine) != len(theirs) + 1:
        raise ValueError(
            f"the source has {len(mine)} weight layers, a target of {len(theirs)} needs {len(theirs) + 1}"
        )
    first_name, first = mine[0]
    if (first.inputs, first.taps, first.groups) != (target.inputs, 1, target.input_groups):
        raise ValueError(
            f"the source's first layer {first_name} reads {first.inputs} inputs ({first.taps} taps, {first.groups} groups): it "
            f"must read the target's {target.inputs} one by one (1 tap, {target.input_groups} groups)"
        )
    if first.geometry is not None and (first.geometry.stride, first.geometry.padding) != ((1, 1), (0, 0)):
        raise ValueError(f"the source's first layer {first_name} must copy its inputs: stride 1, no padding")
    layers = {INPUTS: _stored(INPUTS, first.weight, first.groups)}
    for (source_name, source), (name, affine) in zip(mine[1:], theirs, strict=True):
        if (source.geometry, source.groups, source.taps) != (affine.geometry, affine.groups, affine.taps):
            raise ValueError(f"the source's layer {source_name} moves over its input otherwise than {name}")
        layers[name] = _stored(name, source.weight, source.groups)
    wide = layers[theirs[-1][0]].outputs
    if wide != theirs[-1][1].outputs:
        raise ValueError(f"the source has {wide} outputs, the target {theirs[-1][1].outputs}")
    return Source(layers)


def _stored(name: str, weight: np.ndarray, groups: int) -> SourceLayer:
    mask = (weight != 0).reshape(len(weight), -1)
    return SourceLayer(
        name, len(weight), weight.shape[1] * groups, weight.shape[2], groups, float(mask.mean()), None, mask
    )


def as_tensor(layer: SourceLayer) -> torch.Tensor:
    """The whole mask of a layer, (outputs, inputs / groups, taps), bool; for layers that fit into memory."""
    return torch.from_numpy(layer.rows(np.arange(layer.outputs)))
