"""A small convolutional net for quick experiments on any image size from 4x4 up."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn


def small_cnn(
    widths: Sequence[int] = (16, 32, 64), input_shape: Sequence[int] = (1, 28, 28), classes: int = 10
) -> nn.Sequential:
    """3x3 convolutions with batch norm and ReLU, halving the image after each, then one linear layer.

    Args:
        widths: channels of each convolution.
        input_shape: (C, H, W) of an image; any H and W do.
        classes: number of outputs.

    Example:
        >>> import torch
        >>> small_cnn(input_shape=(1, 8, 8))(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    if not widths or any(width < 1 for width in widths):
        raise ValueError(f"widths are one positive number or more, got {list(widths)}")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = [input_shape[0], *widths]
    for i, (before, after) in enumerate(zip(channels, widths, strict=False), start=1):
        layers[f"conv{i}"] = nn.Conv2d(before, after, 3, padding=1, bias=False)
        layers[f"bn{i}"] = nn.BatchNorm2d(after)
        layers[f"relu{i}"] = nn.ReLU()
        layers[f"pool{i}"] = nn.AvgPool2d(2, ceil_mode=True)
    layers["gather"] = nn.AdaptiveAvgPool2d(2)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(4 * channels[-1], classes)
    return nn.Sequential(layers)
