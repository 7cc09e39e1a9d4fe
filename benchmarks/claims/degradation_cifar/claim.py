"""Random masks train, degrade with sparsity, and gain by width: ResNet-8 on CIFAR-10.

The claim and its thresholds are those of ``degradation``; nets (of 4 and 16 channels, here called the width), examples
and training are those of ``cifar_common``, where it is told why a share of what dense is above chance is asked as well
(nine tenths at density 0.3, eight tenths at 0.1), and the gain by width also at 0.4 of its bar.
"""

from __future__ import annotations

import cifar_common as cifar
import common
import degradation.claim as digits

TITLE = "On CIFAR-10 random sparse nets train: close to dense at 30 % and 10 % density, worse as density falls, better when wider"
SOURCE = digits.SOURCE
WIDTHS = (cifar.NARROW, cifar.WIDE)
SHARES = ((0.3, 0.9, ("uniform", "erk", "balanced")), (0.1, 0.8, ("erk", "balanced")))
GAIN = cifar.SCALE * 0.08


def runs() -> list[dict]:
    """One run a seed; it trains every case of both widths in turn."""
    return [{"seed": seed} for seed in cifar.SEEDS]


def run(seed: int) -> dict:
    """The dense net and every ratio at every density, of both widths."""
    return {
        f"{width} {name}": cifar.fit(method, seed, channels=width)
        for width in WIDTHS
        for name, method in digits.methods(seed).items()
    }


def judge(records: list[dict]) -> str:
    """As on the digits, then the bars that fit."""
    cases = []
    for record in common.one_by_one(records):
        width, name = record["params"]["case"].split()
        cases.append(record | {"params": record["params"] | {"case": name, "width": int(width)}})
    wide, lines = [case for case in cases if case["params"]["width"] == cifar.WIDE], []
    for density, share, ratios in SHARES:
        for ratio in ratios:
            kept = cifar.keeps(wide, f"{ratio}@{density:g}", "dense", share)
            lines.append(
                f"- {ratio} at density {density:g} keeps {100 * share:g} % of what dense is above chance: {kept}"
            )
    for ratio in ("uniform", "erk", "balanced"):
        of = [case for case in cases if case["params"]["case"] == f"{ratio}@0.1"]
        found = common.difference(of, "width", "test_accuracy", *map(str, reversed(WIDTHS)))
        lines.append(
            f"- {ratio} at density 0.1: W = {cifar.WIDE} beats W = {cifar.NARROW} by {100 * GAIN:g} pp or more: "
            f"{common.reaches(found, GAIN)}, {common.points(found)}"
        )
    whole = digits.judge_cases(cases, WIDTHS, gains_at=(0.1,))
    return "\n\n".join([whole, "## Bars that fit the accuracy", *lines])
