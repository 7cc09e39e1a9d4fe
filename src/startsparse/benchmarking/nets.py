"""The nets that are measured whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ..training import models
from .by_hand import ResNet20


@dataclass(frozen=True)
class Net:
    """How to make it, the shape of one input, the batch it is trained with, the optimizer's name, and whether to fuse it."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int
    optimizer: str
    fuse: bool = False


def mlp(*widths: int) -> nn.Module:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for i in range(len(widths) - 1):
        layers += [nn.Linear(widths[i], widths[i + 1]), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def nets(sizes: tuple[int, ...] | None, quick: bool) -> dict[str, Net]:
    """Name -> net; with ``sizes``, MLPs of these widths instead."""
    if sizes:
        return {
            f"mlp {n}-{n}-{n}-10": Net(lambda n=n: mlp(n, n, n, 10), (n,), 128, "adam fused") for n in sizes
        }
    found = {
        "mlp 784-1024-1024-10": Net(lambda: mlp(784, 1024, 1024, 10), (784,), 128, "adam fused"),
        "resnet20": Net(lambda: models.make("resnet20"), (3, 32, 32), 128, "sgd"),
        "resnet20 by hand": Net(ResNet20, (3, 32, 32), 128, "sgd", fuse=True),
        "resnet20 width 64": Net(lambda: models.make("resnet20", width=4), (3, 32, 32), 64, "sgd"),
    }
    return dict(list(found.items())[:1]) if quick else found
