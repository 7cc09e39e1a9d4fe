"""Sequences in a graph: paths on which every value has one use, of what ``sequence`` knows to run together.

Layers, norms, ReLUs (modules or functions) and dropout are items of a sequence. Where two values are added, and one of
them ends in a convolution and its norm, the sum and a ReLU after it belong to that sequence.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import fx, nn

from .modules import SparseConv2d, SparseLinear
from .sequence import DROPOUTS

RELU, NOTHING = nn.ReLU(), nn.Identity()  # they stand for functions
Item = str | nn.Module
_KINDS = (SparseConv2d, SparseLinear, nn.BatchNorm2d, nn.ReLU, nn.Identity, *DROPOUTS)
_RELU_CALLS = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
_ADD_CALLS = (operator.add, operator.iadd, torch.add, "add", "add_")


@dataclass
class Path:
    """A sequence: where it begins, its nodes, and its items by name (or those that stand for functions).

    Attributes:
        way: what is added at its end, or None.
        last: the ReLU after that, or None.
    """

    source: fx.Node
    nodes: list[fx.Node] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    kinds: list[type] = field(default_factory=list)
    way: fx.Node | None = None
    last: Item | None = None

    def add(self, node: fx.Node, item: Item, kind: type) -> None:
        """The next item."""
        self.nodes.append(node)
        self.items.append(item)
        self.kinds.append(kind)

    def split(self, at: int) -> Path:
        """The items from here on, which leave this path."""
        rest = Path(self.nodes[at - 1], self.nodes[at:], self.items[at:], self.kinds[at:])
        del self.nodes[at:], self.items[at:], self.kinds[at:]
        return rest


def find(nodes: Sequence[fx.Node], modules: Mapping[str, nn.Module]) -> list[Path]:
    """The sequences of a graph.

    Args:
        nodes: of the graph, in order.
        modules: by name.
    """
    calls = Counter(str(node.target) for node in nodes if node.op == "call_module")
    ends: dict[fx.Node, Path] = {}
    for node in nodes:
        item = _item(node, modules)
        if isinstance(item, str) and calls[item] > 1 and isinstance(modules[item], nn.BatchNorm2d):
            item = None  # its running statistics depend on the order
        if item is not None:
            kind = type(modules[item] if isinstance(item, str) else item)
            _extend(ends, node, item, kind)
        elif (main := _main(node, ends)) is not None:
            path = ends[main]
            dropouts = [i for i, kind in enumerate(path.kinds) if kind in DROPOUTS]
            if dropouts:  # they draw where they stand; only what follows them may wait for the sum
                path = path.split(dropouts[-1] + 1)
                ends[path.source] = ends[main]
            del ends[main]
            path.nodes.append(node)
            path.way = next(one for one in node.all_input_nodes if one is not main)
            ends[node] = path
    return list(ends.values())


def _extend(ends: dict[fx.Node, Path], node: fx.Node, item: Item, kind: type) -> None:
    """Let an item go on with the path that it follows, or begin one."""
    source = node.all_input_nodes[0]
    path = ends.get(source) if len(source.users) == 1 else None
    if path is not None and path.way is not None:
        if kind is nn.ReLU and path.last is None:
            path.last = item
            path.nodes.append(node)
            ends[node] = ends.pop(source)
            return
        path = None
    in_order = kind not in DROPOUTS and (path is None or not any(one in DROPOUTS for one in path.kinds))
    if path is None or not (in_order or node.prev is source):
        path = Path(source)
    else:
        del ends[source]
    path.add(node, item, kind)
    ends[node] = path


def _item(node: fx.Node, modules: Mapping[str, nn.Module]) -> Item | None:
    """What a node is in a sequence, or None."""
    if len(node.all_input_nodes) != 1 or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    if node.op == "call_module":
        known = type(modules[str(node.target)]) in _KINDS and len(node.args) == 1 and not node.kwargs
        return str(node.target) if known else None
    if node.op in ("call_function", "call_method") and node.target in _RELU_CALLS:
        return RELU
    if node.op == "call_function" and node.target is F.dropout:
        training = node.args[2] if len(node.args) > 2 else node.kwargs.get("training", True)
        never = training is False or (node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)) == 0
        return NOTHING if never else None
    return None


def _main(node: fx.Node, ends: Mapping[fx.Node, Path]) -> fx.Node | None:
    """Of two values that a node adds, the one whose sequence takes the sum; None if there is none."""
    if node.op not in ("call_function", "call_method") or node.target not in _ADD_CALLS:
        return None
    if len(node.args) != 2 or node.kwargs or len(node.all_input_nodes) != 2:
        return None
    fit = [
        one
        for one in node.all_input_nodes
        if one in ends and len(one.users) == 1 and _ends_in_norm(ends[one])
    ]
    return max(fit, key=lambda one: len(ends[one].nodes), default=None)


def _ends_in_norm(path: Path) -> bool:
    kinds = [kind for kind in path.kinds if kind is not nn.Identity]
    return path.way is None and kinds[-2:] == [SparseConv2d, nn.BatchNorm2d]
