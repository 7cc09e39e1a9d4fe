"""From a torch module to a ``Target``: its operations are traced, batch norms folded, what cannot be copied named."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import parametrize

from ..execution.modules import SparseConv2d, SparseLinear
from ..names import plain
from .graph import Affine, Node, Target
from .recognised import (
    ACTIVATIONS,
    ADD,
    POOL_CALLS,
    POOL_ROUNDINGS,
    POOLS,
    RELU,
    SKIPPED,
    array,
    called_activation,
    convolution,
    flattens,
    is_plain_pool,
    is_size,
    keeps_units,
    linear,
    new_units,
    over_space,
    pool_roundings,
    refusal,
    reshapes,
    rest,
    too_steep,
    word_of,
)


def trace(model: nn.Module) -> Target:
    """The target in a module, as it computes in ``eval`` mode.

    Args:
        model: Linear and Conv2d layers (stride, zero padding, dilation, groups), batch norms right behind them,
            activations with slope at most 1, pooling, flattening, dropout and residual additions.

    Raises:
        ValueError: an operation that cannot be embedded, by name; weights that are not finite; no weight at all.

    Example:
        >>> target = trace(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
        >>> [(name, layer.inputs, layer.outputs) for name, layer in target.layers.items()]
        [('0', 4, 3), ('2', 3, 2)]
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"the target must be a torch module, got {type(model).__name__}")
    if any(parameter.device.type == "meta" for parameter in model.parameters()):
        raise ValueError("the target is on the meta device: it has no weights to embed")
    if type(model) in (nn.Linear, nn.Conv2d):
        raise ValueError(
            f"the target is a single {type(model).__name__}: put it into an nn.Sequential, so that it has a name"
        )
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and not module.weight.numel():
            raise ValueError(f"layer {name!r} has no weights, its shape is {tuple(module.weight.shape)}")
        if isinstance(module, SparseLinear | SparseConv2d):
            raise ValueError(
                f"layer {name!r} is executed sparsely: let the sparsifier go first, by its detach(), then embed"
            )
    try:
        still = copy.deepcopy(model).cpu().eval()
    except RuntimeError as error:
        raise ValueError(
            f"the target {type(model).__name__} holds a weight that is computed from others (torch.nn.utils.prune, "
            "weight_norm): make it permanent (prune.remove, remove_weight_norm), then embed"
        ) from error
    try:
        traced = fx.symbolic_trace(still)
    except Exception as error:
        raise ValueError(
            f"the target {type(model).__name__} cannot be traced by torch.fx ({error}): it must be made of Linear and Conv2d "
            "layers and what lies between them, without conditions on values"
        ) from error
    return _Builder(traced).build()


