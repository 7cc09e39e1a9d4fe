"""Models by name. Each is a plain ``nn.Module`` that fits the shape and the classes of the data."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from startsparse.training.models import libraries
from startsparse.training.models.cnn import small_cnn
from startsparse.training.models.gcn import gcn
from startsparse.training.models.gpt import gpt
from startsparse.training.models.lenet import lenet5
from startsparse.training.models.mlp import lenet_300_100, mlp
from startsparse.training.models.mobilenet import mobilenet_v2
from startsparse.training.models.resnet import resnet20, resnet32, resnet56, resnet110
from startsparse.training.models.resnet_imagenet import resnet18, resnet50
from startsparse.training.models.vgg import vgg16_bn, vgg19_bn
from startsparse.training.models.vit import vit_tiny
from startsparse.training.names import find

TABLE: dict[str, Callable[..., nn.Module]] = {
    "gcn": gcn,
    "gpt": gpt,
    "lenet-300-100": lenet_300_100,
    "lenet5": lenet5,
    "mlp": mlp,
    "mobilenet-v2": mobilenet_v2,
    "resnet110": resnet110,
    "resnet18": resnet18,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet50": resnet50,
    "resnet56": resnet56,
    "small-cnn": small_cnn,
    "vgg16-bn": vgg16_bn,
    "vgg19-bn": vgg19_bn,
    "vit-tiny": vit_tiny,
}


def names() -> list[str]:
    """The models ``make`` knows, besides those of other libraries (``libraries.PREFIXES``).

    Example:
        >>> names()[:4]
        ['gcn', 'gpt', 'lenet-300-100', 'lenet5']
    """
    return sorted(TABLE)


def get(name: str) -> Callable[..., nn.Module]:
    """The builder of a model: one of ``names()``, or ``transformers:NAME`` or ``timm:NAME``.

    Raises:
        ValueError: no such model; the nearest name is told.
    """
    if isinstance(name, str) and name.startswith(tuple(libraries.PREFIXES)):
        return libraries.get(name)
    return find("model", name, TABLE)


def make(name: str, **options: object) -> nn.Module:
    """Build a model by name; ``input_shape`` and ``classes`` are options of all of them.

    Example:
        >>> sum(p.numel() for p in make("lenet-300-100").parameters() if p.dim() > 1)
        266200
        >>> make("resnet-20")
        Traceback (most recent call last):
        ValueError: unknown model 'resnet-20': did you mean 'resnet20'? known: ...
    """
    return get(name)(**options)


__all__ = [
    "TABLE",
    "gcn",
    "get",
    "gpt",
    "lenet5",
    "lenet_300_100",
    "libraries",
    "make",
    "mlp",
    "mobilenet_v2",
    "names",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet50",
    "resnet56",
    "resnet110",
    "small_cnn",
    "vgg16_bn",
    "vgg19_bn",
    "vit_tiny",
]
