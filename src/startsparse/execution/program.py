"""A graph as steps: sequences of modules that may run as one operation, and everything else as it was written."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn

from . import paths
from .fused import Blocked
from .modules import SparseConv2d, SparseLinear
from .sequence import Activations, num_pairs, through

Modules = Mapping[str, nn.Module]
Values = list[Any]  # of Activations, or None where there is none (any more)
Compute = Callable[[Modules, Values], Activations]


@dataclass(frozen=True)
class _Slot:
    """The place of a value in the arguments of a step."""

    index: int


@dataclass(frozen=True)
class _Step:
    """What is computed, where it goes, and which values nobody needs after it."""

    compute: Compute
    out: int
    dead: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """Steps, how many values there are, how the output is made of them, and whether anything could run together."""

    steps: tuple[_Step, ...]
    size: int
    output: Any
    worth: bool

    def run(self, modules: Modules, inputs: Sequence[Any]) -> Any:
        """The output for inputs, with modules by name."""
        values: Values = [Activations(value) for value in inputs] + [None] * (self.size - len(inputs))
        for step in self.steps:
            values[step.out] = step.compute(modules, values)
            for index in step.dead:
                values[index] = None
        return _filled(self.output, values)


def build(graph: fx.Graph, modules: Modules) -> Program:
    """The steps of a graph.

    Args:
        graph: of a module.
        modules: those inside, by name; "" is the module itself.
    """
    nodes = list(graph.nodes)
    index = {node: i for i, node in enumerate(nodes)}
    ends = {path.nodes[-1]: path for path in paths.find(nodes, modules)}
    inside = {node for path in ends.values() for node in path.nodes[:-1]}
    last_use: dict[fx.Node, int] = {}
    for i, node in enumerate(nodes):
        last_use |= dict.fromkeys([] if node in inside else _needs(node, ends.get(node)), i)
    steps, output = [], None
    for i, node in enumerate(nodes):
        if node.op == "output":
            output = _template(node.args[0], index)
        elif node.op != "placeholder" and node not in inside:
            compute = (
                _sequence(ends[node], index, _goes_on(node, ends)) if node in ends else _call(node, index)
            )
            steps.append(_Step(compute, i, tuple(index[one] for one, at in last_use.items() if at == i)))
    return Program(tuple(steps), len(nodes), output, _is_worth(list(ends.values())))


def _is_worth(found: Sequence[paths.Path]) -> bool:
    """Whether two layers could run together: a convolution that is by itself with its norm gains nothing."""
    pairs = sum(num_pairs([kind for kind in path.kinds if kind is not nn.Identity]) for path in found)
    return pairs > 1 or any(path.kinds.count(SparseLinear) > 1 for path in found)


def _module(item: paths.Item, modules: Modules) -> nn.Module:
    return modules[item] if isinstance(item, str) else item


def _needs(node: fx.Node, path: paths.Path | None) -> list[fx.Node]:
    if path is None:
        return node.all_input_nodes
    return [path.source] if path.way is None else [path.source, path.way]


def _goes_on(node: fx.Node, ends: Mapping[fx.Node, paths.Path]) -> bool:
    """Whether what a path gives is used where fused blocks take it."""
    takers = [path for path in ends.values() if node in (path.way, path.source)]
    if any(path.way is node or path.kinds[0] is SparseConv2d for path in takers):
        return True
    return any(_per_image(user) is not None for user in node.users)


def _sequence(path: paths.Path, index: Mapping[fx.Node, int], onward: bool) -> Compute:
    """Run the modules of a path."""
    source, way = index[path.source], None if path.way is None else index[path.way]
    items, last = tuple(path.items), path.last

    def compute(modules: Modules, values: Values) -> Activations:
        row, end = (
            [_module(item, modules) for item in items],
            None if last is None else _module(last, modules),
        )
        return through(row, values[source], None if way is None else values[way], end, onward)

    return compute


def _call(node: fx.Node, index: Mapping[fx.Node, int]) -> Compute:
    """Do what a node says."""
    target: Any = node.target
    args, kwargs = _template(node.args, index), _template(node.kwargs, index)

    def compute(modules: Modules, values: Values) -> Activations:
        given, named = _filled(args, values), _filled(kwargs, values)
        if node.op == "call_module":
            return Activations(modules[target](*given, **named))
        if node.op == "call_method":
            return Activations(getattr(given[0], target)(*given[1:], **named))
        if node.op == "get_attr":
            return Activations(reduce(getattr, target.split("."), modules[""]))
        return Activations(target(*given, **named))

    per_image = _per_image(node)
    if per_image is None:
        return compute

    def compute_blocked(modules: Modules, values: Values) -> Activations:
        held: Blocked | None = values[args[0].index].held()
        return (
            compute(modules, values)
            if held is None
            else Activations(blocked=Blocked(per_image(held.tensor), held.batch))
        )

    return compute_blocked


def _per_image(node: fx.Node) -> Callable[[Tensor], Tensor] | None:
    """What a node does to each image, if it does the same with more axes behind them: slices, and zeros around them."""
    args: tuple[Any, ...] = node.args
    if node.op != "call_function" or len(args) < 2 or node.all_input_nodes != [args[0]]:
        return None
    if node.target is operator.getitem and isinstance(args[1], tuple):
        where = args[1]
        sliced = (
            0 < len(where) <= 4 and all(isinstance(one, slice) for one in where) and where[0] == slice(None)
        )
        return (lambda tensor: tensor[where]) if sliced else None
    if node.target is F.pad and isinstance(args[1], tuple | list) and len(args[1]) <= 6:
        widths = (0, 0, *args[1])
        mode = args[2] if len(args) > 2 else node.kwargs.get("mode", "constant")
        zeros = mode == "constant" and not (args[3] if len(args) > 3 else node.kwargs.get("value"))
        return (lambda tensor: F.pad(tensor, widths)) if zeros else None
    return None


def _template(given: Any, index: Mapping[fx.Node, int]) -> Any:
    """Arguments with slots in the place of nodes, in plain containers."""
    if isinstance(given, fx.Node):
        return _Slot(index[given])
    if isinstance(given, tuple):
        return tuple(_template(one, index) for one in given)
    if isinstance(given, list):
        return [_template(one, index) for one in given]
    if isinstance(given, dict):
        return {key: _template(one, index) for key, one in given.items()}
    if isinstance(given, slice):
        return slice(*(_template(one, index) for one in (given.start, given.stop, given.step)))
    return given


def _filled(template: Any, values: Values) -> Any:
    """Arguments with values in the place of slots, in torch's layout."""
    kind = type(template)
    if kind is _Slot:
        return values[template.index].rows()
    if kind is tuple or kind is list:
        return kind(_filled(one, values) for one in template)
    if kind is dict:
        return {key: _filled(one, values) for key, one in template.items()}
    if kind is slice:
        return slice(*(_filled(one, values) for one in (template.start, template.stop, template.step)))
    return template
