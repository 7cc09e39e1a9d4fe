"""From a torch module to a ``Target``: its operations are traced, batch norms folded, what cannot be copied named."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..names import plain
from .graph import Affine, Geometry, Node, Target

# Slope at most 1 and |f(x)| <= |x| (or the ceiling given): what the error bound relies on.
ACTIVATIONS: dict[type[nn.Module], float] = {
    nn.ReLU: math.inf,
    nn.ReLU6: 6.0,
    nn.LeakyReLU: math.inf,
    nn.ELU: math.inf,
    nn.Hardtanh: math.inf,
    nn.Tanh: 1.0,
    nn.Sigmoid: 1.0,
}
POOLS = (nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
SKIPPED = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
RELU = (F.relu, torch.relu, torch.relu_)
ADD = (operator.add, operator.iadd, torch.add)
POOL_CALLS = (F.avg_pool2d, F.max_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d)
POOL_ROUNDINGS = 1 << 12  # a mean over at most so many values


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
    still = copy.deepcopy(model).cpu().eval()
    try:
        traced = fx.symbolic_trace(still)
    except Exception as error:
        raise ValueError(f"the target {type(model).__name__} cannot be traced: {error}") from error
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
            elif step.op in ("call_function", "call_method") and not _is_size(step):
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
            self._affine(step, name, source, _linear(module, source, name))
        elif type(module) is nn.Conv2d:
            self._affine(step, name, source, _convolution(module, source, name))
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            self._norm(step, name, module, source)
        elif type(module) in ACTIVATIONS:
            roundings = 0 if type(module) is nn.ReLU else 8
            self._each(step, name, module, source, ACTIVATIONS[type(module)], roundings)
        elif isinstance(module, POOLS):
            if getattr(module, "return_indices", False):
                raise ValueError(f"{name}: pooling that returns indices cannot be embedded")
            self._each(step, name, module, source, math.inf, _pool_roundings(module))
        elif isinstance(module, nn.Flatten):
            if (module.start_dim, module.end_dim) != (1, -1):
                raise ValueError(f"{name}: only Flatten(1, -1) can be embedded")
            self._flatten(step, name, source)
        else:
            raise ValueError(_refusal(name, type(module).__name__))

    def _call(self, step: fx.Node) -> None:
        called, name = step.target, step.name
        word = called if isinstance(called, str) else getattr(called, "__name__", str(called))
        source = self._reads(step)
        if called in RELU or called in ("relu", "relu_"):
            self._each(step, name, torch.relu, source, math.inf)
        elif called in ADD or called in ("add", "add_"):
            self._add(step, name)
        elif ((called is torch.flatten or called == "flatten") and _flattens(step)) or (
            called in ("view", "reshape") and len(step.args) == 3 and step.args[2] == -1
        ):
            self._flatten(step, name, source)
        elif called in POOL_CALLS or (called in ("mean", torch.mean) and _over_space(step)):
            self._each(step, name, _rest(step), source, math.inf, POOL_ROUNDINGS)
        elif called is operator.getitem and _keeps_units(step.args[1]):
            self._each(step, name, _rest(step), source, math.inf)
        elif called is F.pad and (shift := _new_units(step)) is not None:
            self._lift(step, name, source, shift)
        elif called is F.dropout:
            self.alias[step.name] = source.name
        else:
            raise ValueError(_refusal(name, str(word)))

    def _affine(self, step: fx.Node, name: str, source: Node, affine: Affine) -> None:
        for what, array in (("weight", affine.weight), ("bias", affine.bias)):
            if not np.isfinite(array).all():
                count = int((~np.isfinite(array)).sum())
                raise ValueError(
                    f"{name}.{what} holds {count} values that are not finite: nothing can be embedded"
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
        scale = 1 / np.sqrt(_array(norm.running_var) + norm.eps)
        scale = scale if norm.weight is None else scale * _array(norm.weight)
        shift = -_array(norm.running_mean) * scale
        shift = shift if norm.bias is None else shift + _array(norm.bias)
        if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
            raise ValueError(f"{name} holds values that are not finite: nothing can be embedded")
        source.affine.weight *= scale[:, None, None]
        source.affine.slack = (
            source.affine.slack * np.abs(scale)
            + 2 * np.abs(source.affine.bias * scale)
            + 2 * np.abs(_array(norm.running_mean) * scale)
        )
        source.affine.bias[:] = source.affine.bias * scale + shift
        self.alias[step.name] = source.name

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
            raise ValueError(_refusal(step.name, str(step.target)))
        return self.nodes[self._value(read)]

    def _tie(self, first: str, second: str) -> None:
        a, b = self._root(first), self._root(second)
        if a != b:
            self.merged[b] = a

    def _root(self, group: str) -> str:
        while group in self.merged:
            group = self.merged[group]
        return group


def _pool_roundings(pool: nn.Module) -> int:
    if isinstance(pool, nn.MaxPool2d | nn.AdaptiveMaxPool2d):
        return 0
    kernel = getattr(pool, "kernel_size", None)
    return (
        POOL_ROUNDINGS
        if kernel is None
        else math.prod((kernel,) * 2 if isinstance(kernel, int) else kernel) + 1
    )


def _linear(module: nn.Linear, source: Node, name: str) -> Affine:
    channels = source.channels or module.in_features
    if module.in_features % channels:
        raise ValueError(f"{name} reads {module.in_features} values of {channels} units: they do not divide")
    weight = _array(module.weight).reshape(module.out_features, channels, -1)
    return Affine(weight, _bias(module.bias, module.out_features))


def _convolution(module: nn.Conv2d, source: Node, name: str) -> Affine:
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        raise ValueError(f"{name}: only convolutions with a number of zeros as padding can be embedded")
    pair = [
        (int(p[0]), int(p[1])) for p in (module.kernel_size, module.stride, module.padding, module.dilation)
    ]
    weight = _array(module.weight).reshape(module.out_channels, module.in_channels // module.groups, -1)
    return Affine(weight, _bias(module.bias, module.out_channels), module.groups, Geometry(*pair))


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to(torch.float64).numpy().copy()


def _bias(bias: Tensor | None, size: int) -> np.ndarray:
    return np.zeros(size) if bias is None else _array(bias)


def _is_size(step: fx.Node) -> bool:
    return step.target in ("size", getattr) or (
        step.target is operator.getitem and isinstance(step.args[1], int) and _is_size(step.args[0])  # type: ignore[arg-type]
    )


def _rest(step: fx.Node) -> Callable[[Tensor], Tensor]:
    """The call with all but its first argument filled in."""
    target, args, kwargs = step.target, step.args[1:], dict(step.kwargs)
    if isinstance(target, str):
        return lambda x: getattr(x, target)(*args, **kwargs)
    return lambda x: target(x, *args, **kwargs)  # type: ignore[operator]


def _flattens(step: fx.Node) -> bool:
    named = [*step.args[1:], *step.kwargs.values()]
    return named in ([1], [1, -1])


def _over_space(step: fx.Node) -> bool:
    dims: Any = step.kwargs.get("dim", step.args[1] if len(step.args) > 1 else None)
    return isinstance(dims, list | tuple) and sorted(d % 4 for d in dims) == [2, 3]


def _keeps_units(index: Any) -> bool:
    full = slice(None, None, None)
    return (
        isinstance(index, tuple)
        and len(index) == 4
        and index[:2] == (full, full)
        and all(isinstance(i, slice) for i in index)
    )


def _new_units(step: fx.Node) -> tuple[int, int] | None:
    """Units that a padding with zeros puts before and behind; None for another padding."""
    pads: Any = step.args[1]
    plain_zeros = step.kwargs.get("mode", "constant") == "constant" and not step.kwargs.get("value")
    readers_add = all(user.op == "call_function" and user.target in ADD for user in step.users)
    if len(step.args) > 2 or not plain_zeros or not readers_add or len(pads) != 6 or any(pads[:4]):
        return None
    return (int(pads[4]), int(pads[5])) if min(pads) >= 0 else None


def _refusal(name: str, what: str) -> str:
    known = "Linear, Conv2d, BatchNorm behind them, " + ", ".join(kind.__name__ for kind in ACTIVATIONS)
    return f"{name} ({what}) cannot be embedded: a target is made of {known}, pooling, Flatten, Dropout and additions"
