"""Models by name. Each is a plain ``nn.Module`` that fits the shape and the classes of the data."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from startsparse.training.models.cnn import small_cnn
from startsparse.training.models.mlp import lenet_300_100, mlp
from startsparse.training.models.resnet import resnet20
from startsparse.training.names import find

TABLE: dict[str, Callable[..., nn.Module]] = {
    "lenet-300-100": lenet_300_100,
    "mlp": mlp,
    "resnet20": resnet20,
    "small-cnn": small_cnn,
}


def names() -> list[str]:
    """The models ``make`` knows.

    Example:
        >>> names()
        ['lenet-300-100', 'mlp', 'resnet20', 'small-cnn']
    """
    return sorted(TABLE)


def make(name: str, **options: object) -> nn.Module:
    """Build a model by name; ``input_shape`` (C, H, W) and ``classes`` are options of all of them.

    Example:
        >>> sum(p.numel() for p in make("lenet-300-100").parameters() if p.dim() > 1)
        266200
        >>> make("resnet-20")
        Traceback (most recent call last):
        ValueError: unknown model 'resnet-20': did you mean 'resnet20'? known: lenet-300-100, mlp, resnet20, small-cnn
    """
    return find("model", name, TABLE)(**options)


__all__ = ["TABLE", "lenet_300_100", "make", "mlp", "names", "resnet20", "small_cnn"]
