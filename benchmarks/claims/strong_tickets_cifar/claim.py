"""Strong tickets inside random sparse nets: edge-popup over random frozen weights of a ResNet-8, on CIFAR-10.

The claim and its thresholds are those of ``strong_tickets``: signed constants for weights, batch norm without parameters
behind every layer, nothing trained but scores. Net and examples are those of ``cifar_common``, its recipe too, except that
a search goes twice as long as a training: scores of weights that cannot change are learnt more slowly.

A net that is trained by the recipe is about 35 points above chance, so 40 points above a net without search cannot be
reached; the same is asked at 0.4 of that bar, and whether a ticket in a random source keeps eight tenths of what one in a
dense net is above chance.
"""

from __future__ import annotations

import math
from typing import Any

import cifar_common as cifar
import common
import strong_tickets.claim as fashion
import torch
from torch import nn

TITLE = (
    "On CIFAR-10, too, random sparse nets hold sub-networks that work without any training, as dense ones do"
)
SOURCE = fashion.SOURCE
EPOCHS = 2 * cifar.EPOCHS
BAR, SHARE = cifar.SCALE * 0.4, 0.8
CONTROL = "0.1 to 0.1, nothing to search"


def runs() -> list[dict[str, Any]]:
    """One run a seed; it searches every arm in turn."""
    return [{"seed": seed} for seed in cifar.SEEDS]


def net(seed: int, density: float) -> nn.Module:
    """Signed constants ``sqrt(2 / (fan_in * density))``, batch norm without parameters, no biases."""
    model = cifar.net(seed)
    model.fc = nn.Sequential(
        nn.Linear(model.fc.in_features, 10, bias=False), nn.BatchNorm1d(10, affine=False)
    )  # pyright: ignore
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.affine, module.weight, module.bias = False, None, None  # pyright: ignore
        elif isinstance(module, nn.Conv2d | nn.Linear):
            with torch.no_grad():
                fan_in = module.weight[0].numel()
                _ = module.weight.copy_(module.weight.sign() * math.sqrt(2 / (fan_in * density)))
    return model


def run(seed: int) -> dict[str, Any]:
    """Every arm."""
    return {
        arm: fashion.search(net(seed, density), cifar.load(), arm, seed, EPOCHS, cifar.BATCH)
        for arm, (_, density) in fashion.ARMS.items()
    }


def judge(records: list[dict[str, Any]]) -> str:
    """As on Fashion-MNIST, then the bars that fit."""
    arms, lines = common.one_by_one(records, key="arm"), []
    for arm, dense in (("0.5 to 0.2", "dense to 0.2"), ("0.3 to 0.1", "dense to 0.1")):
        kept = cifar.keeps(arms, arm, dense, SHARE, by="arm", metric="accuracy")
        lines.append(f"- {arm} keeps {100 * SHARE:g} % of what {dense} is above chance: {kept}")
        found = common.difference(arms, "arm", "accuracy", arm, CONTROL)
        lines.append(f"- The search ({arm}) is worth {100 * BAR:g} points or more: {common.at_least(found, BAR)}, {common.points(found)}")  # fmt: skip
    return "\n\n".join([fashion.judge(arms), "## Bars that fit the accuracy", "\n".join(lines)])
