"""Which target unit each source unit stands for, and which source units are needed: the whole of the embedding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .adaptive import give_out, readers_of
from .entrance import SourceTooNarrow, signed_weight, stand_for, table_of
from .graph import Node, Target
from .source import INPUTS, Source
from .wiring import Demand, Edges, feasible, wire

ASSIGNMENTS = ("block", "strict", "adaptive")


@dataclass
class Assignment:
    """Units by what they serve, for every value of the target that has copies.

    Attributes:
        serves: weight layer (or ``"inputs"``) -> channel each source unit serves, -1 for none.
        signs: 1 or 2, of the inputs.
    """

    serves: dict[str, np.ndarray]
    signs: int


@dataclass
class Wired:
    """A finished embedding: the edges of each layer's needed units, and the units of the first layer."""

    edges: dict[str, Edges]
    inputs: np.ndarray
    serves: np.ndarray


def assign(target: Target, source: Source, signs: int, how: str) -> Assignment:
    """Give every source unit a target unit to serve.

    Args:
        how: "block" and "strict" give each target unit equally many source units, in order, whatever they see; "adaptive"
            lets a unit serve any channel all of whose parents it sees, those whose readers lack it most first. Units that
            meet others at an addition are given out in blocks: copy k of one side has to meet copy k of the other.

    Raises:
        SourceTooNarrow: "strict" where one unit does not see all its parents, "adaptive" where a channel gets no unit.
    """
    entry = target.nodes[target.entry].group
    layer = source.layers[INPUTS]
    copies = source.copies.get(entry, layer.outputs // (signs * target.inputs))
    found = {INPUTS: stand_for(source, target.inputs, target.input_groups, signs, copies)}
    failed = {name: np.zeros(source.layers[name].outputs, bool) for name in target.layers}
    ties = _ties(target)
    for name, affine in target.layers.items():
        units, channels = source.layers[name].outputs, affine.outputs
        if units < channels:
            raise SourceTooNarrow(
                f"the source's layer {name} has {units} units for the {channels} of the target"
            )
        free = how == "adaptive" and _is_free(target, name, ties)
        bad = _spread(target, source, failed) if how == "adaptive" and ties else None
        if free and units > channels:
            want = demand(target, source, Assignment(found, signs), name, bad)
            found[name] = give_out(want, name, readers_of(target, source, name))
            continue
        found[name] = _blocks(units, channels)
        if how == "strict" or (free and units == channels):
            want = demand(target, source, Assignment(found, signs), name, bad)
            _all_served(target, want, found[name], name)
        elif how == "adaptive":
            failed[name] = _unserved(demand(target, source, Assignment(found, signs), name, bad), found[name])
    return Assignment(found, signs)


def _ties(target: Target) -> set[str]:
    """Groups whose units meet those of another layer."""
    return {node.group for node in target.nodes.values() if node.kind in ("add", "lift")}


def _is_free(target: Target, name: str, ties: set[str]) -> bool:
    """Whether the units of a layer may serve in any order: they meet no others, and one layer reads them."""
    readers, at = target.readers, name
    while len(readers[at]) == 1 and target.nodes[at].group not in ties:
        at = readers[at][0]
        if target.nodes[at].affine is not None:
            return True
    return at == target.output and target.nodes[at].group not in ties


def demand(
    target: Target,
    source: Source,
    assignment: Assignment,
    name: str,
    bad: dict[str, np.ndarray] | None = None,
) -> Demand:
    """What a weight layer needs, given who serves whom before it; units that are ``bad`` serve nobody."""
    read = target.nodes[target.nodes[name].reads[0]]
    affine = target.layers[name]
    if read.name == target.entry:
        weight = signed_weight(target, name, assignment.signs)
        table = table_of(assignment.serves[INPUTS], assignment.signs * target.inputs)
        table = _by_group(table, affine.groups, assignment.signs)
        return Demand(source.layers[name], weight, table)
    serves = _serves_of(target, source, assignment, read)
    if bad is not None:
        serves = np.where(bad[read.name], -1, serves)
    return Demand(source.layers[name], affine.weight, table_of(serves, affine.inputs))


def connect(target: Target, source: Source, assignment: Assignment) -> Wired:
    """From the outputs back to the inputs: the units that are needed, and one edge for each of their weights.

    A unit that cannot be wired is not used; those that would read it are wired again without it.

    Raises:
        SourceTooNarrow: an output cannot be wired; layer, unit and the missing parent are named.
    """
    failed: dict[str, np.ndarray] = {
        name: np.zeros(source.layers[name].outputs, bool) for name in target.layers
    }
    while True:
        bad = _spread(target, source, failed)
        result = _backward(target, source, assignment, bad, failed)
        if isinstance(result, Wired):
            return result


def _backward(
    target: Target,
    source: Source,
    assignment: Assignment,
    bad: dict[str, np.ndarray],
    failed: dict[str, np.ndarray],
) -> Wired | None:
    """One pass; None if units failed (they are noted in ``failed``)."""
    needed = {
        name: np.zeros(_units(target, source, node), bool)
        for name, node in target.nodes.items()
        if _copied(node)
    }
    entry = np.zeros(source.layers[INPUTS].outputs, bool)
    needed[target.output][:] = True
    edges: dict[str, Edges] = {}
    for name, node in reversed(target.nodes.items()):
        if not _copied(node):
            continue
        if node.affine is None:
            for read in node.reads:
                needed[read] |= _unshift(needed[name], node, len(needed[read]))
            continue
        units = np.flatnonzero(needed[name])
        reads_entry = node.reads[0] == target.entry
        want = demand(target, source, assignment, name, bad)
        edges[name] = wire(want, units, assignment.serves[name][units], few=not reads_entry)
        if edges[name].missing:
            _note(target, source, name, edges[name], assignment, failed)
            return None
        read = entry if reads_entry else needed[node.reads[0]]
        read[np.unique(edges[name].columns // node.affine.taps)] = True
    inputs = np.flatnonzero(entry)
    return Wired(edges, inputs, assignment.serves[INPUTS][inputs])


def _note(
    target: Target,
    source: Source,
    name: str,
    edges: Edges,
    assignment: Assignment,
    failed: dict[str, np.ndarray],
) -> None:
    """Mark failed units; an error if the output is among what they spoil."""
    failed[name][list(edges.missing)] = True
    if _spread(target, source, failed)[target.output].any():
        unit, (channel, tap) = next(iter(edges.missing.items()))
        raise SourceTooNarrow(narrow(target, name, unit, int(assignment.serves[name][unit]), channel, tap))


def narrow(target: Target, name: str, unit: int, served: int, channel: int, tap: int) -> str:
    """The first half of an error: who misses whom. Channels are numbered as ``signed_weight`` does."""
    affine = target.layers[name]
    per_group = affine.weight.shape[1]
    negative, local = divmod(channel, per_group)
    number = served // (affine.outputs // affine.groups) * per_group + local
    where = f"input {number}" + (f", tap {tap}" if affine.taps > 1 else "")
    copy = "negative copy" if negative else "copy"
    return f"layer {name}: unit {unit} of the source, which serves neuron {served}, sees no {copy} of its {where}"


def _spread(target: Target, source: Source, failed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Units that must not be read, by value: those that failed, and what additions make of them."""
    bad: dict[str, np.ndarray] = {}
    for name, node in target.nodes.items():
        if not _copied(node):
            continue
        if node.affine is not None:
            bad[name] = failed[name]
        else:
            size = _units(target, source, node)
            bad[name] = np.logical_or.reduce([_shift(bad[read], node, size) for read in node.reads])
    return bad


def _shift(flags: np.ndarray, node: Node, size: int) -> np.ndarray:
    before = node.shift[0] * (size // node.channels)
    out = np.zeros(size, bool)
    out[before : before + len(flags)] = flags
    return out


def _unshift(flags: np.ndarray, node: Node, size: int) -> np.ndarray:
    before = node.shift[0] * (len(flags) // node.channels)
    return flags[before : before + size]


def _copied(node: Node) -> bool:
    return node.kind not in ("input", "raw")


def _writer(target: Target, node: Node) -> str:
    """The weight layer whose units a chain of unit-wise operations passes on."""
    while node.affine is None:
        node = target.nodes[node.reads[0]]
    return node.name


def _units(target: Target, source: Source, node: Node) -> int:
    if node.group in source.copies:
        return source.copies[node.group] * node.channels
    return source.layers[_writer(target, node)].outputs


def _serves_of(target: Target, source: Source, assignment: Assignment, node: Node) -> np.ndarray:
    if node.group in source.copies and node.group in _ties(target):
        return _blocks(_units(target, source, node), node.channels)
    return assignment.serves[_writer(target, node)]


def _blocks(units: int, channels: int) -> np.ndarray:
    """Equally many units for each channel, in order; what is left over serves none."""
    copies = units // channels
    serves = np.full(units, -1)
    serves[: copies * channels] = np.arange(copies * channels) // copies
    return serves


def _by_group(table: np.ndarray, groups: int, signs: int) -> np.ndarray:
    """Rows (sign, group, input) of a table in the order (group, sign, input) of ``signed_weight``."""
    inside = table.reshape(signs, groups, -1, table.shape[1])
    return inside.transpose(1, 0, 2, 3).reshape(-1, table.shape[1])


def _unserved(want: Demand, serves: np.ndarray) -> np.ndarray:
    """Which units do not see all parents of the channel they serve, (units,) bool."""
    units = np.flatnonzero(serves >= 0)
    found = np.zeros(len(serves), bool)
    found[units] = ~feasible(want, units)[np.arange(len(units)), serves[units]]
    return found


def _all_served(target: Target, want: Demand, serves: np.ndarray, name: str) -> None:
    """Refuse if a unit does not see all parents of the channel it serves."""
    unit = np.flatnonzero(_unserved(want, serves))[:1]
    if len(unit):
        missing = wire(want, unit, serves[unit], few=False).missing[int(unit[0])]
        raise SourceTooNarrow(narrow(target, name, int(unit[0]), int(serves[unit[0]]), *missing))
