"""Fully connected nets."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn


def mlp(
    widths: Sequence[int] = (300, 100),
    input_shape: Sequence[int] = (1, 28, 28),
    classes: int = 10,
    batch_norm: bool = False,
) -> nn.Sequential:
    """A fully connected net of any widths, ReLU between its layers (``fc1``, ``fc2`` and so on).

    Args:
        widths: units of each hidden layer.
        input_shape: (C, H, W) of an image; it is flattened.
        classes: number of outputs.
        batch_norm: normalise before each ReLU.

    Example:
        >>> [name for name, _ in mlp((8,), (1, 2, 2), 3).named_parameters()]
        ['fc1.weight', 'fc1.bias', 'fc2.weight', 'fc2.bias']
    """
    if any(width < 1 for width in widths):
        raise ValueError(f"widths are positive, got {list(widths)}")
    sizes = [math.prod(input_shape), *widths]
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for i, (fan_in, fan_out) in enumerate(zip(sizes, widths, strict=False), start=1):
        layers[f"fc{i}"] = nn.Linear(fan_in, fan_out)
        if batch_norm:
            layers[f"bn{i}"] = nn.BatchNorm1d(fan_out)
        layers[f"relu{i}"] = nn.ReLU()
    layers[f"fc{len(sizes)}"] = nn.Linear(sizes[-1], classes)
    return nn.Sequential(layers)


def lenet_300_100(input_shape: Sequence[int] = (1, 28, 28), classes: int = 10) -> nn.Sequential:
    """The fully connected net of LeCun et al. (1998): 784-300-100-10 on 28x28 images, 266,200 weights.

    Fidelity:
        ReLU and torch's initialisation, as in the pruning literature, not the tanh of 1998.
    """
    return mlp((300, 100), input_shape, classes)
