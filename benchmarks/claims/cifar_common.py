"""What the claims of random masks on CIFAR-10 share: examples, net, training, and bars that fit the accuracy.

The net is ResNet-8: a first convolution, three blocks of two, a linear layer; eight sparse layers, shortcuts without
weights. To be cheap, its first convolution has stride 2. With 16 channels it has about as many weights (74,800) as the
MLP of the same claims on scikit-learn's digits, with 4 (4,876) about as many as that one's narrow variant.

One recipe for all: 7,680 training examples, 2 epochs, batches of 64, SGD with momentum 0.9, weight decay 5e-4 and a cosine
from 0.1, no augmentation. It was chosen once, on dense nets of seeds 900 and 901, by accuracy on 2,000 validation examples
(means of the two): rates 0.05, 0.1 and 0.2 gave 44.5, 45.6 and 44.4 %; one epoch of twice the examples and three of two
thirds gave 45.4 and 45.6 %; half the batch, at 0.1, gave 45.8 % for a quarter more time; a third more examples 47.2 %
for half more.

Bars stand in points that were set for the digits, where the dense net is 88 points above chance. Here it is 35, so
a bar can ask for more than there is. It is kept; beside it the same question is asked at 0.4 of the bar (``SCALE``).
Where two nets are to be equal within a margin, 0.4 of it would be below what one run differs from the next; there the
share is asked that is kept of what dense is above chance (``keeps``).
"""

from __future__ import annotations

from typing import Any

import common
from common import stats
from torch import nn

import startsparse as ss
from startsparse.training import seeds
from startsparse.training.models.resnet import CifarResNet

SEEDS = range(5)
EPOCHS, BATCH = 2, 64
WIDE, NARROW = 16, 4  # channels of the first of three stages
CHANCE, SCALE = 0.1, 0.4
KEPT = ("test_accuracy", "density", "live_weights", "flops")


def load() -> common.Data:
    """7,680 training examples, 2,000 to choose by, the whole test part."""
    return common.load("cifar10", train=7_680, validation=2_000)


def net(seed: int, channels: int = WIDE) -> CifarResNet:
    """ResNet-8, its initial weights a function of the seed."""
    seeds.seed_all(seeds.derive(seed, "model"))
    model = CifarResNet(blocks=1, shortcut="A", base=channels, channels=3, classes=10)
    model.conv1.stride = (2, 2)
    return model


def fit(
    method: ss.methods.Method | None,
    seed: int,
    *,
    channels: int = WIDE,
    keys: tuple[str, ...] = KEPT,
    epochs: int = EPOCHS,
    model: nn.Module | None = None,
    **given: Any,
) -> dict[str, Any]:
    """Train by the recipe; the same initial weights and batches for every method of a seed."""
    chosen = net(seed, channels) if model is None else model
    result = common.train(chosen, load(), method, epochs=epochs, batch=BATCH, lr=0.1, seed=seed, **given)
    return {key: result[key] for key in keys}


# -- judging -------------------------------------------------------------------------------------------------------


def keeps(cases: list[dict[str, Any]], label: str, baseline: str, share: float, **named: str) -> str:
    """Whether a case keeps a share of what the baseline is above chance, at least: the verdict and figures."""
    found = common.values(cases, named.get("by", "case"), named.get("metric", "test_accuracy"))
    ours, theirs = found[label], found[baseline]
    both = sorted(ours.keys() & theirs.keys())
    rest = stats.paired([ours[s] - CHANCE - share * (theirs[s] - CHANCE) for s in both])
    kept = sum(ours[s] - CHANCE for s in both) / sum(theirs[s] - CHANCE for s in both)
    return f"{common.at_least(rest, 0)}, {100 * kept:.0f} % kept, {common.points(rest)} beyond that share"
