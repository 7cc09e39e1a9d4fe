"""Weight shapes of the nets that golden values are written down for: name -> (out, in, *kernel), in module order."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal

Shapes = dict[str, tuple[int, ...]]


def mlp(*widths: int) -> Shapes:
    """fc1, fc2, ... of a multi-layer perceptron."""
    return {f"fc{i}": (b, a) for i, (a, b) in enumerate(itertools.pairwise(widths), 1)}


def resnet18() -> Shapes:
    """ResNet-18 for CIFAR-10: 3x3 stem, two basic blocks a stage, 1x1 shortcuts; 21 tensors."""
    shapes: Shapes = {"conv1": (64, 3, 3, 3)}
    width = 64
    for stage, out in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            name = f"layer{stage}.{block}"
            shapes[f"{name}.conv1"] = (out, width, 3, 3)
            shapes[f"{name}.conv2"] = (out, out, 3, 3)
            if width != out:
                shapes[f"{name}.short"] = (out, width, 1, 1)
            width = out
    return shapes | {"linear": (10, 512)}


def resnet20() -> Shapes:
    """ResNet-20 for CIFAR-10 with 1x1 convolutions as shortcuts; 22 tensors."""
    shapes: Shapes = {"conv1": (16, 3, 3, 3)}
    width = 16
    for stage, out in enumerate((16, 32, 64), 1):
        for block in range(3):
            name = f"layer{stage}.{block}"
            shapes[f"{name}.conv1"] = (out, width, 3, 3)
            shapes[f"{name}.conv2"] = (out, out, 3, 3)
            if width != out:
                shapes[f"{name}.short"] = (out, width, 1, 1)
            width = out
    return shapes | {"fc": (10, 64)}


def vgg16() -> Shapes:
    """VGG-16 for CIFAR-10: 13 convolutions and one Linear; 14 tensors."""
    widths = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    shapes: Shapes = {f"conv{i}": (b, a, 3, 3) for i, (a, b) in enumerate(itertools.pairwise(widths), 1)}
    return shapes | {"fc": (10, 512)}


def resnet50(classes: int, stem: int) -> Shapes:
    """ResNet-50 with a stem of this kernel size; 54 tensors."""
    shapes: Shapes = {"conv1": (64, 3, stem, stem)}
    width = 64
    for stage, (inner, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            shapes[f"{name}.conv1"] = (inner, width, 1, 1)
            shapes[f"{name}.conv2"] = (inner, inner, 3, 3)
            shapes[f"{name}.conv3"] = (4 * inner, inner, 1, 1)
            if block == 0:
                shapes[f"{name}.short"] = (4 * inner, width, 1, 1)
            width = 4 * inner
    return shapes | {"fc": (classes, 2048)}


NETS: dict[str, Shapes] = {
    "mlp": mlp(784, 300, 100, 10),
    "resnet18": resnet18(),
    "resnet20": resnet20(),
    "vgg16": vgg16(),
    "resnet50_cifar100": resnet50(100, 3),
    "resnet50_imagenet": resnet50(1000, 7),
}

NUM_TENSORS_AND_WEIGHTS = {
    "mlp": (3, 266_200),
    "resnet18": (21, 11_164_352),
    "resnet20": (22, 270_896),
    "vgg16": (14, 14_715_584),
    "resnet50_cifar100": (54, 23_652_032),
    "resnet50_imagenet": (54, 25_502_912),
}

DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.01, 0.005, 0.001)

_RESNET18_LAYER1 = [f"layer1.{block}.conv{i}" for block in range(2) for i in (1, 2)]
_RESNET18 = {  # rule, density -> group of layers -> printed density
    ("erk", 0.1): "1 .47968 .35439 .23447 1 .17451 .11589 .08658 .05761 .77523 1",
    ("balanced", 0.1): "1 1 .96109 .48055 1 .24027 .12014 .06007 .03003 .54061 1",
    ("erk", 0.01): ".51424 .04425 .03269 .02163 .28827 .01610 .01069 .00799 .00531 .07151 1",
    ("balanced", 0.01): "1 .14962 .07481 .03740 .67329 .01870 .00935 .00468 .00234 .04208 1",
}
_RESNET18_GROUPS = [
    ["conv1"],
    _RESNET18_LAYER1,
    ["layer2.0.conv1"],
    ["layer2.0.conv2", "layer2.1.conv1", "layer2.1.conv2"],
    ["layer2.0.short"],
    ["layer3.0.conv1"],
    ["layer3.0.conv2", "layer3.1.conv1", "layer3.1.conv2"],
    ["layer4.0.conv1"],
    ["layer4.0.conv2", "layer4.1.conv1", "layer4.1.conv2"],
    ["layer4.0.short"],
    ["linear"],
]
_RESNET18_PYRAMIDAL = {  # layers in module order; None: not written down
    0.1: ".862041 .743115 .640595 .552219 .476036 .410362 .353749 .304946 - - .195347 .168397 - - - .092992 "
    ".080163 .069104 - .051352 .044268",
    0.01: ".698380 .487735 .340625 .237886 .166135 .116025 .081030 .056590 - - .019276 .013462 - - - .003202 "
    ".002236 .001562 - .000762 .000532",
}
_RESNET20_GROUPS = [
    ["conv1"],
    [f"layer1.{b}.conv{i}" for b in range(3) for i in (1, 2)],
    ["layer2.0.conv1"],
    ["layer2.0.conv2", *(f"layer2.{b}.conv{i}" for b in (1, 2) for i in (1, 2))],
    ["layer2.0.short"],
    ["layer3.0.conv1"],
    ["layer3.0.conv2", *(f"layer3.{b}.conv{i}" for b in (1, 2) for i in (1, 2))],
    ["layer3.0.short"],
    ["fc"],
]


def _grouped(groups: list[list[str]], printed: str) -> dict[str, str]:
    return {
        name: value
        for names, value in zip(groups, printed.split(), strict=True)
        for name in names
        if value != "-"
    }


def _in_order(net: str, printed: str) -> dict[str, str]:
    return {name: v for name, v in zip(NETS[net], printed.split(), strict=True) if v != "-"}


GOLDEN: dict[tuple[str, str, float], dict[str, str]] = {
    **{("resnet18", *at): _grouped(_RESNET18_GROUPS, text) for at, text in _RESNET18.items()},
    **{("resnet18", "pyramidal", p): _in_order("resnet18", t) for p, t in _RESNET18_PYRAMIDAL.items()},
    ("mlp", "erk", 0.1): _in_order("mlp", ".079568 .230189 1"),
    ("mlp", "balanced", 0.1): _in_order("mlp", ".054464 .427 1"),
    ("mlp", "pyramidal", 0.1): _in_order("mlp", ".111586 .012451 .001389"),
    ("mlp", "erk", 0.05): _in_order("mlp", ".038484 .111334 .918507"),
    ("mlp", "balanced", 0.05): _in_order("mlp", ".026169 .205167 1"),
    ("vgg16", "erk", 0.1): _in_order(
        "vgg16",
        "1 .670216 .49516 .327606 .243829 .161927 .161927 .120977 .080495 .080495 .080495 .080495 .080495 1",
    ),
    ("vgg16", "balanced", 0.1): _in_order(
        "vgg16", "1 1 1 .91832 .45916 .22958 .22958 .11479 .057395 .057395 .057395 .057395 .057395 1"
    ),
    ("vgg16", "erk", 0.01): _in_order(
        "vgg16",
        ".748454 .0644 .047579 .031479 .023429 .015559 .015559 .011625 .007735 .007735 .007735 .007735 .007735 1",
    ),
    ("vgg16", "balanced", 0.01): _in_order(
        "vgg16",
        "1 .317174 .158587 .079294 .039647 .019823 .019823 .009912 .004956 .004956 .004956 .004956 .004956 1",
    ),
    ("resnet20", "balanced", 0.1): _grouped(
        _RESNET20_GROUPS, "1 .58264 .29132 .14566 1 .07283 .03641 .65547 1"
    ),
    ("resnet20", "erk", 0.1): _grouped(
        _RESNET20_GROUPS, ".98299 .28015 .19905 .12902 1 .094 .06174 .81281 1"
    ),
    ("resnet50_cifar100", "erk", 0.1): {
        "conv1": "1",
        "layer1.0.conv2": ".167473",
        "layer1.0.conv3": ".90548",
        "fc": ".483223",
    },
    ("resnet50_cifar100", "balanced", 0.1): {
        "conv1": "1",
        "layer1.0.conv2": "1",
        "layer1.0.conv3": "1",
        "fc": ".2462",
    },
    ("resnet50_cifar100", "pyramidal", 0.1): {
        "conv1": ".941829",
        "layer1.0.conv2": ".835443",
        "layer1.0.conv3": ".786844",
        "fc": ".03931",
    },
    ("resnet50_cifar100", "erk", 0.01): {
        "conv1": ".194346",
        "layer1.0.conv2": ".016722",
        "fc": ".04825",
    },
    ("resnet50_cifar100", "balanced", 0.01): {
        "conv1": "1",
        "layer1.0.conv2": ".120347",
        "fc": ".021662",
    },
    ("resnet50_cifar100", "pyramidal", 0.01): {
        "conv1": ".858511",
        "layer1.0.conv2": ".632758",
        "fc": ".000264",
    },
}


def _by_density(printed: str) -> dict[float, str]:
    return dict(zip(DENSITIES, printed.split(), strict=True))


PYRAMIDAL_ROOTS: dict[str, dict[float, str]] = {  # net -> density -> r, the first layer's density
    "resnet18": _by_density(".958626 .904031 .862041 .818367 .698380 .628105 .403553"),
    "vgg16": _by_density(".932806 .846975 .783743 .721383 .576184 .511628 .354531"),
    "resnet20": {0.1: ".85164"},
    "resnet50_cifar100": {0.1: ".941829"},
    "resnet50_imagenet": {0.1: ".942990"},
}


def agrees(value: float, printed: str) -> bool:
    """Whether a value rounds to what is printed, with a hair's room for printing a tie."""
    digits = -Decimal(printed).as_tuple().exponent  # type: ignore[operator]
    return math.isclose(value, float(printed), rel_tol=0, abs_tol=(0.5 + 1e-3) * 10.0**-digits)
