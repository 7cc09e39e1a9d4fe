"""The ImageNet ResNets of He et al., with the stem of ImageNet or of CIFAR."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from startsparse.execution import fused
from startsparse.training.models.resnet import BasicBlock, Residual, projection, stem, through
from startsparse.training.models.shapes import has_large_stem, image_shape


class Bottleneck(Residual):
    """1x1, 3x3 (it has the stride) and 1x1 convolutions, four times as many channels out, and a way around them."""

    def __init__(self, before: int, inner: int, stride: int):
        super().__init__()
        after = 4 * inner
        self.conv1 = nn.Conv2d(before, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, after, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.shortcut = projection(before, after, stride)


class ImageNetResNet(nn.Module):
    """A stem, four stages (the last three halve the image), average pooling, ``fc``."""

    def __init__(
        self,
        blocks: Sequence[int],
        bottleneck: bool,
        base: int,
        large_stem: bool,
        channels: int,
        classes: int,
    ):
        super().__init__()
        kernel, stride = (7, 2) if large_stem else (3, 1)
        self.conv1 = nn.Conv2d(channels, base, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.pool = nn.MaxPool2d(3, 2, padding=1) if large_stem else nn.Identity()
        self.stages = nn.Sequential()
        width = base
        for stage, count in enumerate(blocks):
            inner = base * 2**stage
            layers: list[nn.Module] = []
            for block in range(count):
                stride = 2 if stage and not block else 1
                if bottleneck:
                    layers.append(Bottleneck(width, inner, stride))
                    width = 4 * inner
                else:
                    layers.append(BasicBlock(width, inner, stride, "B"))
                    width = inner
            self.stages.append(nn.Sequential(*layers))
        self.fc = nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, classes)."""
        if isinstance(self.pool, nn.Identity) and fused.unobserved(self.pool):
            y = stem(x, self.conv1, self.bn1)
        else:
            y = self.pool(F.relu(self.bn1(self.conv1(x))))
        x = through((self.stages,), y)
        return self.fc(x.mean((2, 3)))


def _make(
    name: str,
    blocks: Sequence[int],
    bottleneck: bool,
    stem: str,
    width: float,
    input_shape: Sequence[int],
    classes: int,
) -> ImageNetResNet:
    channels, *sides = image_shape(name, input_shape)
    base = round(64 * width)
    if base < 1:
        raise ValueError(f"width {width} leaves no channel in the first stage")
    return ImageNetResNet(blocks, bottleneck, base, has_large_stem(stem, *sides), channels, classes)


def resnet18(
    stem: str = "auto", width: float = 1.0, input_shape: Sequence[int] = (3, 32, 32), classes: int = 10
) -> ImageNetResNet:
    """ResNet-18 of basic blocks.

    Args:
        stem: ``"imagenet"`` (7x7 of stride 2 and a pooling), ``"cifar"`` (3x3 of stride 1, as is usual for small
            images), or ``"auto"``: that of ImageNet for images of more than 64 pixels.
        width: factor on all channels.
        input_shape: (C, H, W) of an image.
        classes: number of outputs.

    References:
        He et al., Deep Residual Learning for Image Recognition, CVPR 2016, table 1, https://arxiv.org/abs/1512.03385

    Example:
        >>> weights = [p.numel() for p in resnet18().parameters() if p.dim() > 1]
        >>> len(weights), sum(weights)
        (21, 11164352)
    """
    return _make("resnet18", (2, 2, 2, 2), False, stem, width, input_shape, classes)


def resnet50(
    stem: str = "auto", width: float = 1.0, input_shape: Sequence[int] = (3, 224, 224), classes: int = 1000
) -> ImageNetResNet:
    """ResNet-50 of bottleneck blocks, the stride in the 3x3 convolution; options as for ``resnet18``.

    References:
        He et al., Deep Residual Learning for Image Recognition, CVPR 2016, table 1, https://arxiv.org/abs/1512.03385

    Fidelity:
        The paper has the stride in the first 1x1 convolution; in the 3x3 is what today's results are of.

    Example:
        >>> weights = [p.numel() for p in resnet50().parameters() if p.dim() > 1]
        >>> len(weights), sum(weights)
        (54, 25502912)
    """
    return _make("resnet50", (3, 4, 6, 3), True, stem, width, input_shape, classes)
