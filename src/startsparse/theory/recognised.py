"""What of a traced module can be embedded: its layers as arrays, and the calls that are known."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .graph import Affine, Geometry, Node

# Slope at most 1 and |f(x)| <= |x| (or the ceiling given): what the error bound relies on; ``too_steep`` sees to it.
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
CALLED: dict[Any, type[nn.Module]] = {
    **dict.fromkeys((F.relu6, "relu6"), nn.ReLU6),
    **dict.fromkeys((F.leaky_relu, "leaky_relu"), nn.LeakyReLU),
    **dict.fromkeys((F.elu, "elu"), nn.ELU),
    **dict.fromkeys((F.hardtanh, "hardtanh"), nn.Hardtanh),
    **dict.fromkeys((F.tanh, torch.tanh, "tanh"), nn.Tanh),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, "sigmoid"), nn.Sigmoid),
}
ADD = (operator.add, operator.iadd, torch.add)
POOL_CALLS = (F.avg_pool2d, F.max_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d)
POOL_ROUNDINGS = 1 << 12  # a mean over at most so many values


def called_activation(step: fx.Node) -> nn.Module | None:
    """The module that does what a call of an activation does; None for other calls."""
    kind = CALLED.get(step.target)
    options = [*step.args[1:], *step.kwargs.values()]
    if kind is None or not all(isinstance(option, bool | int | float) for option in options):
        return None
    named = {name: value for name, value in step.kwargs.items() if name not in ("input", "inplace")}
    return kind(*step.args[1:], **named)  # type: ignore[arg-type]


def too_steep(module: nn.Module) -> bool:
    """Whether an activation's options make it steeper than 1, or move zero."""
    if isinstance(module, nn.Hardtanh):
        return not module.min_val <= 0 <= module.max_val
    slope = getattr(module, "negative_slope", getattr(module, "alpha", 0.0))
    return not abs(slope) <= 1


def pool_roundings(pool: nn.Module) -> int:
    """Roundings of a pooling layer: none of a maximum, one an addend of a mean."""
    if isinstance(pool, nn.MaxPool2d | nn.AdaptiveMaxPool2d):
        return 0
    kernel = getattr(pool, "kernel_size", None)
    return (
        POOL_ROUNDINGS
        if kernel is None
        else math.prod((kernel,) * 2 if isinstance(kernel, int) else kernel) + 1
    )


def linear(module: nn.Linear, source: Node, name: str) -> Affine:
    """The weights of a linear layer; several values of one unit, behind a flattening, are taps."""
    channels = source.channels or module.in_features
    if module.in_features % channels:
        raise ValueError(f"{name} reads {module.in_features} values of {channels} units: they do not divide")
    weight = array(module.weight).reshape(module.out_features, channels, -1)
    return Affine(weight, _bias(module.bias, module.out_features))


def convolution(module: nn.Conv2d, source: Node, name: str) -> Affine:
    """The weights of a convolution."""
    if module.padding_mode != "zeros":
        raise ValueError(
            f"{name} pads with {module.padding_mode!r}: only convolutions padded with zeros can be embedded"
        )
    moves = (module.kernel_size, module.stride, _padding(module, name), module.dilation)
    pair = [(int(p[0]), int(p[1])) for p in moves]
    weight = array(module.weight).reshape(module.out_channels, module.in_channels // module.groups, -1)
    return Affine(weight, _bias(module.bias, module.out_channels), module.groups, Geometry(*pair))


def _padding(module: nn.Conv2d, name: str) -> tuple[int, ...]:
    """Zeros on each side; ``padding="same"`` puts equally many on both where it can."""
    if not isinstance(module.padding, str):
        return module.padding
    spans = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    if module.padding == "same" and any(span % 2 for span in spans):
        raise ValueError(f"{name}: padding='same' puts more zeros on one side than on the other here")
    return tuple(span // 2 if module.padding == "same" else 0 for span in spans)


def array(tensor: Tensor) -> np.ndarray:
    """A tensor as a float64 array of its own."""
    return tensor.detach().to(torch.float64).numpy().copy()


def _bias(bias: Tensor | None, size: int) -> np.ndarray:
    return np.zeros(size) if bias is None else array(bias)


def is_plain_pool(step: fx.Node) -> bool:
    """Whether a call of a pooling gives its values alone, and divides a sum by how many it adds."""
    odd = [step.kwargs.get("divisor_override"), step.kwargs.get("return_indices"), *step.args[6:]]
    return not any(odd)


def is_size(step: fx.Node) -> bool:
    """Whether a step only asks for a size."""
    return step.target in ("size", getattr) or (
        step.target is operator.getitem and isinstance(step.args[1], int) and is_size(step.args[0])  # type: ignore[arg-type]
    )


def rest(step: fx.Node) -> Callable[[Tensor], Tensor]:
    """The call with all but its first argument filled in."""
    target, args, kwargs = step.target, step.args[1:], dict(step.kwargs)
    if isinstance(target, str):
        return lambda x: getattr(x, target)(*args, **kwargs)
    return lambda x: target(x, *args, **kwargs)  # type: ignore[operator]


def flattens(step: fx.Node) -> bool:
    """Whether a call flattens all but the examples."""
    named = [*step.args[1:], *step.kwargs.values()]
    return named in ([1], [1, -1])


def reshapes(step: fx.Node) -> bool:
    """Whether a view keeps the examples apart and flattens the rest: ``view(n, -1)`` or ``view(-1, size)``."""
    shape: Any = step.args[1] if len(step.args) == 2 else step.args[1:]
    return isinstance(shape, tuple | list) and len(shape) == 2 and list(shape).count(-1) == 1


def over_space(step: fx.Node) -> bool:
    """Whether a mean is over height and width."""
    dims: Any = step.kwargs.get("dim", step.args[1] if len(step.args) > 1 else None)
    return isinstance(dims, list | tuple) and sorted(d % 4 for d in dims) == [2, 3]


def keeps_units(index: Any) -> bool:
    """Whether an index takes all examples and units, of places maybe not all."""
    full = slice(None, None, None)
    return (
        isinstance(index, tuple)
        and len(index) == 4
        and index[:2] == (full, full)
        and all(isinstance(i, slice) for i in index)
    )


def new_units(step: fx.Node) -> tuple[int, int] | None:
    """Units that a padding with zeros puts before and behind; None for another padding."""
    pads: Any = step.args[1]
    plain_zeros = step.kwargs.get("mode", "constant") == "constant" and not step.kwargs.get("value")
    readers_add = all(user.op == "call_function" and user.target in ADD for user in step.users)
    if len(step.args) > 2 or not plain_zeros or not readers_add or len(pads) != 6 or any(pads[:4]):
        return None
    return (int(pads[4]), int(pads[5])) if min(pads) >= 0 else None


def word_of(step: fx.Node) -> str:
    """The name of what a step calls."""
    return step.target if isinstance(step.target, str) else getattr(step.target, "__name__", str(step.target))


def refusal(name: str, what: str) -> str:
    """What is said of a step that cannot be embedded."""
    known = "Linear, Conv2d, BatchNorm behind them, " + ", ".join(kind.__name__ for kind in ACTIVATIONS)
    return (
        f"layer {name!r} ({what}) cannot be embedded: a target is made of {known}, pooling, Flatten, Dropout and additions; "
        "other activations are steeper than 1 somewhere, or nobody has bounded their errors here"
    )
