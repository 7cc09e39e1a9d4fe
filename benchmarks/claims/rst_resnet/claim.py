"""RST on a residual net with batch norms, on Fashion-MNIST."""

from __future__ import annotations

import statistics
from typing import Any

import common
from rst_common import SEEDS, Bench, arm_records, behind, gate, values

TITLE = (
    "On a ResNet-8 and Fashion-MNIST RST trains a random ticket better than scratch, also with equal samples"
)
SOURCE = "Bai et al., Dual Lottery Ticket Hypothesis, ICLR 2022, section 4 (ResNets)"
SPARSITY = 0.9
BAR, MARGIN = 0.003, -0.01


def runs() -> list[dict]:
    """A seed each."""
    return [{"task": "resnet", "seed": seed, "sparsity": SPARSITY} for seed in SEEDS]


def run(**where: Any) -> dict:
    """Accuracy of each arm: 1,000 training images averaged to 14x14, all 10,000 test images."""
    bench = Bench(**where)
    return {
        "scratch": bench.scratch(),
        "scratch-ef": bench.scratch(2.15),
        "rst": bench.rst(),
        "no pull": bench.rst(bound=0.0),
        "lth": bench.lottery(),
    }


def judge(records: list[dict]) -> str:
    """Differences of RST to all others, Holm over them."""
    some = arm_records(records)
    passed, told = gate(some)
    parts = [told, common.paired_table(some, "arm", "accuracy", "scratch")]
    others = ("scratch", "scratch-ef", "no pull", "lth")
    found = [common.difference(some, "arm", "accuracy", "rst", other) for other in others]
    for other, difference in zip(others, common.stats.holm_all(found), strict=True):
        if other == "lth":
            bar, word = MARGIN, common.at_least(difference, MARGIN)
        else:
            bar = 0.0 if other == "no pull" else BAR
            word = common.at_least(difference, bar)
            word = "CANNOT TELL" if word == "PASS" and difference.p > 0.05 else word
        parts.append(
            f"RST - {other}, interval above {100 * bar:g} pp: {common.points(difference)}, p {difference.p:.3f}: "
            f"{behind(passed, word)}"
        )
    drops = [b - a for b, a in zip(values(some, "rst", "before"), values(some, "rst", "after"), strict=True)]
    most, middle = max(values(some, "rst", "residual")), statistics.median(drops)
    enough = len(drops) >= 5
    word = "PASS" if most <= 0.01 and middle <= 0.015 else "FAIL"
    parts.append(
        f"Masking after RST: weights outside the ticket are at most {most:.4f} of those inside (bar 0.01), the median "
        f"drop is {100 * middle:.2f} pp (bar 1.5): {word if enough else 'CANNOT TELL'}"
    )
    return "\n\n".join(parts)