class _Builder:
    """Walks a traced module once; values that are the same as another (identity, folded norm) share its name."""

    def __init__(self, traced: fx.GraphModule):
        self.traced = traced
        self.modules = dict(traced.named_modules())
        self.nodes: dict[str, Node] = {}
        self.alias: dict[str, str] = {}
        self.merged: dict[str, str] = {}

    def build(self) -> Target:
        output = ""
        for step in self.traced.graph.nodes:
            if step.op == "placeholder":
                if self.nodes:
                    raise ValueError(f"the target takes more than one input ({step.name!r}): embed takes one")
                self._put(step, Node("input", "input", group="input"))
            elif step.op == "output":
                if not isinstance(step.args[0], fx.Node):
                    raise ValueError("the target returns more than one tensor")
                output = self._value(step.args[0])
            elif step.op == "call_module":
                self._module(step)
            elif step.op in ("call_function", "call_method") and not is_size(step):
                self._call(step)
        if not any(node.affine for node in self.nodes.values()):
            raise ValueError("the target has no Linear or Conv2d layer: there is nothing to embed")
        return self._finish(output)

    def _module(self, step: fx.Node) -> None:
        module, name = self.modules[str(step.target)], plain(str(step.target))
        source = self._reads(step)
        if isinstance(module, SKIPPED):
            self.alias[step.name] = source.name
        elif type(module) is nn.Linear:
            self._affine(step, name, source, linear(module, source, name))
        elif type(module) is nn.Conv2d:
            self._affine(step, name, source, convolution(module, source, name))
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            self._norm(step, name, module, source)
        elif type(module) in ACTIVATIONS:
            self._activation(step, name, module, source)
        elif isinstance(module, POOLS):
            if getattr(module, "return_indices", False) or getattr(module, "divisor_override", None):
                raise ValueError(
                    f"{name}: pooling that returns indices, or divides by another number, cannot be embedded"
                )
            self._each(step, name, module, source, math.inf, pool_roundings(module))
        elif isinstance(module, nn.Flatten):
            if (module.start_dim, module.end_dim) != (1, -1):
                raise ValueError(f"{name}: only Flatten(1, -1) can be embedded")
            self._flatten(step, name, source)
        elif parametrize.is_parametrized(module):
            raise ValueError(
                f"{name}: its weight is parametrized; make it permanent, by "
                "torch.nn.utils.parametrize.remove_parametrizations, then embed"
            )
        else:
            raise ValueError(refusal(name, type(module).__name__))

    def _call(self, step: fx.Node) -> None:
        called, name, source = step.target, step.name, self._reads(step)
        if called in RELU or called in ("relu", "relu_"):
            self._each(step, name, torch.relu, source, math.inf)
        elif (activation := called_activation(step)) is not None:
            self._activation(step, name, activation, source)
        elif called in ADD or called in ("add", "add_"):
            self._add(step, name)
        elif ((called is torch.flatten or called == "flatten") and flattens(step)) or (
            called in ("view", "reshape", torch.reshape) and reshapes(step)
        ):
            self._flatten(step, name, source)
        elif (called in POOL_CALLS and is_plain_pool(step)) or (
            called in ("mean", torch.mean) and over_space(step)
        ):
            self._each(step, name, rest(step), source, math.inf, POOL_ROUNDINGS)
        elif called is operator.getitem and keeps_units(step.args[1]):
            self._each(step, name, rest(step), source, math.inf)
        elif called is F.pad and (shift := new_units(step)) is not None:
            self._lift(step, name, source, shift)
        elif called is F.dropout:
            if step.kwargs.get("training", [*step.args, True, True][2]) is not False:
                raise ValueError(
                    f"{name}: this dropout also drops in eval mode; give it training=self.training"
                )
            self.alias[step.name] = source.name
        else:
            raise ValueError(refusal(name, word_of(step)))

    def _affine(self, step: fx.Node, name: str, source: Node, affine: Affine) -> None:
        for what, held in (("weight", affine.weight), ("bias", affine.bias)):
            if not np.isfinite(held).all():
                count = int((~np.isfinite(held)).sum())
                raise ValueError(
                    f"{name}.{what}: {count} of {held.size:,} values are NaN or infinite: train the target anew, or load "
                    "a checkpoint from before"
                )
        if source.channels and affine.inputs != source.channels:
            raise ValueError(f"{name} reads {affine.inputs} units, but {source.name} has {source.channels}")
        if name in self.nodes:
            raise ValueError(f"{name} is used twice: a layer that is shared cannot be embedded")
        self._put(step, Node(name, "affine", (source.name,), affine.outputs, name, affine))

    def _norm(self, step: fx.Node, name: str, norm: nn.BatchNorm1d | nn.BatchNorm2d, source: Node) -> None:
        read = step.args[0]
        if source.affine is None or not isinstance(read, fx.Node) or len(read.users) > 1:
            raise ValueError(f"{name}: a batch norm can be folded only right behind a Linear or Conv2d layer")
        if norm.running_mean is None or norm.running_var is None:
            raise ValueError(f"{name}: a batch norm without running statistics cannot be folded")
        scale = 1 / np.sqrt(array(norm.running_var) + norm.eps)
        scale = scale if norm.weight is None else scale * array(norm.weight)
        shift = -array(norm.running_mean) * scale
        shift = shift if norm.bias is None else shift + array(norm.bias)
        if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
            raise ValueError(f"{name} holds values that are not finite: nothing can be embedded")
        source.affine.weight *= scale[:, None, None]
        source.affine.slack = (
            source.affine.slack * np.abs(scale)
            + 2 * np.abs(source.affine.bias * scale)
            + 2 * np.abs(array(norm.running_mean) * scale)
        )
        source.affine.bias[:] = source.affine.bias * scale + shift
        self.alias[step.name] = source.name

    def _activation(self, step: fx.Node, name: str, module: nn.Module, source: Node) -> None:
        if too_steep(module):
            raise ValueError(
                f"layer {name!r} ({module}) cannot be embedded: it must not be steeper than 1 anywhere, and zero must "
                "stay zero, for errors to be bounded"
            )
        roundings = 0 if type(module) is nn.ReLU else 8
        self._each(step, name, module, source, ACTIVATIONS[type(module)], roundings)

    def _each(
        self, step: fx.Node, name: str, run: Callable, source: Node, ceiling: float, rounding: int = 0
    ) -> None:
        kind = "raw" if source.kind in ("input", "raw") else "each"
        node = Node(self._free(name), kind, (source.name,), source.channels, source.group, run=run)
        node.ceiling, node.rounding = ceiling, rounding
        self._put(step, node)

    def _flatten(self, step: fx.Node, name: str, source: Node) -> None:
        kind = "raw" if source.kind in ("input", "raw") else "flatten"
        node = Node(self._free(name), kind, (source.name,), source.channels, source.group)
        node.run, node.rounding = torch.nn.Flatten(), 0
        self._put(step, node)

    def _add(self, step: fx.Node, name: str) -> None:
        if len(step.all_input_nodes) != 2 or step.kwargs:
            raise ValueError(f"{name}: only the sum of two values of the net can be embedded")
        first, second = (self.nodes[self._value(value)] for value in step.all_input_nodes)
        if {first.kind, second.kind} & {"input", "raw"}:
            raise ValueError(
                f"{name} adds the input itself, of which there are no copies yet: put a layer before it"
            )
        if first.channels != second.channels:
            raise ValueError(f"{name} adds {first.channels} units to {second.channels}")
        self._tie(first.group, second.group)
        self._put(step, Node(self._free(name), "add", (first.name, second.name), first.channels, first.group))

    def _lift(self, step: fx.Node, name: str, source: Node, shift: tuple[int, int]) -> None:
        if not source.channels:
            raise ValueError(f"{name} pads the input itself: put a layer before it")
        node = Node(self._free(name), "lift", (source.name,), source.channels + sum(shift), source.group)
        node.shift = shift
        self._put(step, node)

    def _finish(self, output: str) -> Target:
        for node in self.nodes.values():
            node.group = self._root(node.group)
        first = {n.reads[0] for n in self.nodes.values() if n.affine is not None and self._raw(n.reads[0])}
        if len(first) != 1:
            raise ValueError(
                f"layers read the input in {len(first)} forms ({sorted(first)}): one can be embedded"
            )
        readers = [n for n in self.nodes.values() if n.affine is not None and n.reads[0] in first]
        shapes = {(n.affine.inputs, n.affine.groups) for n in readers if n.affine is not None}
        if len(shapes) != 1:
            raise ValueError(f"{[n.name for n in readers]} read the input with different groups or sizes")
        if self.nodes[output].affine is None and self.nodes[output].kind in ("input", "raw"):
            raise ValueError("the target returns its input")
        return Target(self.nodes, first.pop(), output)

    def _raw(self, name: str) -> bool:
        return self.nodes[name].kind in ("input", "raw")

    def _put(self, step: fx.Node, node: Node) -> None:
        self.nodes[node.name] = node
        self.alias[step.name] = node.name

    def _free(self, name: str) -> str:
        return name if name not in self.nodes else self._free(f"{name}'")

    def _value(self, step: fx.Node) -> str:
        return self.alias[step.name]

    def _reads(self, step: fx.Node) -> Node:
        read = step.args[0] if step.args else None
        if not isinstance(read, fx.Node) or read.name not in self.alias:
            raise ValueError(refusal(step.name, word_of(step)))
        return self.nodes[self._value(read)]

    def _tie(self, first: str, second: str) -> None:
        a, b = self._root(first), self._root(second)
        if a != b:
            self.merged[b] = a

    def _root(self, group: str) -> str:
        while group in self.merged:
            group = self.merged[group]
        return group
