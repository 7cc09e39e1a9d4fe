"""Rewiring a few weights rescues extreme sparsity: ResNet-8 on CIFAR-10.

The claim and its thresholds are those of ``rewiring``; net, examples and training those of ``cifar_common``, where it is
told why 20 points are also asked at 0.4 of that bar. With 240 steps in all the update interval is half of the digits'.
"""

from __future__ import annotations

import cifar_common as cifar
import common
import rewiring.claim as digits

TITLE = "On CIFAR-10 RigL started from a balanced random mask is far above the mask left alone at extreme sparsity, and not below SET"
SOURCE = digits.SOURCE
INTERVAL = 10
BAR = cifar.SCALE * 0.2


def runs() -> list[dict]:
    """One run a seed; it trains every method at every density in turn."""
    return [{"seed": seed} for seed in cifar.SEEDS]


def run(seed: int) -> dict:
    """Two epochs, an update every ten steps."""

    def fit(method, look) -> dict:
        return cifar.fit(method, seed, keys=digits.KEPT, each_step=look)

    return digits.counted(fit, seed, digits.DENSITIES, INTERVAL)


def judge(records: list[dict]) -> str:
    """As on the digits, then the bar that fits."""
    cases, lines = common.one_by_one(records), []
    for density in digits.DENSITIES:
        found = common.difference(cases, "case", "test_accuracy", f"rigl@{density:g}", f"static@{density:g}")
        for bar in (BAR, 0.0) if density == 0.01 else (0.0,):
            says = f"{100 * bar:g} pp or more above static" if bar else "above static"
            lines.append(
                f"- RigL {says} at density {density:g}: {common.reaches(found, bar)}, {common.points(found)}"
            )
    return "\n\n".join([digits.judge(records), "## Bars that fit the accuracy", *lines])
