"""Targets of every kind that can be embedded."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from startsparse.training import models


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def sparse_mlp() -> nn.Sequential:
    net = mlp(6, 10, 10, 3)
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() == 2:
                p.mul_(torch.rand_like(p) < 0.3)
    return net


def cnn() -> nn.Sequential:
    """Stride, padding, dilation, groups, batch norm, pooling."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, (3, 2), groups=2, dilation=2, padding=(2, 1)),
        nn.LeakyReLU(0.1),
        nn.Dropout(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 3),
    )


class Called(nn.Module):
    """Activations, padding and reshaping as people write them in a forward of their own."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 3, (3, 5), padding="same", dilation=(1, 2), bias=False)
        self.b, self.out = nn.Conv2d(3, 4, 2, stride=2, padding="valid"), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.elu(F.leaky_relu(self.a(x), negative_slope=0.2), 0.7)
        x = F.dropout(self.b(x).tanh(), 0.5, training=self.training)
        return torch.sigmoid(self.out(F.relu6(x).view(-1, 16)))


def depthwise() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=2),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 2),
    )


class Forked(nn.Module):
    """Two layers read the input, and their sum is read twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 5)
        self.out = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x) + self.b(x))
        return self.out(x + torch.relu(self.c(x)))


def residual(shortcut: str) -> nn.Module:
    return models.make("resnet20", shortcut=shortcut, width=0.125, input_shape=(3, 8, 8))


def trained(net: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Batch norms that have seen something."""
    net.train()
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(16, *shape))
    return net.eval()


MAKERS = {
    "mlp": (lambda: mlp(5, 8, 8, 3), (5,)),
    "one layer": (lambda: mlp(4, 3), (4,)),
    "sparse mlp": (sparse_mlp, (6,)),
    "tanh": (lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3), nn.Sigmoid()), (5,)),
    "image mlp": (lambda: models.make("mlp", widths=(6,), input_shape=(1, 3, 3), batch_norm=True), (1, 3, 3)),
    "cnn": (cnn, (2, 8, 8)),
    "called": (Called, (1, 5, 5)),
    "depthwise": (depthwise, (4, 8, 8)),
    "small-cnn": (lambda: models.make("small-cnn", widths=(3, 4)), (1, 12, 12)),
    "forked": (Forked, (4,)),
    "resnet A": (lambda: residual("A"), (3, 8, 8)),
    "resnet B": (lambda: residual("B"), (3, 8, 8)),
}


def make(name: str) -> nn.Module:
    maker, shape = MAKERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return trained(maker(), shape)


def inputs(name: str, number: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return 3 * torch.randn(number, *MAKERS[name][1], generator=generator, dtype=torch.float64)
