"""The CIFAR ResNets of He et al., with both shortcuts."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from startsparse.execution import fused
from startsparse.training.models.shapes import image_shape


class PadShortcut(nn.Module):
    """Option A: every second pixel, the new channels zero. No parameters."""

    def __init__(self, stride: int, missing: int):
        super().__init__()
        self.stride, self.missing = stride, missing

    def forward(self, x: Tensor, blocked: int = 0) -> Tensor:
        """(N, C, H, W) -> (N, C + missing, H / stride, W / stride); likewise with ``blocked`` axes behind them."""
        half = self.missing // 2
        return F.pad(
            x[:, :, :: self.stride, :: self.stride], (0, 0) * (2 + blocked) + (half, self.missing - half)
        )


class Residual(nn.Module):
    """Convolutions with their norms, ``conv1``, ``bn1`` and so on, ReLU between them, and a way around them."""

    shortcut: nn.Module

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """The convolutions with their norms, in order."""
        inside, count = self._modules, sum(name.startswith("conv") for name in self._modules)
        return [(inside[f"conv{i}"], inside[f"bn{i}"]) for i in range(1, count + 1)]  # type: ignore[misc]

    def forward(self, x: Tensor | fused.Blocked) -> Tensor | fused.Blocked:
        """One residual step; as one operation where it is executed sparsely."""
        pairs = self.pairs()
        inside = fused.enter(x, [conv for conv, _ in pairs])
        if (out := self._fused(inside, pairs)) is not None:
            return out if inside is x else fused.rows(out)
        y = x = fused.rows(x)
        *before, (conv, norm) = pairs
        for one, its_norm in before:
            y = F.relu(its_norm(one(y)))
        return F.relu(norm(conv(y)) + self.shortcut(x))

    def _fused(self, x: Tensor | fused.Blocked, pairs: list) -> fused.Blocked | None:
        if not isinstance(x, fused.Blocked) or not fused.unobserved(self.shortcut):
            return None
        way = x
        if isinstance(self.shortcut, PadShortcut):
            way = fused.Blocked(self.shortcut(x.tensor, blocked=1), x.batch)
        elif isinstance(self.shortcut, nn.Sequential):
            way = fused.chain(x, [(self.shortcut[0], self.shortcut[1])], relu=False)
            if way is None:
                return None
        return fused.chain(x, pairs, way)


def projection(before: int, after: int, stride: int) -> nn.Module:
    """Option B: a 1x1 convolution with its norm; nothing where no size changes."""
    if stride == 1 and before == after:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))


def stem(x: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor | fused.Blocked:
    """The first convolution with its norm and ReLU."""
    y = fused.chain(fused.enter(x, (conv,)), [(conv, norm)])
    return F.relu(norm(conv(x))) if y is None else y


def through(stages: Sequence[nn.Module], x: Tensor | fused.Blocked) -> Tensor:
    """Containers of residual blocks one after the other, in one layout where they are executed sparsely."""
    inside = [module for stage in stages for module in _inside(stage)]
    blocks = [module for module in inside if isinstance(module, Residual)]
    ours = blocks and all(isinstance(module, Residual | nn.Sequential) for module in inside)
    x = fused.enter(x, [conv for conv, _ in blocks[0].pairs()], inside) if ours else fused.rows(x)
    for stage in stages:
        x = stage(x)
    return fused.rows(x)


def _inside(container: nn.Module) -> list[nn.Module]:
    """A container and those in it, with their blocks."""
    found = [container]
    for module in container.children():
        found += _inside(module) if isinstance(module, nn.Sequential) else [module]
    return found


class BasicBlock(Residual):
    """Two 3x3 convolutions and a way around them."""

    def __init__(self, before: int, after: int, stride: int, shortcut: str):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        changes = stride != 1 or before != after
        padded = changes and shortcut == "A"
        self.shortcut = PadShortcut(stride, after - before) if padded else projection(before, after, stride)


def _stage(blocks: int, before: int, after: int, stride: int, shortcut: str) -> nn.Sequential:
    first = BasicBlock(before, after, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(after, after, 1, shortcut) for _ in range(blocks - 1)))


class CifarResNet(nn.Module):
    """conv1, three stages of ``blocks`` blocks, average pooling, ``fc``."""

    def __init__(self, blocks: int, shortcut: str, base: int, channels: int, classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, base, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.stage1 = _stage(blocks, base, base, 1, shortcut)
        self.stage2 = _stage(blocks, base, 2 * base, 2, shortcut)
        self.stage3 = _stage(blocks, 2 * base, 4 * base, 2, shortcut)
        self.fc = nn.Linear(4 * base, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, classes)."""
        x = through((self.stage1, self.stage2, self.stage3), stem(x, self.conv1, self.bn1))
        return self.fc(x.mean((2, 3)))


def _cifar_resnet(
    depth: int, shortcut: str, width: float, input_shape: Sequence[int], classes: int
) -> CifarResNet:
    if shortcut not in ("A", "B"):
        raise ValueError(f"shortcut is 'A' or 'B', got {shortcut!r}")
    base = round(16 * width)
    if base < 1:
        raise ValueError(f"width {width} leaves no channel in the first stage")
    channels, _, _ = image_shape(f"resnet{depth}", input_shape)
    return CifarResNet((depth - 2) // 6, shortcut, base, channels, classes)


def resnet20(
    shortcut: str = "A", width: float = 1.0, input_shape: Sequence[int] = (3, 32, 32), classes: int = 10
) -> CifarResNet:
    """ResNet-20 for CIFAR.

    Args:
        shortcut: ``"A"`` pads with zeros (the paper's choice on CIFAR), ``"B"`` uses 1x1 convolutions with batch norm.
        width: factor on the 16, 32 and 64 channels.
        input_shape: (C, H, W) of an image.
        classes: number of outputs.

    References:
        He et al., Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2, https://arxiv.org/abs/1512.03385

    Example:
        >>> weights = [p.numel() for p in resnet20("B").parameters() if p.dim() > 1]
        >>> len(weights), sum(weights)
        (22, 270896)
    """
    return _cifar_resnet(20, shortcut, width, input_shape, classes)


def resnet32(
    shortcut: str = "A", width: float = 1.0, input_shape: Sequence[int] = (3, 32, 32), classes: int = 10
) -> CifarResNet:
    """ResNet-32 for CIFAR: ``resnet20`` with five blocks a stage. Lottery Jackpots uses ``width=2``."""
    return _cifar_resnet(32, shortcut, width, input_shape, classes)


def resnet56(
    shortcut: str = "A", width: float = 1.0, input_shape: Sequence[int] = (3, 32, 32), classes: int = 10
) -> CifarResNet:
    """ResNet-56 for CIFAR: ``resnet20`` with nine blocks a stage."""
    return _cifar_resnet(56, shortcut, width, input_shape, classes)


def resnet110(
    shortcut: str = "A", width: float = 1.0, input_shape: Sequence[int] = (3, 32, 32), classes: int = 10
) -> CifarResNet:
    """ResNet-110 for CIFAR: ``resnet20`` with eighteen blocks a stage."""
    return _cifar_resnet(110, shortcut, width, input_shape, classes)
