"""Random masks train, degrade with sparsity, and gain by width: MLP 784-W-W-10 on Fashion-MNIST.

The claim and its thresholds are those of ``degradation``. The nets here have eight times as many weights, so the gain
by width is also asked at 1 % density, where the narrow net has about as many as the digits' one at 10 %.
"""

from __future__ import annotations

import common
import degradation.claim as digits

TITLE = "On Fashion-MNIST random sparse nets train: close to dense at 30 % and 10 % density, worse as density falls, better when wider"
SOURCE = digits.SOURCE
SEEDS = range(5)


def runs() -> list[dict]:
    """One run a seed and width; it trains every case in turn."""
    return [{"width": width, "seed": seed} for width in digits.WIDTHS for seed in SEEDS]


def run(width: int, seed: int) -> dict:
    """Ten epochs of 10,000 training examples."""
    data = common.load("fashion-mnist", train=10_000)
    return digits.every_case(data, width, seed, epochs=10, batch=128)


def judge(records: list[dict]) -> str:
    """As on the digits; the gain by width at two densities."""
    return digits.judge(records, gains_at=(0.1, 0.01))
