"""A target as the theory sees it: weight layers that join groups of units, and operations that treat units alike.

Only affine layers mix units. Everything else (activations, pooling, flattening, addition) acts on each unit by itself, so
copies of a unit pass through it as copies. Additions tie the groups of what they add: copy k meets copy k.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from .widths import Link


@dataclass(frozen=True)
class Geometry:
    """How a convolution moves over its image: (height, width) of each."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


@dataclass
class Affine:
    """A Linear or Conv2d layer, batch norm folded in, in float64.

    Attributes:
        weight: (units out, units in of one group, taps); a Linear behind a flattened image has a tap a pixel.
        bias: (units out,).
        groups: of a grouped convolution.
        geometry: of a convolution; None for a Linear layer.
        slack: (units out,) what the target adds and takes away in a batch norm that was folded: it rounds there.
    """

    weight: np.ndarray
    bias: np.ndarray
    groups: int = 1
    geometry: Geometry | None = None
    slack: np.ndarray = field(default_factory=lambda: np.zeros(1))

    @property
    def outputs(self) -> int:
        """Units written."""
        return self.weight.shape[0]

    @property
    def inputs(self) -> int:
        """Units read, of all groups."""
        return self.weight.shape[1] * self.groups

    @property
    def taps(self) -> int:
        """Weights from one unit to another."""
        return self.weight.shape[2]


@dataclass
class Node:
    """One value of the target.

    Attributes:
        name: of the layer or operation.
        kind: "input", "raw" (before any weight), "affine", "each" (unit by unit), "flatten", "add" or "lift".
        reads: names of the values it is made of.
        channels: number of units; 0 where the target does not say (raw values).
        group: units of one group have equally many copies.
        affine: of an affine node.
        run: what an "each" or "raw" node does.
        shift: of a "lift": new empty units before and behind.
        rounding: how many roundings an "each" node adds (a mean over 9 values: 9).
        ceiling: a bound of what an "each" node gives, where it has one of its own.
    """

    name: str
    kind: str
    reads: tuple[str, ...] = ()
    channels: int = 0
    group: str = ""
    affine: Affine | None = None
    run: Callable[[Tensor], Tensor] | None = None
    shift: tuple[int, int] = (0, 0)
    rounding: int = 1
    ceiling: float = np.inf


@dataclass
class Target:
    """A traced net.

    Attributes:
        nodes: name -> node, each after those it reads.
        entry: the value the first weight layers read.
        output: the value the net returns.
        digest: sha256 of its weight layers.
    """

    nodes: dict[str, Node]
    entry: str
    output: str
    digest: str = field(default="", init=False)

    def __post_init__(self):
        digest = hashlib.sha256()
        for node in self.nodes.values():
            digest.update(f"{node.kind}|{node.reads}|{node.channels}|{node.shift}|".encode())
            if node.affine is not None:
                digest.update(
                    f"{node.affine.weight.shape}|{node.affine.groups}|{node.affine.geometry}|".encode()
                )
                digest.update(np.ascontiguousarray(node.affine.weight, "<f8").data)
                digest.update(np.ascontiguousarray(node.affine.bias, "<f8").data)
        self.digest = digest.hexdigest()

    @property
    def layers(self) -> dict[str, Affine]:
        """The weight layers by name, in order."""
        return {name: node.affine for name, node in self.nodes.items() if node.affine is not None}

    @property
    def readers(self) -> dict[str, list[str]]:
        """Value -> the nodes that read it."""
        found: dict[str, list[str]] = {name: [] for name in self.nodes}
        for name, node in self.nodes.items():
            for read in node.reads:
                found[read].append(name)
        return found

    @property
    def inputs(self) -> int:
        """Units of the entry."""
        return self._first[0].inputs

    @property
    def input_groups(self) -> int:
        """Groups of the layers that read the entry."""
        return self._first[0].groups

    @property
    def pads_input(self) -> bool:
        """Whether a layer that reads the entry pads it with zeros."""
        return any(layer.geometry is not None and max(layer.geometry.padding) > 0 for layer in self._first)

    @property
    def _first(self) -> list[Affine]:
        return [a for name in self.readers[self.entry] if (a := self.nodes[name].affine) is not None]

    def group_of(self, layer: str) -> tuple[str, str]:
        """The groups a weight layer reads and writes."""
        node = self.nodes[layer]
        return self.nodes[node.reads[0]].group, node.group

    def links(self, densities: dict[str, float], signs: int = 1) -> list[Link]:
        """The layers as width factors need them; with two ``signs`` each weight on the entry counts twice."""
        entry = self.nodes[self.entry].group
        found = []
        for name, layer in self.layers.items():
            reads, writes = self.group_of(name)
            count = int(np.count_nonzero(layer.weight)) * (signs if reads == entry else 1)
            found.append(Link(count, densities[name], reads, writes))
        return found
