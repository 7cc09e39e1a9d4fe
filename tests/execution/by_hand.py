"""Nets as people write them: layers called by hand in ``forward``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class BasicBlock(nn.Module):
    """As in torchvision: ReLU in place, ``out += identity``, a Sequential on the way around."""

    def __init__(self, before: int, after: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.downsample = None
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x):
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """A stem, three stages of blocks, pooling, a classifier."""

    def __init__(self, block=BasicBlock, count: int = 1, base: int = 4, classes: int = 5):
        super().__init__()
        self.conv1 = nn.Conv2d(3, base, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        stages, before = [], base
        for stage, width in enumerate((base, 2 * base, 4 * base)):
            stride = 2 if stage else 1
            stages.append(
                nn.Sequential(block(before, width, stride), *(block(width, width) for _ in range(count - 1)))
            )
            before = width
        self.layer1, self.layer2, self.layer3 = stages
        self.fc = nn.Linear(before, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.avg_pool2d(x, x.size()[3])
        return self.fc(x.view(x.size(0), -1))


class Mlp(nn.Module):
    """Linear layers with functions between them."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(192, 40), nn.Linear(40, 30), nn.Linear(30, 5)
        self.dropout = dropout

    def forward(self, x):
        x = F.relu(self.fc1(torch.flatten(x, 1)))
        x = F.relu(self.fc2(x))
        x = F.dropout(x, self.dropout, self.training)
        return self.fc3(x)


class Mixed(nn.Module):
    """Sums with and without ReLU, dropout inside a block, groups, a norm's weight read elsewhere, functions in place."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(
            [nn.Conv2d(8 if i else 3, 8, 3, padding=1, groups=1 if i < 2 else 2) for i in range(6)]
        )
        self.norms = nn.ModuleList([nn.BatchNorm2d(8) for _ in range(6)])
        self.drop, self.fc = nn.Dropout(0.3), nn.Linear(8, 5)

    def unit(self, i, x):
        return self.norms[i](self.convs[i](x))

    def forward(self, x):
        x = F.relu(self.unit(0, x))
        y = x + self.unit(2, self.drop(F.relu(self.unit(1, x))))
        z = torch.add(self.unit(3, y), y).relu()
        w = self.unit(5, F.relu_(self.unit(4, z)))
        w += self.norms[1].weight.view(1, -1, 1, 1) + z
        w = F.dropout(w, 0.2, self.training)
        return self.fc(F.relu(w).mean((2, 3)))


class Shared(nn.Module):
    """A convolution used three times, a norm twice."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2, self.bn3 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn3(self.conv2(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


class Gated(nn.Module):
    """Squeeze and excitation, a way around of another shape, a value added to itself."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.down, self.up, self.fc = nn.Linear(8, 4), nn.Linear(4, 8), nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(x)) + x.mean((2, 3), keepdim=True))
        gate = torch.sigmoid(self.up(F.relu(self.down(y.mean((2, 3))))))
        y = y * gate[:, :, None, None] + x
        y = y + y
        return self.fc(y.mean((2, 3)))
