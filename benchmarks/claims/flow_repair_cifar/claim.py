"""Repair of dead units before training: ResNet-8 on CIFAR-10.

The claim and its thresholds are those of ``flow_repair``; net, examples and training those of ``cifar_common``. Masks are
looked at for every ratio. Uniform and pyramidal ones, whose dead units are most, are trained at every density, ERK and
balanced ones at 0.5 % (at 1 % they are in ``ratios_cifar``). A residual net has a way around each block's two
convolutions, so a dead unit there need not cut the net; one in the first or the last layer does.
"""

from __future__ import annotations

import cifar_common as cifar
import common
import flow_repair.claim as digits

TITLE = "On CIFAR-10 repair leaves no dead unit, keeps the budget where a layer can, and costs no accuracy"
SOURCE = digits.SOURCE
NET = "ResNet-8"
OTHERS, OTHERS_AT = ("erk", "balanced"), (0.005,)


def runs() -> list[dict]:
    """One run a seed: every policy, and as many weights without repair as repair leaves."""
    return [{"seed": seed} for seed in cifar.SEEDS]


def run(seed: int) -> dict:
    """Masks before training, then two epochs each."""

    def look(method) -> dict:
        return digits.look(method, cifar.net(seed))

    def fit(method) -> dict:
        return cifar.fit(method, seed, keys=digits.KEPT, finish=digits.counts)

    trained = digits.every_policy(digits.TRAINED, seed, fit)
    trained |= digits.every_policy(OTHERS, seed, fit, OTHERS_AT)
    trained |= digits.matched(digits.TRAINED, seed, lambda: cifar.net(seed), fit)
    return {"masks": digits.every_policy(digits.RATIOS, seed, look), "training": trained}


def judge(records: list[dict]) -> str:
    """As on the digits."""
    cases = {
        what: common.one_by_one(
            [
                {"params": {"what": what, "net": NET, **record["params"]}, "result": record["result"][what]}
                for record in records
            ]
        )
        for what in ("masks", "training")
    }
    parts = ["## Masks", digits.masks_table(cases["masks"], NET), *digits.judge_masks(cases["masks"])]
    return "\n\n".join([*parts, "## Training", *digits.judge_training(cases["training"], digits.RATIOS)])
