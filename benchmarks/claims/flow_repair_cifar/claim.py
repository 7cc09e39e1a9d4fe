"""Repair of dead units before training: ResNet-8 on CIFAR-10, every ratio.

The claim and its thresholds are those of ``flow_repair``; net, examples and training those of ``cifar_common``. A residual
net has a way around each block's two convolutions, so a dead unit there need not cut the net; dead units in a first or last
layer, of which uniform and pyramidal densities leave most, do.
"""

from __future__ import annotations

import cifar_common as cifar
import common
import flow_repair.claim as digits

TITLE = "On CIFAR-10 repair leaves no dead unit, keeps the budget where a layer can, and costs no accuracy"
SOURCE = digits.SOURCE


def runs() -> list[dict]:
    """One run a seed: every policy with every ratio, and as many weights without repair as repair leaves."""
    return [{"seed": seed} for seed in cifar.SEEDS]


def run(seed: int) -> dict:
    """Two epochs each."""

    def fit(method) -> dict:
        return cifar.fit(method, seed, keys=digits.KEPT, finish=digits.counts)

    every = digits.every_policy(digits.RATIOS, seed, fit)
    return every | digits.matched(digits.TRAINED, seed, lambda: cifar.net(seed), fit)


def judge(records: list[dict]) -> str:
    """As on the digits: counts of the masks after training, which moves none, and accuracies."""
    cases = common.one_by_one(records)
    trained = [case | {"params": case["params"] | {"what": "training"}} for case in cases]
    masks = ["## Masks", *digits.judge_masks(cases)]
    return "\n\n".join([*masks, "## Training", *digits.judge_training(trained, digits.RATIOS)])
