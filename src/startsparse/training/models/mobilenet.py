"""MobileNetV2, with the strides of ImageNet or of CIFAR."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from startsparse.training.models.shapes import has_large_stem, image_shape

# expansion, channels, blocks, stride of the first block: table 2 of the paper
_TABLE = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _round8(channels: float) -> int:
    """The nearest multiple of 8, at least 8, not below 90 % of what was asked for."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _unit(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(after), nn.ReLU6()]


class InvertedResidual(nn.Module):
    """1x1 up, 3x3 depthwise, 1x1 down without activation, and a way around where nothing changes size."""

    def __init__(self, before: int, after: int, stride: int, expansion: int):
        super().__init__()
        inner = before * expansion
        self.up = nn.Sequential(*_unit(before, inner, 1)) if expansion != 1 else nn.Identity()
        self.depthwise = nn.Sequential(*_unit(inner, inner, 3, stride, groups=inner))
        self.down = nn.Sequential(*_unit(inner, after, 1)[:2])
        self.around = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        """(N, before, H, W) -> (N, after, H / stride, W / stride)."""
        y = self.down(self.depthwise(self.up(x)))
        return x + y if self.around else y


class MobileNetV2(nn.Module):
    """A stem, seventeen inverted residuals, a 1x1 convolution, average pooling, dropout, ``fc``."""

    def __init__(self, width: float, large_stem: bool, dropout: float, channels: int, classes: int):
        super().__init__()
        before = _round8(32 * width)
        self.stem = nn.Sequential(*_unit(channels, before, 3, 2 if large_stem else 1))
        self.blocks = nn.Sequential()
        for i, (expansion, full, count, first) in enumerate(_TABLE):
            after = _round8(full * width)
            for block in range(count):
                stride = first if not block and (large_stem or i != 1) else 1
                self.blocks.append(InvertedResidual(before, after, stride, expansion))
                before = after
        last = _round8(1280 * max(1.0, width))
        self.head = nn.Sequential(*_unit(before, last, 1))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(last, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        nn.init.normal_(self.fc.weight, 0, 0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, classes)."""
        x = self.head(self.blocks(self.stem(x)))
        return self.fc(self.dropout(x.mean((2, 3))))


def mobilenet_v2(
    width: float = 1.0,
    stem: str = "auto",
    dropout: float = 0.2,
    input_shape: Sequence[int] = (3, 32, 32),
    classes: int = 10,
) -> MobileNetV2:
    """MobileNetV2: inverted residuals with depthwise convolutions.

    Args:
        width: factor on all channels, each rounded to a multiple of 8.
        stem: ``"imagenet"`` has all strides of the paper; ``"cifar"`` has stride 1 in the first convolution and in
            the first group of 24 channels, as is usual for images of 32x32; ``"auto"`` is that of ImageNet for images
            of more than 64 pixels.
        dropout: share of the last features dropped in training.
        input_shape: (C, H, W) of an image.
        classes: number of outputs.

    References:
        Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018, table 2,
        https://arxiv.org/abs/1801.04381

    Its depthwise convolutions have 9 weights a channel; ``layers=["!*.depthwise.0"]`` keeps them dense.

    Example:
        >>> len([p for p in mobilenet_v2().parameters() if p.dim() > 1])  # 17 of them are depthwise
        53
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is a share in [0, 1), got {dropout}")
    if width <= 0:
        raise ValueError(f"width is positive, got {width}")
    channels, height, side = image_shape("mobilenet-v2", input_shape)
    return MobileNetV2(width, has_large_stem(stem, height, side), dropout, channels, classes)
