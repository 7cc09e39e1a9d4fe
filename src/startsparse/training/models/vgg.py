"""VGG nets with batch norm, as they are used on small images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from startsparse.training.models.shapes import image_shape

_VGG16 = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)
_VGG19 = ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4)


def _vgg(
    name: str, plan: Sequence[Sequence[int]], width: float, input_shape: Sequence[int], classes: int
) -> nn.Sequential:
    before, _, _ = image_shape(name, input_shape)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for stage, channels in enumerate(plan, start=1):
        for i, full in enumerate(channels, start=1):
            after = round(full * width)
            if after < 1:
                raise ValueError(f"width {width} leaves no channel in stage {stage}")
            layers[f"conv{stage}_{i}"] = nn.Conv2d(before, after, 3, padding=1, bias=False)
            layers[f"bn{stage}_{i}"] = nn.BatchNorm2d(after)
            layers[f"relu{stage}_{i}"] = nn.ReLU()
            before = after
        layers[f"pool{stage}"] = nn.MaxPool2d(2, ceil_mode=True)
    layers["gather"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(before, classes)
    model = nn.Sequential(layers)
    for module in model:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    nn.init.normal_(layers["fc"].weight, 0, 0.01)
    nn.init.zeros_(layers["fc"].bias)
    return model


def vgg16_bn(
    width: float = 1.0, input_shape: Sequence[int] = (3, 32, 32), classes: int = 10
) -> nn.Sequential:
    """VGG-16 with batch norm and one linear layer, for small images.

    Args:
        width: factor on all channels.
        input_shape: (C, H, W) of an image; five poolings halve it, rounding up.
        classes: number of outputs.

    References:
        Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015,
        table 1 (D), https://arxiv.org/abs/1409.1556

    Fidelity:
        As in the pruning literature on CIFAR: batch norm, convolutions without bias, average pooling and one linear
        layer in place of the three of 4,096.

    Example:
        >>> weights = [p.numel() for p in vgg16_bn().parameters() if p.dim() > 1]
        >>> len(weights), sum(weights)
        (14, 14715584)
    """
    return _vgg("vgg16-bn", _VGG16, width, input_shape, classes)


def vgg19_bn(
    width: float = 1.0, input_shape: Sequence[int] = (3, 32, 32), classes: int = 10
) -> nn.Sequential:
    """VGG-19 with batch norm and one linear layer, for small images: ``vgg16-bn`` with three more convolutions."""
    return _vgg("vgg19-bn", _VGG19, width, input_shape, classes)
